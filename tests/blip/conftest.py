"""A BLIP that runs in milliseconds, with random weights large enough to make its outputs differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa

M = TypeVar("M", bound=nn.Module)

TEXTS = [
    "a picture of a red circle above a blue square",
    "two small green triangles left of a large yellow star",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=200)


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> BlipConfig:
    tiny = BlipConfig.tiny(
        vocab_size=tokenizer.vocab_size, image_size_px=32, width=64, text_depth=2
    )
    return dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, depth=2))


@pytest.fixture
def blip(config: BlipConfig) -> Blip:
    return _made_lively(Blip(config))


@pytest.fixture
def captioner(config: BlipConfig) -> BlipCaptioner:
    return _made_lively(BlipCaptioner(config))


@pytest.fixture
def matcher(config: BlipConfig) -> BlipMatcher:
    return _made_lively(BlipMatcher(config))


@pytest.fixture(scope="session")
def box_tokenizer() -> Tokenizer:
    """A vocabulary that can write boxes."""
    words = sorted({word for text in TEXTS for word in text.split()})
    bins = [f"[unused{number}]" for number in range(339, 981)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *bins]
    return Tokenizer({token: index for index, token in enumerate(tokens)})


@pytest.fixture
def grounding(box_tokenizer: Tokenizer) -> BlipGrounding:
    tiny = BlipConfig.tiny(
        vocab_size=box_tokenizer.vocab_size, image_size_px=32, width=64, text_depth=2
    )
    vision = dataclasses.replace(tiny.vision, depth=2)
    return _made_lively(BlipGrounding(dataclasses.replace(tiny, vision=vision)))


@pytest.fixture
def vqa(config: BlipConfig) -> BlipVqa:
    return _made_lively(BlipVqa(config))


@pytest.fixture
def nlvr(config: BlipConfig) -> BlipNlvr:
    return _made_lively(BlipNlvr(config))


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Nine images, (9, 32, 32, 3)."""
    return np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def _made_lively(model: M) -> M:
    # At the initial scale all outputs are nearly equal, and tests of equality would prove little.
    for name, parameter in model.named_parameters():
        norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=norm, std=0.3)
    return model.eval()
