"""Both stages end to end: from JPEG shards to committed Parquet, beside a plain script."""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.decode import made_images
from benchmarks.gpu_rows.bench import Bench
from benchmarks.gpu_rows.busy import BusyMeter
from benchmarks.gpu_rows.plain_pipeline import PlainPipeline
from benchmarks.gpu_rows.rows import Comparison, Job, Target
from benchmarks.peers import NUM_TOKENS, TOP_P
from capfilt.config import Recipe, check_recipe
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.pool import AnyJob
from capfilt.stages import caption, index, score
from capfilt.stages.shards import run_jobs
from capfilt.stages.tables import Tables, open_tables

MOST_TURNS = 3  # each takes many seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How long one side took for all shards."""

    whole_s: float  # with the loading of models and the start of processes
    steady_per_s: float  # images per second after the first shard
    busy: float | None  # share of the time in which the device computed
    itm_web: list[float]  # of the web text of each image, in order
    index_s: float | None = None  # ours alone: reading and hashing all images beforehand


def jobs(bench: Bench) -> Iterator[Job]:
    """One row."""
    yield Job(group="pipeline", name="JPEG shards to Parquet", run=lambda: end_to_end(bench))


def end_to_end(bench: Bench) -> Comparison:
    """Let both pipelines take turns over the same shards."""
    scale = bench.scale
    bench.captioners(scale.base, bench.dtype)  # writes the files that both load
    bench.matchers(scale.base, bench.dtype)
    tars = write_shards(bench)
    turns = [
        (_ours(bench, tars, turn), _theirs(bench, tars, turn))
        for turn in range(min(MOST_TURNS, scale.repeats))
    ]
    ours, theirs = zip(*turns, strict=True)
    return Comparison(
        unit="images",
        ours_per_s=statistics.median(run.steady_per_s for run in ours),
        theirs_per_s=statistics.median(run.steady_per_s for run in theirs),
        ours_batch=scale.fixed_batch,
        theirs_batch=scale.fixed_batch,
        ratios=[mine.steady_per_s / peer.steady_per_s for mine, peer in turns],
        target=Target(ratio=5, rate=1_500),
        answers=_agreement(*turns[0]),
        figures=_figures(bench, ours[-1], theirs[-1]),
    )


def write_shards(bench: Bench) -> list[Path]:
    """Write tars of JPEGs of 640 x 480 px, each image with a web text."""
    scale, folder = bench.scale, bench.folder / "web"
    folder.mkdir(exist_ok=True)
    pictures, rng = made_images(min(200, scale.images_per_shard)), random.Random(0)
    tars = [folder / f"{shard:05d}.tar" for shard in range(scale.num_shards)]
    for shard, tar in enumerate(tars):
        members: list[tuple[str, bytes]] = []
        for i in range(scale.images_per_shard):
            name = f"{shard:05d}{i:05d}"
            text = " ".join(f"w{rng.randrange(300, 900)}" for _ in range(NUM_TOKENS - 2))
            members += [
                (f"{name}.jpg", pictures[i % len(pictures)]),
                (f"{name}.txt", text.encode()),
            ]
        tar.write_bytes(write_tar(members))
    return tars


def _ours(bench: Bench, tars: list[Path], turn: int) -> Run:
    recipe = _recipe(bench, tars, bench.folder / f"run-{turn}")
    tables, pool, count = open_tables(recipe, 0), LocalPool(), len(tars)
    start = time.perf_counter()
    run_jobs([index.job(recipe, tables)], count, tables=tables, pool=pool)
    indexed = time.perf_counter()
    chain: list[AnyJob] = [caption.job(recipe, tables), score.job(recipe, tables)]
    with BusyMeter(on_gpu=bench.on_gpu) as meter:
        timed = [(time.perf_counter(), report) for report in pool.run(chain, range(count))]
    whole_s = time.perf_counter() - indexed
    errors = [report.error for _, report in timed if report.error is not None]
    if errors:
        raise ValueError(errors[0])
    # The first report is of the first shard's captions: its scores are still to come, so that this
    # counts a little less than was done.
    steady_s = timed[-1][0] - timed[0][0]
    return Run(
        whole_s=whole_s,
        steady_per_s=(count - 1) * bench.scale.images_per_shard / steady_s,
        busy=meter.share(),
        itm_web=_web_scores(tables, count),
        index_s=indexed - start,
    )


