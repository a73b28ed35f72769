"""Train: a new BLIP on published and human pairs, then a captioner and a filter from it.

The paper's last step (arXiv:2201.12086, sec. 3.3): pre-train from scratch on the bootstrapped data
together with the human pairs, then finetune twice on the human pairs alone, the captioner with LM,
the filter with ITC and ITM. The two models are what the next round captions and scores with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import pyarrow as pa

from capfilt.config import Recipe
from capfilt.errors import CapfiltError, ShardError
from capfilt.io.commits import NewFile, Table
from capfilt.io.images import ImageDecoder
from capfilt.io.inputs import expand_pattern
from capfilt.io.models import local_model
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.rows import LazyRows
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.storage import OccupiedError
from capfilt.io.tar import MAX_MEMBER_BYTES, TarDamage, TarSample, group_samples
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import Reason, TrainStep
from capfilt.stages.index import IMAGE_EXTENSIONS, MAX_TEXT_MEMBER_BYTES, image_limits, web_text_of
from capfilt.stages.shards import Funnel, report_of, reports_of, round_resources_of, run_jobs
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.batches import SourceImage
from capfilt.workers.kinds import is_blip
from capfilt.workers.train import Given, Trained, TrainingPair, TrainingSet, TrainWorker

STAGE = "train"
MAX_TEXTS = 100
"""Texts of one image that are looked for."""

MAX_OPEN_SHARDS = 256
"""Shards held open while training reads images: a quarter of the usual limit of open files."""

PLACES = pa.schema(
    [
        ("shard", pa.int32()),  # position among the shards listed
        ("sample", pa.large_string()),  # its name and occurrence in the shard
        ("text", pa.large_string()),
        ("offset", pa.int64()),  # of the image in the tar
        ("num_bytes", pa.int64()),
    ]
)
"""Columns that say where a pair is: a round may have more pairs than memory has objects."""

TextsOf = Callable[[Mapping[str, bytes]], list[str]]
"""Finds a sample's texts among its text members."""


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Train the models of the next round."""
    tables.require("publish", web_shards(recipe, tables).count)
    return run_jobs([job(recipe, tables)], 1, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> TrainJob:
    """The stage's work: one piece for the whole round."""
    assert recipe.train.human is not None, "only asked for by runs that train"
    check_tokenizer(recipe, tables)
    published = tables.of("publish")
    commits = tables.committed("publish")
    return TrainJob(
        recipe=recipe,
        published=tuple(
            f"{published.store.url}/{commit.file('tar').path}" for commit in commits.values()
        ),
        human=tuple(shard.url for shard in expand_pattern(recipe.train.human)),
        tokenizer=recipe.train.tokenizer or tables.sources["captioner"].name,
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
    )


def check_tokenizer(recipe: Recipe, tables: Tables) -> None:
    """Refuse to train a BLIP with the tokenizer of another kind of model.

    Raises:
        CapfiltError: says what to set.
    """
    captioner = tables.sources["captioner"]
    if recipe.train.tokenizer is None and not is_blip(captioner.model_type):
        raise CapfiltError(
            f"train.tokenizer is null, which means the captioner's, and {captioner.name} is a "
            f"{captioner.model_type}; what is trained is a BLIP: set train.tokenizer to one, such "
            "as Salesforce/blip-image-captioning-base"
        )


def published_texts(texts: Mapping[str, bytes]) -> list[str]:
    """The texts of a published sample, from its json."""
    fields = json.loads(texts["json"])
    return [str(text["text"]) for text in fields["texts"]]


