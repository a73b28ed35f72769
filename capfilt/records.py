"""The rows of every table: one frozen dataclass per table, in the order of the loop.

The dataclasses are the schemas: `io.parquet` derives the Arrow schema of each table from them and
`capfilt schemas` exports them as JSON Schema into `schemas/`. Fields may be added within a schema
version, never renamed, retyped or removed.

Two conventions hold everywhere. `key` is capfilt's own identity of a sample: 32 hex digits, made
once by `index` (`lineage.sample_key`), unique in a run; the name a sample had in its source is
`source_key`. `reason` is null for a row that is good and otherwise one identifier of
`Reason`: a row that is lost to a stage is still a row of that stage's table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, get_args

SCHEMA_VERSION = 1

Int32 = Annotated[int, "int32"]
UInt64 = Annotated[int, "uint64"]
Float32 = Annotated[float, "float32"]
Vector = Annotated[tuple[float, ...], "float32_vector"]
Binary = Annotated[bytes, "binary"]

TextSource = Literal["web", "synthetic"]
"""Who wrote a text: the web page (T_w) or the captioner (T_s)."""

Phase = Literal["pretrain", "captioner", "filter"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The phases of a training, in order."""

DecidedBy = Literal["itm", "itc_low", "itc_high"]
"""What settled a text where the filter is a cascade: the ITM probability, or a cosine so low or so
high that ITM was not asked."""