def _recipe(bench: Bench, tars: list[Path], run: Path) -> Recipe:
    scale = bench.scale
    batches = {"batch_images": scale.fixed_batch, "dtype": bench.dtype_name}
    return check_recipe(
        "end to end",
        {
            "run": str(run),
            "input": {"shards": f"{tars[0].parent}/{{{tars[0].stem}..{tars[-1].stem}}}.tar"},
            "caption": {
                "model": str(bench.folder / f"captioner-{scale.base}"),
                "prompt": "",
                "top_p": TOP_P,
                "min_new_tokens": NUM_TOKENS - 1,
                "max_new_tokens": NUM_TOKENS,
                **batches,
            },
            "score": {"model": str(bench.folder / f"filter-{scale.base}"), **batches},
            "pool": {
                "kind": "local",
                "device": bench.device,
                "decode_processes": scale.decode_processes,
            },
        },
    )


def _web_scores(tables: Tables, count: int) -> list[float]:
    """ITM of the web texts, in the order of the images' names."""
    found: dict[str, float] = {}
    for shard in range(count):
        samples = pq.read_table(io.BytesIO(tables.of("index").read(shard)))
        names = dict(zip(*(samples[c].to_pylist() for c in ("key", "source_key")), strict=True))
        scores = pq.read_table(io.BytesIO(tables.of("score").read(shard)))
        web = scores.filter(pc.field("text_source") == "web")
        columns = zip(web["key"].to_pylist(), web["itm_prob"].to_pylist(), strict=True)
        found |= {names[key]: itm_prob for key, itm_prob in columns}
    return [found[name] for name in sorted(found)]


def _theirs(bench: Bench, tars: list[Path], turn: int) -> Run:
    scale, out = bench.scale, bench.folder / f"plain-{turn}"
    out.mkdir()
    pipeline = PlainPipeline(
        captioner=bench.folder / f"captioner-{scale.base}",
        matcher=bench.folder / f"filter-{scale.base}",
        device=bench.device,
        dtype=bench.dtype,
        batch_images=scale.fixed_batch,
        num_processes=scale.decode_processes,
    )
    start = time.perf_counter()
    with BusyMeter(on_gpu=bench.on_gpu) as meter:
        written = list(pipeline.run(tars, out, rows_per_file=scale.images_per_shard))
    files = [pq.read_table(path) for path in sorted(out.iterdir())]
    return Run(
        whole_s=time.perf_counter() - start,
        steady_per_s=(len(tars) - 1) * scale.images_per_shard / (written[-1] - written[0]),
        busy=meter.share(),
        itm_web=[value for rows in files for value in rows.sort_by("name")["itm_web"].to_pylist()],
    )


def _agreement(ours: Run, theirs: Run) -> str:
    pairs = zip(ours.itm_web, theirs.itm_web, strict=True)
    apart = max(abs(mine - peer) for mine, peer in pairs)
    return f"ITM of web texts within {apart:.0e}"


def _figures(bench: Bench, ours: Run, theirs: Run) -> dict[str, str]:
    num_images = bench.scale.num_shards * bench.scale.images_per_shard
    assert ours.index_s is not None
    return {
        "images, each side": f"{num_images}, in {bench.scale.num_shards} shards",
        "decoding processes": str(bench.scale.decode_processes),
        "with start, ours": f"{num_images / ours.whole_s:,.0f} images/s",
        "with start, transformers": f"{num_images / theirs.whole_s:,.0f} images/s",
        "with start and index, ours": f"{num_images / (ours.whole_s + ours.index_s):,.0f} images/s",
        "GPU busy, ours": _share_text(ours.busy),
        "GPU busy, transformers": _share_text(theirs.busy),
    }


def _share_text(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.0%}"
