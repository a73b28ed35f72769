"""One pre-training twice: our engine, and a plain loop over transformers, from the same weights.

Texts are as long as alt texts are; images are noise, as they change nothing about the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import config_of, made_lively
from benchmarks.train_plain import Choose, Learning, Past, PlainBlip, PlainTraining, drawn
from capfilt_blip.blip import Blip
from capfilt_blip.checkpoint import save_model
from capfilt_blip.config import BlipConfig
from capfilt_blip.losses import hard_negatives
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.draws import key_of, uniform_draws
from capfilt_blip.train.engine import TextImageEngine
from capfilt_blip.train.optimizer import OptimizerSettings
from capfilt_blip.train.pretraining import pretraining
from capfilt_blip.train.settings import EngineSettings, PretrainSettings

SIDE_PX = 224
"""Of images in pre-training (arXiv:2201.12086, sec. 4.1)."""
LEARNING = Learning()
CHECKED = Learning(momentum=0.5)
"""In two steps at 0.995 nobody would see whether the slow encoders moved."""
MAX_DIFFERENCE = 1e-4
"""Between the losses of both sides, in float32, without dropout."""
NUM_CHECKED_ROWS, NUM_CHECKED_STEPS = 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """One training, twice."""

    ours: TextImageEngine
    theirs: PlainTraining


def training_pair(
    config: BlipConfig,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    device: str = "cpu",
    learning: Learning = LEARNING,
    choose: Choose = drawn,
) -> TrainingPair:
    """Make a model of random weights, and a training of it on each side.

    Args:
        config: its dropout is that of both.
        tokenizer: of both.
        folder: for the weights on their way to transformers.
        device: of both.
        learning: of both.
        choose: draws the hard negatives of theirs.
    """
    model = made_lively(Blip(config))
    save_model(folder / "captioner", model=model.captioning(), tokenizer=tokenizer)
    save_model(folder / "filter", model=model.matching(), tokenizer=tokenizer)
    past = random_past(config, learning.num_past)
    peer = PlainBlip(folder, label_smoothing=learning.label_smoothing).to(device)
    theirs = PlainTraining(
        peer, config=config, tokenizer=tokenizer, past=past, learning=learning, choose=choose
    )
    engine = EngineSettings(autocast=learning.autocast)
    ours = training_of(model.to(device), tokenizer, learning=learning, engine=engine, past=past)
    return TrainingPair(ours=ours, theirs=theirs)


def training_of(
    model: Blip, tokenizer: Tokenizer, *, learning: Learning, engine: EngineSettings, past: Past
) -> TextImageEngine:
    """Make our side; its queue holds the past."""
    settings = PretrainSettings(
        optimizer=OptimizerSettings(
            learning_rate=lambda step: learning.learning_rate, weight_decay=learning.weight_decay
        ),
        contrast=ContrastSettings(
            momentum=learning.momentum,
            queue_size=learning.queue_size,
            soft_weight=learning.soft_weight,
            num_ramp_steps=learning.num_ramp_steps,
        ),
        max_tokens=learning.max_tokens,
        label_smoothing=learning.label_smoothing,
    )
    training = pretraining(model, tokenizer=tokenizer, settings=settings, engine=engine)
    if len(past["queue.image_ids"]):  # a state is copied several times, and this is a large one
        training.load_state(training.state() | past)
    return training


def random_past(config: BlipConfig, num_pairs: int) -> Past:
    """Make the vectors of earlier pairs; none of them is a pair of a later batch."""
    images, texts = F.normalize(torch.randn(2, num_pairs, config.shared_width), dim=-1)
    ids = -1 - torch.arange(num_pairs)
    return {
        "queue.image_vectors": images,
        "queue.text_vectors": texts,
        "queue.image_ids": ids,
        "queue.text_ids": ids.clone(),
    }


def largest_difference(size: str, folder: Path, *, device: str = "cpu") -> float:
    """Compare LM, ITC and ITM of both sides, in float32, without dropout, with the same negatives.

    The losses of the second step agree only if gradients and updates of the first one did.

    Args:
        size: of `training_config`.
        folder: for the weights on their way to transformers.
        device: of both.

    Raises:
        ValueError: they differ.
    """
    config, tokenizer = training_config(size, dropout=0.0)
    pair = training_pair(
        config, tokenizer, folder, device=device, learning=CHECKED, choose=as_our_training
    )
    batches = [random_batch(config, NUM_CHECKED_ROWS, seed=s) for s in range(NUM_CHECKED_STEPS)]
    # Else the patches of transformers, a convolution, would be rounded to 10 bits on a GPU.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return max(_difference(pair, batch) for batch in batches)


def _difference(pair: TrainingPair, batch: TextImageBatch) -> float:
    ours, theirs = pair.ours.step(batch), pair.theirs.step(batch)
    mine = {"lm": ours.lm_loss, "itc": ours.itc_loss, "itm": ours.itm_loss}
    apart = {name: abs((mine[name] or 0.0) - loss) for name, loss in theirs.items()}
    if not max(apart.values()) <= MAX_DIFFERENCE:
        raise ValueError(f"step {ours.step}: losses are {mine} and {dict(theirs)}")
    return max(apart.values())


def as_our_training(similarity: Tensor, *, step: int, side: int) -> Tensor:
    """Draw the wrong partners that a training of seed 0 draws; see `Choose`."""
    draws = uniform_draws(key_of("negatives", 0, step, 0), num_draws=len(similarity))
    known = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return hard_negatives(similarity, known, draws=draws[side].to(similarity.device))[0]


def training_config(size: str, *, dropout: float | None = None) -> tuple[BlipConfig, Tokenizer]:
    """Give the sizes and the tokenizer of `peers.config_of`, the paper's two sizes at 224 px.

    Args:
        size: base, large, tiny or small.
        dropout: of the text stack; None leaves the paper's.
    """
    config, tokenizer = config_of(size)
    if size in ("base", "large"):
        config = config.at_image_size(SIDE_PX)
    if dropout is not None:
        text = dataclasses.replace(config.text, dropout=dropout)
        config = dataclasses.replace(config, text=text)
    return config, tokenizer


def random_batch(config: BlipConfig, num_rows: int, *, seed: int) -> TextImageBatch:
    """Make images of noise, and texts as long as alt texts are: 13 tokens, few of them 30."""
    generator = torch.Generator().manual_seed(seed)
    side, vocabulary = config.vision.image_size_px, config.text.vocab_size
    lengths = (2.3 + 0.4 * torch.randn(num_rows, generator=generator)).exp().round().clamp(3, 28)
    shape = (num_rows, side, side, 3)
    return TextImageBatch(
        images=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
        texts=[_text(int(length), vocabulary, generator) for length in lengths],
    )


def _text(num_words: int, vocabulary: int, generator: torch.Generator) -> str:
    # The upper half of `config_of`'s vocabulary, but for its end, has no special token.
    words = torch.randint(vocabulary // 2, vocabulary - 10, (num_words,), generator=generator)
    return " ".join(f"w{index}" for index in words.tolist())


def first_rows(batch: TextImageBatch, num_rows: int) -> TextImageBatch:
    """Give the first rows of a batch."""
    return TextImageBatch(images=batch.images[:num_rows], texts=batch.texts[:num_rows])


def mean_tokens(texts: Sequence[str], tokenizer: Tokenizer) -> int:
    """Mean length of texts, special tokens included, rounded."""
    mask = tokenizer.encode(texts, first="cls", max_tokens=LEARNING.max_tokens).mask
    return round(float(mask.sum() / len(mask)))