class Reason(StrEnum):
    """Why a row does not go on. A closed list: reports and policies may rely on it."""

    # download: the URL gave no image
    URL_REFUSED = "url_refused"  # scheme or address that must not be fetched
    HTTP_ERROR = "http_error"  # the server answered with an error status
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_FAILED = "fetch_failed"  # connection refused, reset, truncated, too large ...
    OPTED_OUT = "opted_out"  # X-Robots-Tag: noai and relatives
    # index: the sample cannot be used
    IMAGE_MISSING = "image_missing"  # no member with an image extension
    IMAGE_UNREADABLE = "image_unreadable"  # broken, truncated, or no format we decode
    IMAGE_TOO_LARGE = "image_too_large"  # sides or pixels past the limit: decompression bombs
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_BYTES_TOO_MANY = "image_bytes_too_many"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_CRASHED = "decode_crashed"  # the decoding process died: memory limit, native fault
    SHARD_DAMAGED = "shard_damaged"  # the tar ends or breaks here; what follows is lost
    # any stage with a worker
    KILLED_WORKER = "killed_worker"  # the worker process died of this row, twice
    WORKER_ERROR = "worker_error"  # the worker raised on this row, twice
    BYTES_CHANGED = "bytes_changed"  # the image is not the one that was indexed
    # score: the text cannot be scored
    TEXT_MISSING = "text_missing"
    TEXT_EMPTY = "text_empty"
    SCORE_NOT_FINITE = "score_not_finite"
    # select: the policy's answers
    TEXT_TOO_LONG = "text_too_long"
    ITM_BELOW_MIN = "itm_below_min"
    ITC_CLEARLY_LOW = "itc_clearly_low"  # the cascade did not ask ITM: score.cascade.itc_cos_drop
    ITC_BELOW_MIN = "itc_below_min"
    NOT_BEST = "not_best"  # policy `best`: another text of the image fits better
    WEB_PREFERRED = "web_preferred"  # policy `web_first`: the web text passed
    # dedup: the image is not published
    NO_TEXT_KEPT = "no_text_kept"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_PERCEPTUAL = "duplicate_perceptual"
    DUPLICATE_EMBEDDING = "duplicate_embedding"
    # train: the pair is not learnt from
    HELD_OUT = "held_out"  # what is learnt is measured on it: train.held_out_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One URL of the list and what became of it. Table `downloads`."""

    source_key: str  # the sample's name in the shard: shard number and row, zero padded
    url: str
    web_text: str | None
    image_sha256: str | None  # of the bytes as served, never re-encoded
    num_bytes: int | None
    reason: str | None
    detail: str | None  # the fetcher's own words, shortened


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample found in a shard, readable or not. Table `samples`."""

    key: str
    source_key: str
    shard: Int32
    web_text: str | None
    url: str | None
    image_member: str | None  # name inside the tar
    image_offset: int | None  # of the image's first byte in the tar
    num_bytes: int | None
    image_sha256: str | None
    image_format: str | None  # Pillow's name: JPEG, PNG, WEBP, GIF ...
    width_px: Int32 | None
    height_px: Int32 | None
    phash: UInt64 | None  # 64-bit perceptual hash, io.images
    reason: str | None
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One synthetic text (T_s) of one image. Table `captions`."""

    key: str
    text_index: Int32  # 0 .. num_captions - 1
    text: str | None
    logprob: Float32 | None  # natural log of the model's probability of the text, prompt excluded
    num_tokens: Int32 | None  # generated tokens, end token included
    reason: str | None
    detail: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The filter's opinion of one text of one image. Table `scores`."""

    key: str
    text_source: TextSource
    text_index: Int32
    text: str | None
    logprob: Float32 | None  # the captioner's, for synthetic texts
    itm_prob: Float32 | None  # probability of "match", in [0, 1]; null where none was computed
    itc_cos: Float32 | None  # cosine of the image and text projections, in [-1, 1]
    num_tokens: Int32 | None  # before truncation, special tokens excluded
    reason: str | None
    detail: str | None
    decided_by: DecidedBy | None = None  # null without a cascade, and where there is no score
    audited: bool = False  # decided by ITC; ITM was computed all the same, to compare them


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVector:
    """The filter's unit vector of one image (ITC projection). Second file of table `scores`."""

    key: str
    vector: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Kept or dropped: one per score, in the same order. Table `verdicts`."""

    key: str
    text_source: TextSource
    text_index: Int32
    kept: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedText:
    """A kept text with everything known about it; nested in `Group` and `PublishedSample`."""

    text: str
    text_source: TextSource
    text_index: Int32
    itm_prob: Float32 | None  # null by a CLIP, and where a cascade did not ask for it
    itc_cos: Float32
    logprob: Float32 | None
    from_key: str  # the sample it was scored with: a duplicate's texts move to its representative


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Which image stands for this one. One row per readable sample. Table `groups`.

    Rows lie in the shard of the *representative*, so that publishing a shard reads no other shard.
    """

    key: str
    shard: Int32  # the shard the sample itself is in
    representative: str | None  # key; the sample's own if it is kept, null if it has no text
    similarity: Float32 | None  # to the representative, in the unit of `reason`'s tier; 1 if exact
    kept: bool
    reason: str | None
    texts: tuple[PublishedText, ...]  # a duplicate's kept web texts, on their way to its keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedImage:
    """An image as Hugging Face `datasets` stores it: original bytes and a file name."""

    bytes: Binary
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSample:
    """One image of the published dataset with all its kept texts. Table `dataset`."""

    key: str
    image: PublishedImage
    texts: tuple[PublishedText, ...]  # web texts first, then synthetic, then adopted ones
    width_px: Int32
    height_px: Int32
    image_sha256: str
    url: str | None
    source_key: str
    source_shard: Int32
    num_duplicates: Int32  # images this one stands for, itself not counted
    round: Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStep:
    """One logged step of training. Table `models`."""

    phase: Phase
    step: Int32
    loss: Float32
    itc_loss: Float32 | None
    itm_loss: Float32 | None
    lm_loss: Float32 | None
    itm_accuracy: Float32 | None
    learning_rate: Float32
    num_samples: int  # seen since the phase began
    grad_norm: Float32 | None = None  # before clipping
    temperature: Float32 | None = None  # of ITC, that the step's losses were computed with
    # Measured on held-out pairs after the step: the last of a phase, and each
    # train.held_out_every-th. Null after the others, and what the phase's model cannot do. Recall
    # with ITM ranking the candidates of ITC.
    text_recall_at_1: Float32 | None = None  # image to text
    text_recall_at_5: Float32 | None = None
    text_recall_at_10: Float32 | None = None
    image_recall_at_1: Float32 | None = None  # text to image
    image_recall_at_5: Float32 | None = None
    image_recall_at_10: Float32 | None = None
    cider_d: Float32 | None = None  # of greedy captions, in [0, 10]
    warning: str | None = None  # what looked wrong after this step, said once while it lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutCaption:
    """What a trained model writes for an image it has not learnt from. Table `held_out`.

    It is the second file of `models`, empty without `train.held_out_pairs`.
    """

    phase: Phase
    caption: str
    human_texts: tuple[str, ...]  # what people wrote of the image


TABLES: dict[str, type] = {
    "downloads": Download,
    "samples": Sample,
    "captions": Caption,
    "scores": Score,
    "vectors": ImageVector,
    "verdicts": Verdict,
    "groups": Group,
    "dataset": PublishedSample,
    "models": TrainStep,
    "held_out": HeldOutCaption,
}
"""Table name to row type; `vectors` is the second file of `scores`, not a folder, and `held_out`
that of `models`."""
