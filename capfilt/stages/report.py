"""Report: the whole run on one page, with pictures, for a person who must judge it.

The page is one HTML file without scripts that loads nothing, and the same tables give the same
bytes. Images are decoded as everywhere (`io.images`); what goes into the page are small JPEGs made
from their pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from capfilt.config import Recipe
from capfilt.errors import CapfiltError, ShardError, StorageError
from capfilt.io.images import ImageDecoder, Refused
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.storage import Store
from capfilt.io.thumbnails import thumbnail_jpeg
from capfilt.records import Sample
from capfilt.stages.cascade import audit
from capfilt.stages.index import image_limits
from capfilt.stages.report_html import Picture, without_query
from capfilt.stages.report_page import Report, render
from capfilt.stages.report_rows import (
    EXAMPLE_COLUMNS,
    DuplicateGroup,
    Example,
    Seen,
    examples,
    first_samples,
    fit_of,
    largest_groups,
    look_up,
    train_steps,
)
from capfilt.stages.report_scores import Pick, TextView, Yardstick, text_view, yardstick_of
from capfilt.stages.report_sections import Dropped, ReportedRound
from capfilt.stages.round_report import round_report
from capfilt.stages.shards import funnel_of
from capfilt.stages.sources import WebShards, web_shards
from capfilt.stages.status import round_status
from capfilt.stages.tables import Tables, open_tables
from capfilt.workers.kinds import gives_match_probability

THUMBNAIL_PX = 128


def report_path(recipe: Recipe) -> Path:
    """Where a report goes that is not sent elsewhere: into the run's folder.

    Raises:
        StorageError: the run has no folder yet, or none that other programs can look into.
    """
    store = Store.at_url(recipe.run)
    folder = store.local_path()
    if folder is None:
        raise StorageError(f"{store.url}: is no folder for a page; name a file with --out")
    if not folder.is_dir():
        raise StorageError(
            f"{store.url}: nothing is there yet; run `capfilt run` first, or name a file with --out"
        )
    return folder / "report.html"


def write_report(recipe: Recipe, path: Path) -> None:
    """Write the report of a run, as far as it has come.

    Raises:
        StorageError: the page cannot be written, or a table it shows cannot be read.
    """
    style = files("capfilt.stages").joinpath("report.css").read_text(encoding="utf-8")
    _write(path, render(gather(recipe), style=style).encode())


def gather(recipe: Recipe) -> Report:
    """Everything the report shows of a run.

    Images are shown of one round: the last that has scores.
    """
    opened = _open_rounds(recipe)
    rounds = [_reported(recipe, tables) for tables in opened]
    last = max((i for i, round_ in enumerate(rounds) if round_.texts.totals.any()), default=0)
    tables, shown = opened[last], rounds[last]
    groups = largest_groups(tables)
    pictures = _pictures(recipe, tables, _wanted(shown.texts, groups))
    return Report(
        name=recipe.input.name,
        rounds=tuple(rounds),
        shown=shown,
        pictures=pictures,
        groups=groups,
        dropped=tuple(_dropped(tables, shown)),
        models=tuple(
            (role, _last_part(source.name), source.digest)
            for role, source in sorted(tables.sources.items())
        ),
        plans=tuple(tables.plans.values()),
    )


def _open_rounds(recipe: Recipe) -> list[Tables]:
    """The tables of every round that has begun; round 0 is always there."""
    opened = [open_tables(recipe, 0)]
    for number in range(1, recipe.rounds):
        try:
            opened.append(open_tables(recipe, number))
        except CapfiltError:
            break  # the round before has no models yet
    return opened


def _reported(recipe: Recipe, tables: Tables) -> ReportedRound:
    has_itm_prob = gives_match_probability(tables.sources["filter"].model_type)
    yardstick = yardstick_of(recipe.select, has_itm_prob=has_itm_prob)
    texts = text_view(tables, yardstick)
    if not texts.totals.any():
        texts = replace(texts, sample=first_samples(tables))
    return ReportedRound(
        number=tables.round,
        stages=tuple(round_status(recipe, tables)),
        yardstick=yardstick,
        texts=texts,
        steps=tuple(train_steps(tables)),
        audit=audit(tables, recipe.select) if recipe.score.cascade is not None else None,
        report=round_report(recipe, tables),
    )


def _wanted(texts: TextView, groups: Iterable[DuplicateGroup]) -> dict[int, set[str]]:
    """Whose pictures the page shows: keys by shard."""
    wanted: defaultdict[int, set[str]] = defaultdict(set)
    for pick in (*texts.sample, *texts.replaced, *texts.below, *texts.above, *texts.lost):
        wanted[pick.shard].add(pick.key)
    for group in groups:
        wanted[group.shard].add(group.representative)
        for member in group.members:
            wanted[member.shard].add(member.key)
    return dict(sorted(wanted.items()))


def _pictures(recipe: Recipe, tables: Tables, wanted: Mapping[int, set[str]]) -> dict[str, Picture]:
    shards = web_shards(recipe, tables)
    pictures: dict[str, Picture] = {}
    with ImageDecoder(image_limits(recipe)) as decoder:
        for shard, keys in wanted.items():
            seen = list(look_up(tables, shard, keys).values())
            images = _images(shards, shard, [one.sample for one in seen])
            for one, image in zip(seen, images, strict=True):
                pictures[one.sample.key] = _picture(one, image, decoder)
    return pictures


def _images(shards: WebShards, shard: int, samples: Sequence[Sample]) -> Iterator[bytes | str]:
    """The bytes of each image, or why they cannot be shown; read as they are asked for."""
    try:
        file = open_shard(shards.locate(shard))
    except ShardError:
        # The numbers are worth a page even where the images are out of reach.
        yield from ("the shard cannot be read" for _ in samples)
        return
    try:
        yield from (_image(file, sample) for sample in samples)
    finally:
        file.close()


def _image(file: ShardFile, sample: Sample) -> bytes | str:
    if sample.image_offset is None or sample.num_bytes is None:
        return "no image"
    payload = file.read(offset=sample.image_offset, num_bytes=sample.num_bytes)
    if hashlib.sha256(payload).hexdigest() != sample.image_sha256:
        return "not the image that was indexed"
    return payload


def _picture(seen: Seen, image: bytes | str, decoder: ImageDecoder) -> Picture:
    if isinstance(image, str):
        return Picture(seen=seen, jpeg=None, trouble=image)
    [pixels] = decoder.pixels([image], side_px=THUMBNAIL_PX)
    if isinstance(pixels, Refused):
        return Picture(seen=seen, jpeg=None, trouble=pixels.reason)
    width_px, height_px = seen.sample.width_px, seen.sample.height_px
    assert width_px is not None, "an image that can be decoded was measured"
    assert height_px is not None
    return Picture(seen=seen, jpeg=thumbnail_jpeg(pixels, width_px=width_px, height_px=height_px))


def _dropped(tables: Tables, round_: ReportedRound) -> Iterator[Dropped]:
    """Every reason of every stage of a round with examples, in the order of the loop."""
    for stage in tables.plans:
        dropped = funnel_of(stage, tables.committed(stage).values(), round_=tables.round).dropped
        shown = _examples(tables, stage, round_) if dropped else {}
        for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0])):
            if stage == "select" and reason not in shown:
                continue  # texts that came without a score are told of by `score`
            rows = tuple(shown.get(reason, ()))
            yield Dropped(stage=stage, reason=reason, count=count, examples=rows)


def _examples(tables: Tables, stage: str, round_: ReportedRound) -> Mapping[str, Sequence[Example]]:
    if stage == "select":
        return {
            reason: _text_examples(tables, picks, round_.yardstick)
            for reason, picks in round_.texts.by_reason
        }
    found = examples(tables, stage) if stage in EXAMPLE_COLUMNS else {}
    if stage == "download":
        return {reason: [_without_query(row) for row in rows] for reason, rows in found.items()}
    return found


def _text_examples(tables: Tables, picks: Iterable[Pick], yardstick: Yardstick) -> list[Example]:
    shown = []
    for pick in picks:
        seen = look_up(tables, pick.shard, [pick.key])[pick.key]
        for text in seen.texts:
            if (text.text_source, text.text_index) == pick.text:
                fit = fit_of(text, yardstick)
                score = None if fit is None else f"{yardstick.name} {fit:.3f}"
                shown.append(Example(what=text.text or "", detail=score))
    return shown


def _without_query(row: Example) -> Example:
    return Example(what=without_query(row.what), detail=row.detail)


def _last_part(name: str) -> str:
    """A model's or file's name without the place it lies in."""
    return name.rstrip("/").rpartition("/")[2]


def _write(path: Path, page: bytes) -> None:
    """Write the page whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(page)
        os.replace(beside, path)
    except OSError as err:
        with suppress(OSError):
            beside.unlink()
        raise StorageError(
            f"{path}: cannot be written: {err.strerror}; name another file with --out"
        ) from err
