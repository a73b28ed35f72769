"""The filter's image vectors: near for a copy of a picture, apart for one much like it.

From ITC alone a picture, its mirror image and a sibling of which one thing has moved have almost
the same vector, and dedup would take one for a copy of the other. Here only the two projections of
ITC learn: ITC itself on full descriptions, and pictures against pictures. What the encoders say,
and so ITM, stays as it is.

    G groups, B pictures, S image side in pixels, D width, E shared width.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from capfilt.miniature.grammar import full_description
from capfilt.miniature.teach.lessons import GROUP_SIZE, Lessons
from capfilt.miniature.world import Scene, mirrored
from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.optimizer import CosineSchedule, Optimizer, OptimizerSettings
from capfilt_blip.transforms import normalise

logger = logging.getLogger(__name__)

_NUM_GROUPS = 6_000
_GROUPS_PER_STEP = 32
_MAX_TOKENS = 35
_TEMPERATURE = 0.07
_MAX_COSINE = 0.85  # of pictures that show different scenes
_PUSH, _PULL = 100.0, 30.0
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Features:
    """What the frozen encoders say, by groups: each (G, 4, D) but the last."""

    pictures: Tensor
    copies: Tensor
    mirror_images: Tensor
    texts: Tensor
    is_lopsided: Tensor  # (G, 4) bool, True where the mirror image shows another scene


def teach_vectors(
    matcher: BlipMatcher,
    lessons: Lessons,
    *,
    tokenizer: Tokenizer,
    num_steps: int,
    rng: random.Random,
) -> None:
    """Train the two ITC projections of a matcher, in place.

    Args:
        matcher: finetuned; its encoders are not touched.
        lessons: the first 6,000 groups are used.
        tokenizer: the matcher's.
        num_steps: of 32 groups each, a few milliseconds long.
        rng: of copies, texts and order.
    """
    features = _features(matcher.eval(), lessons, tokenizer=tokenizer, rng=rng)
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    schedule = CosineSchedule(peak=2e-3, num_steps=num_steps)
    optimizer = Optimizer(
        [*matcher.vision_proj.parameters(), *matcher.text_proj.parameters()],
        OptimizerSettings(learning_rate=schedule, weight_decay=0.01),
    )
    for step in range(num_steps):
        shape = (_GROUPS_PER_STEP,)
        groups = torch.randint(len(features.pictures), shape, generator=generator)
        loss = _loss(matcher, features, groups)
        optimizer.step(loss, step=step)
        if (step + 1) % 1000 == 0:
            logger.info("vectors, step %d: loss %.3f", step + 1, float(loss.detach()))


def _loss(matcher: BlipMatcher, features: _Features, groups: Tensor) -> Tensor:
    pictures, copies, mirror_images = (
        F.normalize(matcher.vision_proj(tokens[groups]), dim=-1)  # (G, 4, E)
        for tokens in (features.pictures, features.copies, features.mirror_images)
    )
    texts = F.normalize(matcher.text_proj(features.texts[groups]), dim=-1)
    lopsided = features.is_lopsided[groups]
    return (
        _itc(pictures.flatten(0, 1), texts.flatten(0, 1))
        + _picture_contrast(pictures, copies, mirror_images, lopsided)
        + _PUSH * _too_near(pictures, mirror_images, lopsided)
        + _PULL * (1 - (pictures * copies).sum(-1)).mean()
    )


def _itc(pictures: Tensor, texts: Tensor) -> Tensor:
    """Contrast (B, E) pictures with (B, E) texts, in the batch."""
    similarity = pictures @ texts.T / _TEMPERATURE
    own = torch.arange(len(similarity))
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def _picture_contrast(
    pictures: Tensor, copies: Tensor, mirror_images: Tensor, lopsided: Tensor
) -> Tensor:
    """A picture must be nearer to its copy than to all other copies and all mirror images."""
    candidates = torch.cat([copies.flatten(0, 1), mirror_images.flatten(0, 1)])
    similarity = pictures.flatten(0, 1) @ candidates.T / _TEMPERATURE  # (B, 2 B)
    own = torch.arange(len(similarity))
    same_scene = torch.zeros_like(similarity, dtype=torch.bool)
    same_scene[own, len(own) + own] = ~lopsided.flatten()
    return F.cross_entropy(similarity.masked_fill(same_scene, -1e4), own)


def _too_near(pictures: Tensor, mirror_images: Tensor, lopsided: Tensor) -> Tensor:
    """Mean square of how far siblings and mirror images are beyond the cosine allowed."""
    siblings = pictures @ pictures.transpose(1, 2)  # (G, 4, 4)
    others = siblings[:, ~torch.eye(GROUP_SIZE, dtype=torch.bool)].flatten()
    mirrors = (pictures * mirror_images).sum(-1)[lopsided]
    return F.relu(torch.cat([others, mirrors]) - _MAX_COSINE).pow(2).mean()


def _features(
    matcher: BlipMatcher, lessons: Lessons, *, tokenizer: Tokenizer, rng: random.Random
) -> _Features:
    scenes = lessons.scenes[: _NUM_GROUPS * GROUP_SIZE]
    pixels = torch.from_numpy(lessons.pixels[: len(scenes)])
    copies = torch.cat([_copies(batch, rng) for batch in torch.split(pixels, 96)])
    texts = [full_description(scene, rng) for scene in scenes]
    return _Features(
        pictures=_class_tokens(matcher, pixels),
        copies=_class_tokens(matcher, copies),
        mirror_images=_class_tokens(matcher, pixels.flip(2)),
        texts=_text_tokens(matcher, tokenizer, texts),
        is_lopsided=torch.tensor([_is_lopsided(scene) for scene in scenes]).view(-1, GROUP_SIZE),
    )


def _is_lopsided(scene: Scene) -> bool:
    return mirrored(scene).things != scene.things


def _copies(images: Tensor, rng: random.Random) -> Tensor:
    """(B, S, S, 3) uint8: a pixel row or column or two cut off, some also made smaller."""
    side = images.shape[1]
    start, cut = rng.choice(((1, 0), (0, 1), (1, 1)))
    cropped = images[:, start : side - cut, start : side - cut].permute(0, 3, 1, 2).float()
    if rng.random() < 0.4:
        cropped = F.interpolate(cropped, size=(40, 40), mode="bicubic", antialias=True)
    whole = F.interpolate(cropped, size=(side, side), mode="bicubic").clamp(0, 255)
    return whole.permute(0, 2, 3, 1).round().to(torch.uint8)


@torch.no_grad()
def _class_tokens(matcher: BlipMatcher, images: Tensor) -> Tensor:
    tokens = [matcher.vision(normalise(batch))[:, 0] for batch in torch.split(images, _BATCH)]
    return torch.cat(tokens).view(-1, GROUP_SIZE, tokens[0].shape[-1])


@torch.no_grad()
def _text_tokens(matcher: BlipMatcher, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    tokens = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer.encode(texts[start : start + _BATCH], first="cls", max_tokens=_MAX_TOKENS)
        tokens.append(matcher.text_encoder.encode(batch.ids, batch.mask)[:, 0])
    return torch.cat(tokens).view(-1, GROUP_SIZE, tokens[0].shape[-1])
