"""The demo: the whole loop on the miniature web, measured against the truth.

A small web of rendered scenes is served on this machine, with the faults the real one has. It is
downloaded, captioned, filtered, deduplicated, published and trained on like any other; but since
what every picture shows is known, the end is a table no real run can print: how often the filter
was right, how many texts are true before and after, which planted duplicates were found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet

from capfilt.config import Recipe, check_recipe
from capfilt.io.parquet import from_bytes, records_from
from capfilt.io.tar import write_tar
from capfilt.miniature.measure import Quality, TruthShare, duplicate_quality, filter_quality
from capfilt.miniature.pages import PageTruth, truth_to_json
from capfilt.miniature.pairs import write_human_shard
from capfilt.miniature.server import serve
from capfilt.miniature.truth import is_true
from capfilt.miniature.web import build_web, page_url, url_list
from capfilt.miniature.world import Scene, scene_from_json
from capfilt.pool import Pool
from capfilt.recipe_text import recipe_text
from capfilt.records import Group, PublishedSample, Sample, Score, Verdict
from capfilt.stages.loop import run_round
from capfilt.stages.shards import Funnel
from capfilt.stages.tables import Tables, open_tables

TOO_SLOW_S = 10.0
"""A page of the miniature web that takes this long to answer is lost, and meant to be."""
NUM_HUMAN_PAIRS = 600
PORTS = range(48_700, 48_720)

RowT = TypeVar("RowT")

OpenPool = Callable[[Recipe], AbstractContextManager[Pool]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFigures:
    """What the demo measured."""

    pages: int
    seed: int
    seconds: float
    funnels: tuple[Funnel, ...]
    filter_on_web_texts: Quality
    texts_on_the_web: TruthShare  # web texts of readable images, as they were found
    captions: TruthShare  # synthetic texts before the filter
    texts_published: TruthShare
    duplicates: Quality  # pairs of images with a kept text
    lost_wrongly: int  # pages whose image should have been read and was not, or the reverse
    dataset: str
    models: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo laid out in a folder: its web, its human pairs and its recipe."""

    folder: Path
    recipe: Recipe
    truth: tuple[PageTruth, ...]
    base_url: str


def run_demo(
    folder: Path, *, pages: int, seed: int, pool_kind: str, open_pool: OpenPool,
    on_funnel: Callable[[Funnel], None],
) -> DemoFigures:  # fmt: skip
    """Serve the miniature web, run one round on it, and measure.

    Running it again in the same folder resumes.

    Args:
        folder: where everything goes.
        pages: size of the web.
        seed: another seed is another web.
        pool_kind: `ray` or `local`.
        open_pool: opens the pool a recipe asks for.
        on_funnel: called as each stage is done.
    """
    started = time.monotonic()
    web = build_web(seed, num_pages=pages)
    with serve(web, too_slow_s=TOO_SLOW_S, ports=_ports(folder)) as base_url:
        rows = url_list(web, base_url)
        truth = tuple(web.truth())
        with as_file(files("capfilt.miniature") / "weights") as weights:
            recipe = _lay_out(folder, rows, base_url, weights, pool_kind=pool_kind)
            (folder / "truth.json").write_text(truth_to_json(list(truth)), encoding="utf-8")
            tables = open_tables(recipe, 0)
            funnels = []
            with open_pool(recipe) as pool:
                for funnel in run_round(recipe, tables, pool):
                    funnels.append(funnel)
                    on_funnel(funnel)
    return measure(
        tables,
        {page_url(row.path, base_url): row for row in truth},
        funnels=tuple(funnels),
        pages=pages,
        seed=seed,
        seconds=time.monotonic() - started,
    )


def measure(
    tables: Tables, truth: Mapping[str, PageTruth], *, funnels: tuple[Funnel, ...], pages: int,
    seed: int, seconds: float,
) -> DemoFigures:  # fmt: skip
    """Join what the run decided with what is true.

    Args:
        tables: of the round.
        truth: what is known about each page, by URL.
        funnels: of the round's stages.
        pages: size of the web.
        seed: of the web.
        seconds: how long the run took.
    """
    samples = _rows(tables, "index", Sample)
    pages_by_key = {s.key: truth[s.url] for s in samples if s.url is not None}
    scenes = {key: scene_from_json(page.scene) for key, page in pages_by_key.items()}
    scores = _rows(tables, "score", Score)
    kept = {(v.key, v.text_source, v.text_index): v.kept for v in _rows(tables, "select", Verdict)}
    web = [score for score in scores if score.text_source == "web"]
    published = _rows(tables, "publish", PublishedSample)
    return DemoFigures(
        pages=pages,
        seed=seed,
        seconds=seconds,
        funnels=funnels,
        filter_on_web_texts=filter_quality(
            [kept[s.key, s.text_source, s.text_index] for s in web],
            [_is_true(s.text, scenes[s.key]) for s in web],
        ),
        texts_on_the_web=_share([(s.text, scenes[s.key]) for s in web]),
        captions=_share([(s.text, scenes[s.key]) for s in scores if s.text_source == "synthetic"]),
        texts_published=_share([(t.text, scenes[row.key]) for row in published for t in row.texts]),
        duplicates=_duplicates(_rows(tables, "dedup", Group), pages_by_key),
        lost_wrongly=_lost_wrongly(samples, truth),
        dataset=tables.of("publish").store.url,
        models=tables.of("train").store.url if tables.has("train") else "",
    )


