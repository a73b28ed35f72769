"""What `stage_throughput.py` runs on: shards of JPEGs, models, a recipe, and bare model calls."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from capfilt.config import Recipe, check_recipe
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.tar import write_tar
from capfilt.stages import caption, score
from capfilt.stages.sampling import sampling_of
from capfilt.stages.tables import open_tables
from capfilt.workers.batches import decoded_batches
from capfilt.workers.caption import load_captioner
from capfilt.workers.score import load_scorer
from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import save_model
from capfilt_blip.config import BlipConfig, TextConfig, VisionConfig
from capfilt_blip.tokenizer import Tokenizer

BATCH_IMAGES = 8
SHARD_IMAGES = 2 * BATCH_IMAGES
SHARDS_PER_WORKER = 4
STAGES = {"caption": caption, "score": score}


def recipe_of(folder: Path, *, run: str, num_workers: int) -> Recipe:
    """A recipe over as many shards as the workers are to have."""
    last = SHARDS_PER_WORKER * num_workers - 1
    options = {"batch_images": BATCH_IMAGES}
    values = {
        "run": str(folder / run),
        "input": {"shards": f"{folder}/web/{{00000..{last:05d}}}.tar"},
        # Captions are kept from ending early, so that each costs the same.
        "caption": {"model": str(folder / "captioner"), "min_new_tokens": 19, **options},
        "score": {"model": str(folder / "filter"), **options},
        "pool": {name: {"workers": num_workers} for name in ("caption", "score")},
    }
    return check_recipe("stage_throughput", values)


def write_web(folder: Path, *, shards: int) -> None:
    """Tars of JPEGs, about as dense as photographs, each with a text."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(shards):
        members = [
            member
            for i in range(SHARD_IMAGES)
            for member in ((f"{i}.jpg", made_image(rng)), (f"{i}.txt", b"w7 w11 w13 w17 w19 w23"))
        ]
        (folder / f"{shard:05d}.tar").write_bytes(write_tar(members))


def made_image(rng: np.random.Generator) -> bytes:
    """A JPEG of noise at three scales."""
    total = np.zeros((480, 640, 3))
    for cells in (4, 40, 240):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 3
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def write_models(folder: Path, *, size: str) -> None:
    """A captioner and a filter of random weights."""
    torch.manual_seed(0)
    config, tokenizer = config_of(size)
    save_model(folder / "captioner", model=BlipCaptioner(config), tokenizer=tokenizer)
    save_model(folder / "filter", model=BlipMatcher(config), tokenizer=tokenizer)


def config_of(size: str) -> tuple[BlipConfig, Tokenizer]:
    """The sizes, and a tokenizer with as many tokens. mid: ViT-S at 224 px, half a BERT beside."""
    if size == "base":
        config = BlipConfig.base()
    elif size == "tiny":
        config = BlipConfig.tiny(vocab_size=1_000)
    else:
        config = BlipConfig(
            vision=VisionConfig(image_size_px=224, width=384, num_heads=6, mlp_width=1536),
            text=TextConfig(width=384, depth=6, num_heads=6, mlp_width=1536, image_width=384),
        )
    special = {"[PAD]": config.pad_token_id, "[CLS]": config.cls_token_id}
    special |= {"[SEP]": config.sep_token_id, "[UNK]": config.cls_token_id - 1}
    special |= {"[MASK]": config.sep_token_id + 1}
    special |= {"[DEC]": config.bos_token_id, "[ENC]": config.enc_token_id}
    words = {f"w{i}": i for i in range(config.text.vocab_size) if i not in special.values()}
    return config, Tokenizer(special | words)


def bare_calls(recipe: Recipe, stage: str, shards: Sequence[int]) -> Iterator[Callable[[], object]]:
    """The model's call for each shard, everything it takes in memory."""
    job = STAGES[stage].job(recipe, open_tables(recipe, 0))
    call, side_px = captioning(recipe) if stage == "caption" else scoring(recipe)
    with ImageDecoder(ImageLimits()) as decoder:
        for shard in shards:
            for batch in decoded_batches(
                job.fetch(shard).inputs,
                lambda row: row if stage == "caption" else row.read_image(),
                decoder,
                batch_images=SHARD_IMAGES,
                side_px=side_px,
            ):
                rows, images = batch.readable()
                yield partial(call, rows, images)


Call = Callable[[Sequence[Any], Any], object]


def captioning(recipe: Recipe) -> tuple[Call, int]:
    """What captions rows and their pixels, and the side of the images."""
    sampling = sampling_of(recipe, round_number=0, batch_images=BATCH_IMAGES)
    model = load_captioner(
        Path(recipe.caption.model),
        device="cpu",
        dtype="float32",
        num_threads=1,
        image_size_px=None,
        sampling=sampling,
    )
    return (
        lambda rows, pixels: model.caption(pixels, keys=[r.key for r in rows], sampling=sampling),
        model.image_size_px,
    )


def scoring(recipe: Recipe) -> tuple[Call, int]:
    """What scores rows and their pixels, and the side of the images."""
    model = load_scorer(Path(recipe.score.model), device="cpu", dtype="float32", num_threads=1)

    def call(rows: Sequence[Any], pixels: Any) -> object:
        texts = [[text.text for text in row.texts_with_words()] for row in rows]
        return model.score(pixels, texts, batch_size=BATCH_IMAGES)

    return call, model.image_size_px


def num_shards(recipe: Recipe) -> int:
    """Of the web of a recipe."""
    return SHARDS_PER_WORKER * recipe.pool.caption.workers