def human_texts(texts: Mapping[str, bytes], *, text_field: str | None) -> list[str]:
    """The text, or texts, people wrote for an image.

    Args:
        texts: the sample's text members by extension.
        text_field: as `input.text_field`; if it names a list, every string in it is a text.
    """
    one = web_text_of(texts, text_field)
    if one is not None:
        return [one] if one.strip() else []
    several = (web_text_of(texts, f"{text_field or 'caption'}.{i}") for i in range(MAX_TEXTS))
    return [text for text in several if text is not None and text.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPairs:
    """Where the pairs of some shards are; nothing of it is held open.

    Args:
        urls: the shards.
        places: `PLACES`, a row per pair.
        lost: samples without an image or a text, by reason.
    """

    urls: Sequence[str]
    places: pa.Table
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Training after one round."""

    recipe: Recipe
    published: tuple[str, ...]  # tars
    human: tuple[str, ...]
    tokenizer: str
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What its one worker needs."""
        return round_resources_of(self.recipe.pool, self.recipe.pool.train)

    def committed(self) -> Mapping[int, ShardReport]:
        """The models, if an earlier run trained them."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> Worker[TrainingSet, Trained]:
        """Load the tokenizer and start the decoding processes."""
        pool, name = self.recipe.pool, self.recipe.train.start
        decoder = ImageDecoder(image_limits(self.recipe), num_processes=pool.decode_processes)
        start = None if name is None else local_model(name)
        return TrainWorker(
            self.recipe.train,
            Given(tokenizer=local_model(self.tokenizer), start=start),
            decoder,
            seed=self.recipe.seed,
            device=pool.device,
        )

    def fetch(self, shard: int) -> Fetched[TrainingSet]:
        """List all pairs; their images are read as training meets them."""
        human = partial(human_texts, text_field=self.recipe.train.human_text_field)
        web = list_pairs(self.published, published_texts, max_text_bytes=MAX_MEMBER_BYTES)
        people = list_pairs(self.human, human, max_text_bytes=MAX_TEXT_MEMBER_BYTES)
        pairs = TrainingSet(
            web=read_pairs(web),
            human=read_pairs(people),
            lost=Counter(web.lost) + Counter(people.lost),
        )
        if not pairs.human:
            raise CapfiltError(
                f"{self.recipe.train.human}: no pair with an image and a text; "
                "look at train.human_text_field"
            )
        return Fetched(inputs=[pairs])

    def quarantine(self, rejected: TrainingSet, why: Quarantine) -> Trained:
        """A training cannot be left out of itself: its one row is its whole input."""
        raise AssertionError("never asked for: not divisible")

    def commit(
        self, shard: int, fetched: Fetched[TrainingSet], outputs: Sequence[Trained]
    ) -> ShardReport:
        """Write the three model folders and the metrics; committed models are never replaced."""
        [pairs], [trained] = fetched.inputs, outputs
        files = [
            NewFile(
                role="rows",
                folder="",
                suffix=".parquet",
                payload=to_bytes(table_from(trained.steps, TrainStep)),
                rows=len(trained.steps),
            ),
            NewFile(
                role="models",
                folder="",
                suffix=".json",
                payload=_model_list(trained),
                rows=len(trained.files),
            ),
        ]
        if self.table.find(shard) is None:
            self._put_models(trained)
        found = len(pairs.web) + len(pairs.human)
        commit = self.table.commit(
            shard,
            files,
            rows_in=found + sum(pairs.lost.values()),
            kept=found - sum(trained.lost.values()),
            dropped=Counter(pairs.lost) + Counter(trained.lost),
        )
        self._put_models(trained)  # another writer may have been at it until the commit was made
        return report_of(STAGE, commit)

    def _put_models(self, trained: Trained) -> None:
        """Write what is not there yet or is of another try: models have names people know."""
        for folder, name, payload in trained.files:
            try:
                self.table.store.put_new(f"{folder}/{name}", payload)
            except OccupiedError:
                self.table.store.put(f"{folder}/{name}", payload)


def _model_list(trained: Trained) -> bytes:
    digests = {
        f"{folder}/{name}": hashlib.sha256(payload).hexdigest()
        for folder, name, payload in trained.files
    }
    return (json.dumps(digests, indent=2, sort_keys=True) + "\n").encode()


def list_pairs(urls: Sequence[str], texts_of: TextsOf, *, max_text_bytes: int) -> ListedPairs:
    """Find the pairs of some shards: one per text of each sample that has an image.

    Args:
        urls: the shards.
        texts_of: finds a sample's texts.
        max_text_bytes: of a .txt or .json member; a longer one is cut.

    Raises:
        ShardError: a shard is damaged or cannot be read.
    """
    lost: Counter[str] = Counter()
    found = [PLACES.empty_table()]
    for number, url in enumerate(urls):
        places = []
        for sample, texts in _described(open_shard(url), texts_of, max_text_bytes=max_text_bytes):
            image = next((sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members), None)
            if image is None or not texts:
                lost[Reason.IMAGE_MISSING if image is None else Reason.TEXT_MISSING] += 1
                continue
            name = f"{sample.source_key}/{sample.occurrence}"
            places += [(number, name, text, image.offset, image.num_bytes) for text in texts]
        found.append(_columns(places))
    return ListedPairs(urls=urls, places=pa.concat_tables(found), lost=lost)


def read_pairs(pairs: ListedPairs) -> Sequence[TrainingPair]:
    """The pairs; their images are read as they are asked for."""
    opened = lru_cache(maxsize=MAX_OPEN_SHARDS)(open_shard)

    def read(row: int) -> TrainingPair:
        place = {name: pairs.places[name][row].as_py() for name in PLACES.names}
        url = pairs.urls[place["shard"]]
        payload = opened(url).read(offset=place["offset"], num_bytes=place["num_bytes"])
        digest = hashlib.sha256(payload).hexdigest()
        image = SourceImage(key=f"{url}/{place['sample']}", payload=payload, sha256=digest)
        return TrainingPair(image=image, text=place["text"])

    return LazyRows(range(len(pairs.places)), read)


def _described(
    file: ShardFile, texts_of: TextsOf, *, max_text_bytes: int
) -> Iterator[tuple[TarSample, list[str]]]:
    """The samples of a shard, each with its texts."""
    try:
        samples = group_samples(file.members())
    except TarDamage as err:
        raise ShardError(f"{file.url}: damaged at byte {err.at_byte}: {err.why}") from err
    for sample in samples:
        texts = {
            extension: file.read(
                offset=member.offset, num_bytes=min(member.num_bytes, max_text_bytes)
            )
            for extension, member in sample.members.items()
            if extension in ("txt", "json")
        }
        yield sample, texts_of(texts)


def _columns(places: Sequence[tuple[int, str, str, int, int]]) -> pa.Table:
    rows = [dict(zip(PLACES.names, place, strict=True)) for place in places]
    return pa.Table.from_pylist(rows, schema=PLACES)