def figures_json(figures: DemoFigures) -> dict[str, object]:
    """The figures as plain data, with the derived ones."""
    plain: dict[str, object] = asdict(figures)
    for name in ("filter_on_web_texts", "duplicates"):
        quality: Quality = getattr(figures, name)
        plain[name] = {**asdict(quality), "precision": quality.precision, "recall": quality.recall}
    for name in ("texts_on_the_web", "captions", "texts_published"):
        share: TruthShare = getattr(figures, name)
        plain[name] = {**asdict(share), "share": share.share}
    plain["funnels"] = [{**asdict(f), "remainder": f.remainder} for f in figures.funnels]
    return plain


def _lay_out(
    folder: Path, rows: list[tuple[str, str | None]], base_url: str, weights: Path, *,
    pool_kind: str,
) -> Recipe:  # fmt: skip
    """Write the URL list, the human pairs and the recipe; all of them the same each time."""
    (folder / "human").mkdir(parents=True, exist_ok=True)
    urls = folder / "urls.parquet"
    table = pa.table({"url": [url for url, _ in rows], "alt": [text for _, text in rows]})
    pa.parquet.write_table(table, urls)
    pairs = write_human_shard("demo", NUM_HUMAN_PAIRS, side_px=96)
    members = [
        member
        for key, jpeg, text in pairs
        for member in ((f"{key}.jpg", jpeg), (f"{key}.txt", text.encode()))
    ]
    (folder / "human" / "00000.tar").write_bytes(write_tar(members))
    chosen = _recipe_values(folder.resolve(), base_url, weights, pool_kind=pool_kind)
    (folder / "recipe.yaml").write_text(recipe_text(chosen), encoding="utf-8")
    return check_recipe(str(folder / "recipe.yaml"), chosen)


def _recipe_values(
    folder: Path, base_url: str, weights: Path, *, pool_kind: str
) -> dict[str, object]:
    return {
        "run": str(folder / "run"),
        "download": {
            "urls": str(folder / "urls.parquet"),
            "urls_per_shard": 100,
            "timeout_s": TOO_SLOW_S / 2,
            "retries": 0,
            "threads": 8,  # the server shares this machine's cores with everything else
            "allowed_hosts": [base_url.removeprefix("http://")],
        },
        "caption": {"model": str(weights / "captioner"), "max_new_tokens": 40},
        "score": {"model": str(weights / "filter")},
        # Pictures of the miniature world are all of one kind: how they look must decide.
        "dedup": {"min_cosine": 0.98, "max_phash_distance_embedding": 7},
        "train": {
            "human": str(folder / "human" / "{00000..00000}.tar"),
            "start": str(weights / "captioner"),
            "image_size_px": 63,
            "min_crop_area": 1.0,  # a crop would move things, and mirroring swap left and right
            "finetune_min_crop_area": 1.0,
            "flip_probability": 0.0,
            "num_augmentations": 0,  # RandAugment too moves and turns
            "batch_size": 32,
            "queue_size": 256,
            "pretrain_steps": 60,
            "finetune_steps": 20,
            "warmup_steps": 10,
            "learning_rate": 1e-3,
            "finetune_learning_rate": 3e-4,
        },
        "pool": {"kind": pool_kind, "download": {"workers": 2}},
    }


def _ports(folder: Path) -> tuple[int, ...]:
    """Ports to try: the one this folder used before first, so that its URLs stay the same."""
    recipe = folder / "urls.parquet"
    if not recipe.exists():
        return tuple(PORTS)
    url = str(pa.parquet.read_table(recipe, columns=["url"])["url"][0].as_py())
    before = [port for port in PORTS if f":{port}/" in url]
    return (*before, *(port for port in PORTS if port not in before))


def _rows(tables: Tables, stage: str, record_type: type[RowT]) -> list[RowT]:
    table = tables.of(stage)
    return [
        row
        for shard in tables.committed(stage)
        for row in records_from(from_bytes(table.read(shard), record_type), record_type)
    ]


def _is_true(text: str | None, scene: Scene) -> bool:
    return text is not None and is_true(text, scene) is True


def _share(texts: list[tuple[str | None, Scene]]) -> TruthShare:
    return TruthShare(num_true=sum(_is_true(*pair) for pair in texts), num_texts=len(texts))


def _duplicates(groups: list[Group], pages: Mapping[str, PageTruth]) -> Quality:
    with_text = [group for group in groups if group.representative is not None]
    return duplicate_quality(
        {group.key: str(group.representative) for group in with_text},
        {group.key: pages[group.key].group for group in with_text},
    )


def _lost_wrongly(samples: list[Sample], truth: Mapping[str, PageTruth]) -> int:
    reasons = {sample.url: sample.reason for sample in samples}
    return sum(
        (reasons.get(url, "not downloaded") is not None) != bool(page.expected)
        for url, page in truth.items()
    )


def write_figures(figures: DemoFigures, path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(figures_json(figures), indent=2) + "\n", encoding="utf-8")
