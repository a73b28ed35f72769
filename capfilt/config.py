"""The recipe: everything a run is told, read from YAML, checked at once, and frozen.

Sections stand in the order of the loop, one per stage. A section's fields are what can change a
byte of its table (they go into the plan), except in `pool` and `run`, which say where and how the
work is done. `load_recipe` reports every problem together, each with the field's path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from capfilt.errors import RecipeError
from capfilt.recipe_hints import known_fields
from capfilt.recipe_yaml import apply_overrides, parse_yaml

Probability = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
DType = Literal["float32", "bfloat16", "float16", "int8"]
Decoding = Literal["exact", "scaled", "fast", "fast_scaled"]
Name = Annotated[str, Field(min_length=1)]


def _number_or_auto(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """One line about a batch size, instead of one for each kind that it might have been."""
    try:
        return handler(value)
    except ValidationError as err:
        raise ValueError(f"found {_shown(value)}; a number from 2 to 4096, or auto") from err


BatchImages = Annotated[
    Annotated[int, Field(ge=2, le=4096)] | Literal["auto"], WrapValidator(_number_or_auto)
]

HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):[0-9]{1,5}")
DEVICE = re.compile(r"cpu(:[0-9]+)?|cuda(:[0-9]+)?|mps(:0)?")
PATCH_SIDE_PX = {"tiny": 8, "base": 16, "large": 16}
MAX_SHOWN_CHARS = 80
"""Of a value that is wrong, in the message about it."""


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,  # 1 for a float field becomes 1.0, as it does when it is set
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        # `index:` with all its fields commented out reads as null.
        return {} if value is None else value


class InputSection(Section):
    """The web data: shards that are there. Leave `shards` empty when `download` fetches them."""

    name: Name = "web"
    """Name of the data set; part of every sample's key."""
    shards: Name | None = None
    """WebDataset tars: a path or URL with {00000..00099} braces or * (local and object stores)."""
    text_field: str | None = None
    """Where the web text is: a dotted path into the sample's json such as `caption` or
    `captions.0`. Null: the .txt member, or else `caption` in the json."""
    damaged_shards: Literal["refuse", "salvage"] = "refuse"
    """A truncated or corrupt tar is refused as a whole, or salvaged up to the damage; what follows
    the damage is one `shard_damaged` row."""


