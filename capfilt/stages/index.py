"""Index: look at every sample once: what is it, can its image be read, what does the web say of it.

Each sample of a shard becomes one row, sound or not. The row holds the place of the image in the
tar, so that no later stage searches for it, and the image's digests, so that a changed file is
noticed. Images are decoded here with the limits later stages use: what passes now, passes then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capfilt.config import Recipe
from capfilt.errors import ShardError
from capfilt.io.commits import NewFile, Table
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.inputs import expand_pattern
from capfilt.io.parquet import table_from, to_bytes
from capfilt.io.rows import LazyRows
from capfilt.io.shards import ShardFile, open_shard
from capfilt.io.tar import CompressedTar, Member, TarDamage, TarSample, group_samples
from capfilt.lineage import sample_key
from capfilt.pool import Fetched, Pool, Quarantine, Resources, ShardReport
from capfilt.records import Reason, Sample
from capfilt.stages.other_plans import note_shards
from capfilt.stages.shards import (
    Funnel,
    drop_counts,
    report_of,
    reports_of,
    resources_of,
    run_jobs,
)
from capfilt.stages.sources import WebShards, refuse_other_web, web_shards
from capfilt.stages.tables import Tables
from capfilt.workers.inspect import Inspection, InspectWorker

STAGE = "index"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_DETAIL_CHARS = 200
MAX_TEXT_MEMBER_BYTES = 1_000_000
"""A .txt or .json member larger than this is cut: no caption is that long."""


def run(recipe: Recipe, tables: Tables, pool: Pool) -> Funnel:
    """Index all shards of the web data."""
    shards = web_shards(recipe, tables)
    return run_jobs([job(recipe, tables)], shards.count, tables=tables, pool=pool)[STAGE]


def job(recipe: Recipe, tables: Tables) -> IndexJob:
    """The stage's work on one shard.

    Raises:
        StorageError: input shards are missing, and not all are indexed; names the first few.
        PlanError: input shards are not those that are indexed.
    """
    shards = web_shards(recipe, tables)
    indexed = tables.committed(STAGE)
    if recipe.input.shards is not None and len(indexed) < shards.count:
        expand_pattern(recipe.input.shards)
    refuse_other_web(shards, indexed)
    table = tables.begin(STAGE, recompute=recipe.on_changed_settings == "recompute")
    if shards.urls:
        note_shards(table.store, shards.urls)
    return IndexJob(recipe=recipe, shards=shards, table=table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a tar says of a sample, before anything is decoded."""

    key: str
    source_key: str
    shard: int
    image: Member | None
    extensions: tuple[str, ...]  # of all its members
    web_text: str | None
    url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Where a tar broke, and why; what followed is lost."""

    at_byte: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundShard:
    """A fetched shard: its samples in the order of the tar, its digest, its damage if any."""

    found: Sequence[Found]
    sha256: str
    damage: Damage | None
    shard: int


def sample_of(found: Found, inspection: Inspection) -> Sample:
    """The row of a sample: what the tar said and what looking at the image showed."""
    return Sample(
        key=found.key,
        source_key=found.source_key,
        shard=found.shard,
        web_text=found.web_text,
        url=found.url,
        image_member=None if found.image is None else found.image.name,
        image_offset=None if found.image is None else found.image.offset,
        num_bytes=None if found.image is None else found.image.num_bytes,
        image_sha256=inspection.sha256,
        image_format=inspection.image_format,
        width_px=inspection.width_px,
        height_px=inspection.height_px,
        phash=inspection.phash,
        reason=inspection.reason,
        detail=inspection.detail or _missing_image_detail(found),
    )


def _missing_image_detail(found: Found) -> str | None:
    """What there is instead: a name such as `a.final.jpg` makes an extension `final.jpg`."""
    if found.image is not None:
        return None
    there = ", ".join(f".{extension}" for extension in found.extensions)
    return f"its members are {there}"[:MAX_DETAIL_CHARS]


def damage_row(shard: FoundShard, dataset: str) -> Sample:
    """The row that stands for everything behind the damage of a salvaged shard."""
    assert shard.damage is not None
    lost = Found(
        key=sample_key(dataset, shard.shard, f"(damage at byte {shard.damage.at_byte})", 0),
        source_key="",
        shard=shard.shard,
        image=None,
        extensions=(),
        web_text=None,
        url=None,
    )
    detail = f"byte {shard.damage.at_byte}: {shard.damage.why}"
    return sample_of(lost, Inspection(reason=Reason.SHARD_DAMAGED, detail=detail))


def web_text_of(texts: Mapping[str, bytes], text_field: str | None) -> str | None:
    """The text a sample carries: a field of its json, or its .txt, or its json's `caption`.

    Args:
        texts: the sample's text members by extension (`txt`, `json`).
        text_field: dotted path into the json; list positions are numbers.

    Returns:
        The text as it stands, or None if there is none.
    """
    if text_field is None and "txt" in texts:
        return _utf8(texts["txt"])
    value: object = _parsed(texts.get("json"))
    for part in (text_field or "caption").split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return _storable(value) if isinstance(value, str) else None


def url_of(texts: Mapping[str, bytes]) -> str | None:
    """The image's URL, if the sample's json has one."""
    parsed = _parsed(texts.get("json"))
    url = parsed.get("url") if isinstance(parsed, dict) else None
    return _storable(url) if isinstance(url, str) else None


def _parsed(payload: bytes | None) -> object:
    try:
        return json.loads(payload) if payload is not None else None
    except (ValueError, RecursionError):
        return None


def _utf8(payload: bytes) -> str:
    return _storable(payload.decode("utf-8", "replace"))


def _storable(text: str) -> str:
    """The text without what a table cannot hold: NUL, and the lone surrogates JSON may escape."""
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexJob:
    """Indexing of one shard."""

    recipe: Recipe
    shards: WebShards
    table: Table

    stage = STAGE

    @property
    def resources(self) -> Resources:
        """What each worker needs."""
        return resources_of(self.recipe.pool, self.recipe.pool.index)

    def committed(self) -> Mapping[int, ShardReport]:
        """Shards indexed by an earlier run."""
        return reports_of(STAGE, self.table)

    def build_worker(self) -> InspectWorker:
        """A worker with its decoding processes."""
        decoder = ImageDecoder(
            image_limits(self.recipe), num_processes=self.recipe.pool.decode_processes
        )
        return InspectWorker(decoder)

    def fetch(self, shard: int) -> Fetched[bytes | None]:
        """Scan the shard's tar; image bytes are read as the worker asks for them."""
        file = open_shard(self.shards.locate(shard))
        try:
            found = self._scan(shard, file)
        except BaseException:
            file.close()  # the error's traceback would keep it open
            raise
        return Fetched(
            inputs=LazyRows(found.found, lambda row: _image_bytes(file, row)), context=found
        )

    def quarantine(self, rejected: bytes | None, why: Quarantine) -> Inspection:
        """What stands for an image no decoding worker survives."""
        return Inspection(reason=why.reason, detail=why.detail)

    def commit(
        self, shard: int, fetched: Fetched[bytes | None], outputs: Sequence[Inspection]
    ) -> ShardReport:
        """Write the shard's samples, in order of key."""
        found = fetched.context
        assert isinstance(found, FoundShard)
        rows = [sample_of(f, i) for f, i in zip(found.found, outputs, strict=True)]
        if found.damage is not None:
            rows.append(damage_row(found, self.recipe.input.name))
        rows.sort(key=lambda row: row.key)
        payload = to_bytes(table_from(rows, Sample))
        commit = self.table.commit(
            shard,
            [NewFile(role="rows", folder="", suffix=".parquet", payload=payload, rows=len(rows))],
            rows_in=len(rows),
            kept=sum(row.reason is None for row in rows),
            dropped=drop_counts(row.reason for row in rows),
            input_sha256=found.sha256,
        )
        return report_of(STAGE, commit)

    def _scan(self, shard: int, file: ShardFile) -> FoundShard:
        members: list[Member] = []
        damage = None
        try:
            members.extend(file.members())
        except TarDamage as err:
            if isinstance(err, CompressedTar):  # whole, so neither fetched again nor salvaged
                raise ShardError(f"{file.url}: {err.why}") from err
            if self.recipe.input.damaged_shards == "refuse":
                raise ShardError(
                    f"{file.url}: damaged at byte {err.at_byte}: {err.why}; fetch it again, or set "
                    "input.damaged_shards: salvage to keep what comes before the damage"
                ) from err
            damage = Damage(at_byte=err.at_byte, why=err.why)
        found = [self._found(shard, file, sample) for sample in group_samples(members)]
        return FoundShard(found=found, sha256=file.sha256(), damage=damage, shard=shard)

    def _found(self, shard: int, file: ShardFile, sample: TarSample) -> Found:
        texts = {
            extension: file.read(
                offset=sample.members[extension].offset,
                num_bytes=min(sample.members[extension].num_bytes, MAX_TEXT_MEMBER_BYTES),
            )
            for extension in ("txt", "json")
            if extension in sample.members
        }
        images = [sample.members[e] for e in IMAGE_EXTENSIONS if e in sample.members]
        name = self.recipe.input.name
        return Found(
            key=sample_key(name, shard, sample.source_key, sample.occurrence),
            source_key=sample.source_key,
            shard=shard,
            image=images[0] if images else None,
            extensions=tuple(sample.members),
            web_text=web_text_of(texts, self.recipe.input.text_field),
            url=url_of(texts),
        )


def image_limits(recipe: Recipe) -> ImageLimits:
    """The recipe's limits, as the decoder takes them."""
    limits = recipe.index
    return ImageLimits(
        max_side_px=limits.max_side_px,
        min_side_px=limits.min_side_px,
        max_pixels=limits.max_pixels,
        max_bytes=limits.max_bytes,
        timeout_s=limits.timeout_s,
        memory_bytes=limits.memory_bytes,
    )


def _image_bytes(file: ShardFile, row: Found) -> bytes | None:
    if row.image is None:
        return None
    return file.read(offset=row.image.offset, num_bytes=row.image.num_bytes)
