"""Train: a new BLIP on published and human pairs, then a captioner and a filter from it.

The paper's last step (arXiv:2201.12086, sec. 3.3): pre-train from scratch on the bootstrapped data
together with the human pairs, then finetune twice on the human pairs alone, the captioner with LM,
the filter with ITC and ITM. The two models are what the next round captions and scores with.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from capfilt.config import Recipe
from capfilt.errors import CapfiltError
from capfilt.io.commits import Commit, FileRef, NewFile, Table
from capfilt.io.images import ImageDecoder, check_decoding
from capfilt.io.inputs import expand_pattern
from capfilt.io.models import local_model
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.storage import OccupiedError
from capfilt.io.tar import MAX_MEMBER_BYTES
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport, Worker
from capfilt.records import HeldOutCaption, Reason, TrainStep
from capfilt.stages.index import MAX_TEXT_MEMBER_BYTES, image_limits
from capfilt.stages.pairs import (
    DEFAULT_TEXT_FIELD,
    held_out_split,
    human_texts,
    list_pairs,
    published_texts,
    read_pairs,
)
from capfilt.stages.plans import PROGRESS_FOLDER
from capfilt.stages.shards import Funnel, report_of, reports_of, round_resources_of, run_jobs
from capfilt.stages.sources import web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.kinds import is_blip
from capfilt.workers.train import Given, Notebook, Trained, TrainWorker
from capfilt.workers.trainer_batches import TRAINING_PIXELS
from capfilt.workers.trainer_pairs import TrainingSet
from capfilt.workers.trainer_progress import ProgressFolder

STAGE = "train"


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Train the models of the next round."""
    tables.require("publish", web_shards(recipe, tables).count)
    return run_jobs([job(recipe, tables)], 1, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> TrainJob:
    """The stage's work: one piece for the whole round."""
    assert recipe.train.human is not None, "only asked for by runs that train"
    check_tokenizer(recipe, tables)
    check_decoding(recipe.train.decode, asked_by="train.decode")
    published = tables.of("publish")
    commits = tables.committed("publish")
    return TrainJob(
        recipe=recipe,
        published=tuple(
            f"{published.store.url}/{_images_of(commit).path}" for commit in commits.values()
        ),
        human=tuple(shard.url for shard in expand_pattern(recipe.train.human)),
        tokenizer=recipe.train.tokenizer or tables.sources["captioner"].name,
        continued=tables.sources["continued"].name if "continued" in tables.sources else None,
        table=tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute"),
        events=tables.store.child("events", STAGE, f"round-{tables.round:03d}").local_path(),
    )


def _images_of(commit: Commit) -> FileRef:
    """A published shard's file with the images: its tar if it has one.

    The pairs are the same, and so is what reading them costs; but the images of Parquet files that
    were published compressed, as they once were, cost a row group each.
    """
    return next((file for file in commit.files if file.role == "tar"), commit.file())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """Training after one round."""

    recipe: Recipe
    published: tuple[str, ...]  # tars or Parquet files
    human: tuple[str, ...]  # the same
    tokenizer: str
    table: Table
    continued: str | None = None  # BLIP of the round before, if training goes on from it
    events: Path | None = None  # folder for what is watched; None keeps nothing

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each of its workers needs; several train one model together."""
        resources = round_resources_of(self.recipe.pool, self.recipe.pool.train)
        return replace(resources, together=resources.num_workers > 1)

    def committed(self) -> Mapping[int, ShardReport]:
        """The models, if an earlier run trained them."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> Worker[TrainingSet, Trained]:
        """Load the tokenizer and start the decoding processes."""
        pool, start, continued = self.recipe.pool, self.recipe.train.start, self.continued
        decoder = ImageDecoder(
            image_limits(self.recipe),
            num_processes=pool.decode_processes,
            decoding=self.recipe.train.decode,
            part=TRAINING_PIXELS,
        )
        return TrainWorker(
            self.recipe.train,
            Given(
                tokenizer=local_model(self.tokenizer),
                start=None if start is None else local_model(start),
                continued=None if continued is None else local_model(continued),
            ),
            decoder,
            notebook=Notebook(progress=self._progress, events=self.events),
            seed=self.recipe.seed,
            device=pool.device,
        )

    def fetch(self, shard: int) -> Fetched[TrainingSet]:
        """List all pairs; their images are read as training meets them."""
        field = self.recipe.train.human_text_field
        web = list_pairs(self.published, published_texts, max_text_bytes=MAX_MEMBER_BYTES)
        people = list_pairs(
            self.human,
            partial(human_texts, text_field=field),
            max_text_bytes=MAX_TEXT_MEMBER_BYTES,
            text_column=(field or DEFAULT_TEXT_FIELD).partition(".")[0],
        )
        human, held_out = held_out_split(
            people, num_pairs=self.recipe.train.held_out_pairs, seed=self.recipe.seed
        )
        pairs = TrainingSet(
            web=read_pairs(web.written_by("web")),
            synthetic=read_pairs(web.written_by("synthetic")),
            human=read_pairs(human),
            held_out=read_pairs(held_out),
            lost=Counter(web.lost) + Counter(people.lost),
        )
        self._check(pairs)
        return Fetched(inputs=[pairs])

    def _check(self, pairs: TrainingSet) -> None:
        if pairs.human:
            return
        if pairs.held_out:
            raise CapfiltError(
                f"train.held_out_pairs sets all {len(pairs.held_out)} human pairs aside and leaves "
                "none to learn from; set it lower"
            )
        raise CapfiltError(
            f"{self.recipe.train.human}: no pair with an image and a text; "
            "look at train.human_text_field"
        )

    @property
    def _progress(self) -> ProgressFolder:
        return ProgressFolder(
            self.table.store.child(PROGRESS_FOLDER), num_kept=self.recipe.train.checkpoints_kept
        )

    def quarantine(self, rejected: TrainingSet, why: Quarantine) -> Trained:
        """A training cannot be left out of itself: its one row is its whole input."""
        raise AssertionError("never asked for: not divisible")

    def commit(
        self, shard: int, fetched: Fetched[TrainingSet], outputs: Sequence[Trained]
    ) -> ShardReport:
        """Write the three model folders and the metrics; committed models are never replaced.

        Nobody needs to go on with this training then, so its progress is removed.
        """
        [pairs], [trained] = fetched.inputs, outputs
        files = _files(trained)
        if self.table.find(shard) is None:
            self._put_models(trained)
        held_out = len(pairs.held_out)
        commit = self.table.commit(
            shard,
            files,
            rows_in=pairs.num_pairs + sum(pairs.lost.values()),
            kept=pairs.num_pairs - held_out - sum(trained.lost.values()),
            dropped=Counter({Reason.HELD_OUT: held_out})
            + Counter(pairs.lost)
            + Counter(trained.lost),
        )
        self._put_models(trained)  # another writer may have been at it until the commit was made
        self._progress.clear()
        return report_of(STAGE, commit)

    def _put_models(self, trained: Trained) -> None:
        """Write what is not there yet or is of another try: models have names people know."""
        for folder, name, payload in trained.files:
            try:
                self.table.store.put_new(f"{folder}/{name}", payload)
            except OccupiedError:
                self.table.store.put(f"{folder}/{name}", payload)


def _files(trained: Trained) -> list[NewFile]:
    """What is committed: the metrics, the captions of held-out images, the models' digests."""
    steps, captions = trained.steps, trained.captions
    tables = {
        "rows": to_bytes(table_from(steps, TrainStep)),
        "held_out": to_bytes(table_from(captions, HeldOutCaption)),
    }
    num_rows = {"rows": len(steps), "held_out": len(captions)}
    written = [
        NewFile(role=role, folder="", suffix=".parquet", payload=payload, rows=num_rows[role])
        for role, payload in tables.items()
    ]
    listed = NewFile(
        role="models",
        folder="",
        suffix=".json",
        payload=_model_list(trained),
        rows=len(trained.files),
    )
    return [*written, listed]


def _model_list(trained: Trained) -> bytes:
    digests = {
        f"{folder}/{name}": hashlib.sha256(payload).hexdigest()
        for folder, name, payload in trained.files
    }
    return (json.dumps(digests, indent=2, sort_keys=True) + "\n").encode()