class DownloadSection(Section):
    """URL list to WebDataset shards, by img2dataset, original bytes kept."""

    urls: Name | None = None
    """A Parquet or CSV file with one row per image. Null: nothing is downloaded."""
    url_column: str = "url"
    """Column that holds the URL."""
    text_column: str = "alt"
    """Column that holds the web text."""
    urls_per_shard: int = Field(2_000, ge=1, le=100_000)
    """URLs per shard: the unit of work, retry and commit. A shard is built in memory: 2000 images
    of 100 kB are 200 MB."""
    timeout_s: float = Field(10.0, gt=0, le=300)
    """Longest wait for one read; a whole fetch takes at most twice that."""
    retries: int = Field(1, ge=0, le=10)
    """Further tries after a failed fetch."""
    max_bytes: int = Field(20_000_000, ge=1)
    """Largest body accepted."""
    threads: int = Field(32, ge=1, le=1024)
    """Fetches at a time in one shard."""
    allowed_hosts: tuple[str, ...] = ()
    """host:port pairs outside the public internet that may be fetched; all others are refused."""
    user_agent_token: str = Field("capfilt", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """Name sent to servers, and matched against X-Robots-Tag rules for named robots."""

    @field_validator("allowed_hosts")
    @classmethod
    def _name_a_port(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not HOST_AND_PORT.fullmatch(host):
                raise ValueError(f"found {host!r}; write host:port, such as images.internal:8080")
        return hosts


class IndexSection(Section):
    """Limits on images; one past them becomes a row with a reason."""

    max_side_px: int = Field(8192, ge=1)
    """Longest side decoded."""
    min_side_px: int = Field(2, ge=1)
    """Shortest side kept. A one-pixel image is a tracker, not a picture."""
    max_pixels: int = Field(36_000_000, ge=1)
    """Most pixels decoded; larger ones are refused from the header alone."""
    max_bytes: int = Field(20_000_000, ge=1)
    """Largest file decoded."""
    timeout_s: float = Field(2.0, gt=0)
    """CPU seconds for one image: the kernel ends a decoding process that uses more. One that hangs
    without using any is killed after five times as long by the clock."""
    memory_bytes: int = Field(1_610_612_736, ge=268_435_456)
    """Address space of a decoding process. 1.5 GiB holds any image within the other limits."""


class CaptionSection(Section):
    """How the captioner samples (T_s). Defaults are the paper's nucleus sampling, sec. 4.1."""

    model: Name
    """Captioner: hub id or directory with config.json and model.safetensors: a BLIP, or any
    image-to-text model of transformers."""
    num_captions: int = Field(1, ge=1, le=64)
    """Synthetic texts per image. The paper uses 1."""
    prompt: str | None = None
    """What the text goes on from, or what a chat model is asked; not part of the stored text. Null:
    `a picture of ` for BLIP, which was finetuned to go on from it; for a chat model, to describe
    the image in one short sentence; for others none."""
    image_size_px: int | None = Field(None, ge=16)
    """Side of the square pictures shown to a model that takes any shape, such as a Qwen-VL. A model
    with a size of its own keeps that; a BLIP has one."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus mass (arXiv:2201.12086, sec. 4.1: p = 0.9)."""
    top_k: int = Field(0, ge=0)
    """Most probable tokens considered; 0 is no limit. The authors' code had a hidden 50."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Divides the logits before the nucleus is taken."""
    repetition_penalty: float = Field(1.0, ge=1, le=10)
    """Divides the logits of tokens already used. The authors' code had a hidden 1.1."""
    min_new_tokens: int = Field(1, ge=0)
    """Fewest generated tokens, prompt not counted."""
    max_new_tokens: int = Field(20, ge=1, le=500)
    """Most generated tokens, prompt not counted."""
    decode: Decoding = "exact"
    """How an image becomes a square. exact: decoded whole and resized by Pillow, as BLIP was
    evaluated. scaled: a JPEG of 3.8 times the square's side or more is decoded at 1/2, 1/4 or
    1/8. fast: exact but for a step or two of 255, with SIMD; needs capfilt[fast-decode].
    fast_scaled: both. Speeds and effects: docs/performance.md."""
    batch_images: BatchImages = 16
    """Images per batch; one for the whole run, because a batch's shape can change the last bit of a
    logit. auto: a probe of some seconds finds a size that is fast and fits into
    `pool.memory_share`, and the run keeps it."""
    dtype: DType = "float32"
    """Number format of the model: float32 on CPU, bfloat16 on GPU. int8 is for a BLIP on CPUs:
    about twice as fast as float32, with nearly the same answers."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> CaptionSection:
        if self.min_new_tokens >= self.max_new_tokens:  # the end token needs a place
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, not below max_new_tokens, "
                f"{self.max_new_tokens}; lower the first or raise the second"
            )
        return self


class CascadeSection(Section):
    """Whom ITM is asked of: the texts whose ITC cosine is neither clearly low nor clearly high."""

    itc_cos_drop: Cosine
    """Highest cosine at which a text counts as no match without ITM being asked."""
    itc_cos_keep: Cosine
    """Lowest cosine at which a text counts as a match without ITM being asked."""
    audit_share: Probability = 0.01
    """Share of the texts decided by ITC that ITM looks at all the same, to count how often the two
    disagree; drawn by seed and key. It changes no decision."""

    @model_validator(mode="after")
    def _leaves_a_band(self) -> CascadeSection:
        if self.itc_cos_drop >= self.itc_cos_keep:
            raise ValueError(
                f"itc_cos_drop is {self.itc_cos_drop}, not below itc_cos_keep, "
                f"{self.itc_cos_keep}; between them lie the texts that ITM decides"
            )
        return self


class ScoreSection(Section):
    """The filter: ITM probability and ITC cosine of every text; a CLIP gives the cosine alone."""

    model: Name
    """Filter: hub id or directory with config.json and model.safetensors: a BLIP, CLIP or
    SigLIP."""
    decode: Decoding = "exact"
    """How an image becomes a square; see caption.decode."""
    batch_images: BatchImages = 16
    """Images per batch, or auto; see caption.batch_images."""
    dtype: DType = "float32"
    """Number format of the model: float32 on CPU, bfloat16 on GPU. int8 is for a BLIP on CPUs:
    about twice as fast as float32, with nearly the same answers."""
    cascade: CascadeSection | None = None
    """Null: a BLIP computes ITM for every text. {itc_cos_drop: LOW, itc_cos_keep: HIGH} lets ITC
    decide texts whose cosine is at most LOW or at least HIGH; `audit_share: 0.01` of them are put
    to ITM all the same. LOW and HIGH belong to one model: see docs/performance.md."""


class SelectSection(Section):
    """The policy over scores. Pure: change it as often as you like, nothing is scored again."""

    policy: Literal["both", "best", "web_first"] = "both"
    """both: each text is judged apart (the paper's rule). best: of an image's passing texts the
    one with the highest ITM probability, or cosine if not all have one. web_first: synthetic
    texts only where no web text passes."""
    min_itm_prob: Probability | None = 0.5
    """Lowest ITM match probability of a web text. 0.5 is BLIP's rule: the head says "match". Null:
    not asked, as it must be of a filter that gives none."""
    min_itm_prob_synthetic: Probability | None = 0.5
    """The same for synthetic texts."""
    min_itc_cos: Cosine | None = None
    """Lowest ITC cosine of a web text. Null: not asked."""
    min_itc_cos_synthetic: Cosine | None = None
    """The same for synthetic texts."""
    max_text_chars: int = Field(1000, ge=1)
    """Longer texts are dropped: the filter reads only the first 35 tokens of them."""


class DedupSection(Section):
    """Near-duplicate images: which one stays."""

    exact: bool = True
    """Images with the same bytes are one image."""
    max_phash_distance: int = Field(6, ge=-1, le=32)
    """Most differing bits of the 64-bit perceptual hash; -1 turns this tier off. Of 24.5 million
    pairs of different photos, none was within 6."""
    min_cosine_perceptual: Cosine = 0.9
    """Vectors of images with close hashes must agree at least this much."""
    min_cosine: float = Field(0.97, ge=-1, le=1.01)
    """Lowest cosine of the filter's image vectors; 1.01 turns this tier off."""
    max_phash_distance_embedding: int = Field(16, ge=0, le=64)
    """Most differing bits of the hash between images with close vectors. The vectors know what a
    picture means: without this bound, two pictures of one kind of scene count as copies. Hashes of
    unrelated pictures differ in 32 bits, give or take 4. 64 asks nothing."""


class PublishSection(Section):
    """Parquet and WebDataset files of the kept images and texts."""

    webdataset: bool = True
    """Also write tars beside the Parquet files."""
    license: str | None = None
    """License named in the dataset card."""


class GuardSection(Section):
    """When a round has collapsed and is not trained on: its whole 95 % interval is past a limit."""

    min_captions: int = Field(100, ge=1)
    """Fewest captions a round is judged by. Of fewer, the commonest caption is often by chance a
    large share."""
    max_commonest_caption_share: Probability | None = 0.1
    """Largest share of the commonest caption among all that were written. It is 0.01 in the example
    results of the COCO caption evaluation, as in the miniature web; ten times that tells nothing
    of most images it is said of. Null: not asked."""
    max_noise_ratio: Probability | None = 0.75
    """Largest share of captions the filter rejects. The paper saw 0.25 (arXiv:2201.12086, table 2);
    at three times that, captioner or filter does not do its work. Null: not asked."""
    min_vocabulary_kept: Probability | None = 0.5
    """Fewest distinct words in a round's captions, as a share of the round before. Both caption the
    same images, so a half is lost by a poorer captioner alone. Null: not asked."""


class MixingSection(Section):
    """How often an epoch of pre-training takes the pairs of each source."""

    web: float = Field(1.0, ge=0, le=100)
    """Times an epoch takes each published pair with a web text. 1 takes the dataset as published;
    0.5 takes one half in an epoch and the other in the next."""
    synthetic: float = Field(1.0, ge=0, le=100)
    """The same of published pairs with a synthetic text."""
    human: float = Field(1.0, ge=0, le=100)
    """The same of human pairs. More than 1 helps where they are few beside the web's."""


class TrainSection(Section):
    """The next BLIP: pre-trained from scratch on all pairs, then finetuned on human pairs twice."""

    human: Name | None = None
    """Human pairs (T_h), pattern as input.shards: WebDataset tars, or Parquet files (.parquet) with
    the bytes of images in column `image`. Null: train is skipped."""
    human_text_field: str | None = None
    """As input.text_field, for the human pairs. Of a Parquet file: its column, strings or lists of
    them; null is `caption`."""
    held_out_pairs: int = Field(0, ge=0)
    """Human pairs, at least so many, that nothing is learnt from: all texts of images chosen by a
    hash of their bytes, the same in every round. Recall and captions are measured on them."""
    held_out_every: int | None = Field(None, ge=1)
    """Steps between two such measurements; the first worker makes them while the others wait.
    Null: at the end of a phase alone."""
    mixing: MixingSection = MixingSection()
    """How often an epoch of pre-training takes the pairs of each source."""
    size: Literal["tiny", "base", "large"] = "base"
    """Architecture: tiny (the miniature's), base (ViT-B/16) or large (ViT-L/16)."""
    start: Name | None = None
    """Model directory or hub id whose architecture and vision encoder pre-training starts from, in
    place of `size`; its text side starts anew. The paper's vision encoder comes from ImageNet
    (sec. 4.1). Null: all weights start at random."""
    continue_from_previous: bool = False
    """A round after the first pre-trains from scratch too, as the paper found to be as good or
    better (arXiv:2201.12086, table 13). True: it goes on from the weights the round before ended
    with, with a new schedule."""
    image_size_px: int = Field(224, ge=16)
    """Pixels per side in pre-training (arXiv:2201.12086, sec. 4.1: 224)."""
    finetune_image_size_px: int | None = Field(None, ge=16)
    """Pixels per side in finetuning; the paper uses 384. Null: as in pre-training."""
    tokenizer: Name | None = None
    """Hub id or directory of the tokenizer. Null: the captioner's."""
    batch_size: int = Field(64, ge=2)
    """Pairs per step, of all workers together; a multiple of pool.train.workers."""
    pretrain_steps: int = Field(10_000, ge=1)
    """Optimizer steps of pre-training (ITC + ITM + LM)."""
    finetune_steps: int = Field(2_000, ge=1)
    """Optimizer steps of each finetuning on the human pairs."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak rate of pre-training; 3e-4 for ViT-B (arXiv:2201.12086, sec. 4.1)."""
    finetune_learning_rate: float = Field(1e-5, gt=0)
    """Peak rate of finetuning (arXiv:2201.12086, appendix A); it falls to 0 on half a cosine."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the rate of pre-training falls. cosine: to 1e-6 over pretrain_steps. step: to nine tenths
    with each epoch, as in BLIP's code; an epoch is pairs / batch_size steps."""
    warmup_steps: int = Field(3000, ge=0)
    """Linear warm-up of pre-training, at most half of it; with schedule: step at most an epoch, as
    in BLIP's code."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's (arXiv:2201.12086, sec. 4.1)."""
    min_crop_area: float = Field(0.2, gt=0, le=1)
    """Smallest part of an image a training crop keeps in pre-training; 1 squashes whole images."""
    finetune_min_crop_area: float = Field(0.5, gt=0, le=1)
    """The same in finetuning."""
    flip_probability: Probability = 0.5
    """Chance that a training image is mirrored. 0 where left and right matter."""
    decode: Decoding = "exact"
    """How the crop of a training image is decoded and scaled; see caption.decode. scaled: a JPEG
    is decoded at part of its size where the crop keeps 1.9 times the square's side."""
    num_augmentations: int = Field(2, ge=0, le=10)
    """RandAugment operations drawn for a training image, each applied with an even chance; 2 in
    BLIP's code. 0: crops and mirroring alone."""
    queue_size: int = Field(57_600, ge=1)
    """Momentum features kept for ITC; a multiple of batch_size."""
    ramp_steps: int = Field(1000, ge=1)
    """Steps of pre-training in which the weight of soft ITC targets grows to 0.4: two epochs in
    BLIP's code. The filter's finetuning takes a sixth of finetune_steps: one epoch of six there."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of the `models` table."""
    num_threads: int = Field(1, ge=1)
    """CPU threads of the training process; part of the plan: it can change the last bit."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Number format of the large products; weights, optimizer and losses stay float32. bfloat16 is
    for GPUs: twice as fast or more, and half the memory of activations."""
    accumulate_steps: int = Field(1, ge=1)
    """Parts a batch is computed in, one after the other, before its optimizer step: memory for
    time. The negatives of a pair are those of its own part and the queue."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Longest gradient, L2 over all parameters; longer ones are scaled down to it. Null does not
    clip, as BLIP's code."""
    compile: bool = False
    """Have torch.compile fuse the image encoder's layers: minutes at the start, faster steps after
    that on a GPU."""
    recompute_layers: int = Field(0, ge=0)
    """Last layers of each stack whose activations are computed again going back instead of kept:
    time for memory, as the vit_ckpt_layer of BLIP's code."""
    tensorboard: bool = False
    """Write TensorBoard's files beside the JSON lines in <run>/events/train. Changes nothing in
    the results; needs capfilt[tensorboard]."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between two records of the training's progress, at most; a killed training goes on
    from the newest. Changes nothing in the results."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two such records. Null: by the clock alone."""
    checkpoints_kept: int = Field(2, ge=1)
    """How many of them are kept; should the newest be damaged, the one before it serves."""

    @model_validator(mode="after")
    def _patches_fill_images(self) -> TrainSection:
        # The patches of another model to start from are not known here.
        patch = PATCH_SIDE_PX[self.size] if self.start is None else 1
        for field in ("image_size_px", "finetune_image_size_px"):
            side = getattr(self, field) or patch
            if side % patch:
                raise ValueError(
                    f"{field} is {side}, no multiple of {patch}, the side of a patch of the "
                    f"{self.size} model; {side - side % patch} would be"
                )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_measure_on(self) -> TrainSection:
        if self.held_out_every is not None and self.held_out_pairs == 0:
            raise ValueError(
                f"held_out_every is {self.held_out_every}, and held_out_pairs is 0: nothing would "
                "be measured; set how many pairs to hold out"
            )
        return self

    @model_validator(mode="after")
    def _queue_fits(self) -> TrainSection:
        if self.queue_size % self.batch_size:
            raise ValueError(
                f"queue_size is {self.queue_size}, no multiple of batch_size, {self.batch_size}; "
                f"{self.queue_size - self.queue_size % self.batch_size or self.batch_size} would be"
            )
        return self


class WorkersSection(Section):
    """What one stage's workers get."""

    workers: int = Field(1, ge=1)
    """Worker processes of the stage."""
    cpus: float = Field(1, ge=0)
    """CPU cores reserved per worker; may be a fraction."""
    gpus: float = Field(0, ge=0)
    """GPUs reserved per worker; may be a fraction."""
    threads: int = Field(1, ge=1)
    """CPU threads the model may use in one worker."""


class LightWorkersSection(WorkersSection):
    """What the workers of a stage get that waits more than it works."""

    cpus: float = Field(0.5, ge=0)
    """CPU cores reserved per worker; may be a fraction."""


class PoolSection(Section):
    """Where the work is done. Changes nothing in the results."""

    kind: Literal["ray", "local"] = "ray"
    """ray: actors on a cluster, or on this machine. local: this process."""
    address: str | None = None
    """Ray cluster to join; null joins the one a job runs in, or else starts one here."""
    device: str = "cpu"
    """Device of the models: cpu, cuda, cuda:1 ... or mps."""
    memory_share: float = Field(0.8, gt=0, le=1)
    """Share of a GPU's memory, or without one of the machine's, that workers may fill where
    batch_images is auto. The workers on it share alike; the rest is for what comes and goes."""
    decode_processes: int = Field(1, ge=1, le=64)
    """Image-decoding processes beside each worker."""
    shard_timeout_s: float = Field(3600, gt=0)
    """A shard that takes longer is taken from its worker. `dedup` and `train` take as long as they
    take: their one piece of work is the whole round."""
    trace: Name | None = None
    """Folder on the worker's machine for one trace per worker of `caption` and `score`: when it
    read, decoded, waited, computed and committed. Open them in chrome://tracing or Perfetto
    (ui.perfetto.dev); about 1 kB per batch. Null: none."""
    download: WorkersSection = WorkersSection()
    """Workers of `download`."""
    index: WorkersSection = WorkersSection()
    """Workers of `index`."""
    caption: WorkersSection = WorkersSection()
    """Workers of `caption`."""
    score: WorkersSection = WorkersSection()
    """Workers of `score`."""
    select: LightWorkersSection = LightWorkersSection()
    """Workers of `select`."""
    dedup: WorkersSection = WorkersSection()
    """Workers of `dedup` (always one)."""
    publish: WorkersSection = WorkersSection()
    """Workers of `publish`."""
    train: WorkersSection = WorkersSection()
    """Workers of `train`. More than one needs `kind: ray`: they train one model together."""

    @field_validator("device")
    @classmethod
    def _name_a_device(cls, device: str) -> str:
        if not DEVICE.fullmatch(device):
            raise ValueError(f"found {device!r}; write cpu, cuda, cuda:1 or mps")
        return device


class Recipe(Section):
    """A whole run."""

    run: Name
    """Folder of the run: a path, or a file:// or memory:// URL."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all sampling. Two rounds never share noise."""
    rounds: int = Field(1, ge=1, le=100)
    """Bootstrap rounds; round r > 0 captions and scores with the models round r - 1 trained."""
    on_changed_settings: Literal["refuse", "recompute"] = "refuse"
    """What to do when download, index, caption, score or train was run here with other settings.
    recompute does it again beside the old results; refuse says what is different and stops."""
    input: InputSection = InputSection()
    """The web data."""
    download: DownloadSection = DownloadSection()
    """Fetching it."""
    index: IndexSection = IndexSection()
    """Image limits."""
    caption: CaptionSection
    """The captioner."""
    score: ScoreSection
    """The filter."""
    select: SelectSection = SelectSection()
    """The policy."""
    dedup: DedupSection = DedupSection()
    """Near-duplicates."""
    publish: PublishSection = PublishSection()
    """The published files."""
    guard: GuardSection = GuardSection()
    """When a round has collapsed."""
    train: TrainSection = TrainSection()
    """The next models."""
    pool: PoolSection = PoolSection()
    """Where the work is done."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Recipe:
        if (self.input.shards is None) == (self.download.urls is None):
            found = "neither is" if self.input.shards is None else "both are"
            raise ValueError(f"give input.shards or download.urls, one of the two; {found} set")
        return self

    @model_validator(mode="after")
    def _rounds_numbers_on_cpus(self) -> Recipe:
        dtypes = {"caption": self.caption.dtype, "score": self.score.dtype}
        rounded = [f"{stage}.dtype" for stage, dtype in dtypes.items() if dtype == "int8"]
        if rounded and not re.fullmatch("cpu(:[0-9]+)?", self.pool.device):
            raise ValueError(
                f"{rounded[0]} is int8, which is for CPUs, and pool.device is "
                f"{self.pool.device!r}; set {rounded[0]}: bfloat16, or pool.device: cpu"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_batches(self) -> Recipe:
        workers, parts = self.pool.train.workers, self.train.accumulate_steps
        if self.train.human is None:
            return self
        if workers > 1 and self.pool.kind != "ray":
            raise ValueError(
                f"pool.train.workers is {workers}, and they train together only on Ray; set "
                "pool.kind: ray, or pool.train.workers: 1"
            )
        if self.train.batch_size % workers:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, no multiple of pool.train.workers, "
                f"{workers}"
            )
        if self.train.batch_size // workers < 2 * parts:
            raise ValueError(
                f"train.accumulate_steps is {parts}, and a worker has "
                f"{self.train.batch_size // workers} pairs of a batch; each part needs 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _can_go_round(self) -> Recipe:
        if self.rounds > 1 and self.train.human is None:
            raise ValueError(
                f"rounds is {self.rounds}, and the second needs models trained in the first; "
                "set train.human to shards of human pairs, or rounds: 1"
            )
        return self


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: YAML file.
        overrides: `section.key=value` strings; the value is read as YAML.

    Returns:
        The checked recipe.

    Raises:
        RecipeError: with every problem found; rules over several fields of a section are looked at
            when each of its fields is right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise RecipeError(path, ["no such file; `capfilt init` writes a recipe"]) from err
    except OSError as err:
        raise RecipeError(path, [f"cannot be read: {err.strerror}"]) from err
    except UnicodeDecodeError as err:
        raise RecipeError(path, [f"is not UTF-8 text: byte {err.start}"]) from err
    try:
        values = parse_yaml(text)
    except ValueError as err:
        raise RecipeError(path, [f"is not YAML: {err}"]) from err
    if not isinstance(values, dict):
        raise RecipeError(path, ["must be a mapping of sections; `capfilt init` writes one"])
    return check_recipe(path, apply_overrides(path, values, overrides))


def check_recipe(source: str, values: Mapping[str, object]) -> Recipe:
    """Check plain data against the recipe's rules.

    Raises:
        RecipeError: as `load_recipe`.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as err:
        raise RecipeError(source, [_problem_line(dict(p)) for p in err.errors()]) from err


def _problem_line(problem: Mapping[str, object]) -> str:
    location = problem["loc"]
    assert isinstance(location, tuple)
    field = ".".join(str(part) for part in location) or "recipe"
    found = _shown(problem.get("input"))
    match problem["type"]:
        case "extra_forbidden":
            return f"{field}: unknown field; {known_fields(Recipe, location)}"
        case "missing":
            return f"{field}: missing, and it has no default"
        case "value_error":
            return f"{field}: {str(problem['msg']).removeprefix('Value error, ')}"
        case "model_type" | "model_attributes_type":
            return f"{field}: found {found}; a section of fields should be here"
        case "tuple_type":
            return f"{field}: found {found}; a list should be here, such as [a, b]"
        case _:
            return f"{field}: found {found}; {_lower_first(str(problem['msg']))}"


def _shown(value: object) -> str:
    """A value as YAML has it where Python differs, and not too much of it."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
