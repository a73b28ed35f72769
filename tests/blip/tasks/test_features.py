from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import save_model
from capfilt_blip.tasks.features import FeatureExtractor
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
TEXTS = [
    "a red circle",
    "two small triangles",
    "",
    "a blue square above a yellow star",
    "red " * 50,
    "a",
    "a star",
    "two",
    "a red circle",
]


@pytest.fixture
def extractor(matcher: BlipMatcher, tokenizer: Tokenizer) -> FeatureExtractor:
    return FeatureExtractor(matcher, tokenizer)


def test_the_shapes_are_those_documented(extractor: FeatureExtractor, images: Pixels) -> None:
    image, text = extractor.image(images), extractor.text(TEXTS)
    pair = extractor.multimodal(images, TEXTS)
    assert image.tokens.shape == (9, 17, 64)
    assert text.tokens.shape == pair.tokens.shape == (9, MAX_TEXT_TOKENS, 64)
    assert image.vectors.shape == text.vectors.shape == (9, 64)
    assert torch.equal(text.mask, pair.mask)
    assert text.mask.sum(1)[:3].tolist() == [5, 5, 2]  # with [CLS] and [SEP]


@torch.no_grad()
def test_features_are_those_of_one_at_a_time(
    extractor: FeatureExtractor, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    image, text = extractor.image(images), extractor.text(TEXTS)
    pair = extractor.multimodal(images, TEXTS)
    close = {"rtol": 0, "atol": 2e-5}
    for i in range(9):
        alone, fused = (
            tokenizer.encode([TEXTS[i]], first=first, max_tokens=35) for first in ("cls", "enc")
        )
        L = alone.ids.shape[1]
        embeds = matcher.vision(normalise(torch.from_numpy(images[i, None])))
        torch.testing.assert_close(image.tokens[i], embeds[0], **close)
        torch.testing.assert_close(image.vectors[i], matcher.image_vectors(embeds)[0], **close)
        hidden = matcher.text_encoder.encode(alone.ids, alone.mask)
        torch.testing.assert_close(text.tokens[i, :L], hidden[0], **close)
        vector = matcher.text_vectors(alone.ids, alone.mask)
        torch.testing.assert_close(text.vectors[i], vector[0], **close)
        memory = matcher.text_encoder.project_memory(embeds)
        hidden = matcher.text_encoder.fuse(fused.ids, fused.mask, memory)
        torch.testing.assert_close(pair.tokens[i, :L], hidden[0], **close)


def test_the_vectors_are_those_that_a_matcher_compares(
    extractor: FeatureExtractor, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    scores = Matcher(matcher, tokenizer).score(images, [[text] for text in TEXTS])
    cosines = (extractor.image_vectors(images) * extractor.text_vectors(TEXTS)).sum(-1)
    expected = [score.itc_cos[0] for score in scores]
    assert cosines.tolist() == pytest.approx(expected, abs=1e-6)


def test_vectors_alone_are_those_of_the_whole_features(
    extractor: FeatureExtractor, images: Pixels
) -> None:
    assert torch.equal(extractor.image_vectors(images), extractor.image(images).vectors)
    assert torch.equal(extractor.text_vectors(TEXTS), extractor.text(TEXTS).vectors)


def test_features_do_not_depend_on_order_or_neighbours(
    extractor: FeatureExtractor, images: Pixels
) -> None:
    order = np.random.default_rng(3).permutation(9)
    mixed = [TEXTS[i] for i in order]
    for plain, shuffled in (
        (extractor.image(images, batch_size=4), extractor.image(images[order], batch_size=4)),
        (extractor.text(TEXTS, batch_size=4), extractor.text(mixed, batch_size=4)),
        (
            extractor.multimodal(images, TEXTS, batch_size=4),
            extractor.multimodal(images[order], mixed, batch_size=4),
        ),
    ):
        assert torch.equal(shuffled.tokens, plain.tokens[order])
    alone = extractor.multimodal(images[3:4], TEXTS[3:4], batch_size=4).tokens[0]
    assert torch.equal(alone, extractor.multimodal(images, TEXTS, batch_size=4).tokens[3])


def test_there_is_nothing_in_the_padding(extractor: FeatureExtractor, images: Pixels) -> None:
    for found in (extractor.text(TEXTS), extractor.multimodal(images, TEXTS)):
        assert not found.tokens[~found.mask].any()
        assert found.tokens[found.mask].abs().sum(-1).min() > 0


def test_no_images_and_no_texts_have_no_features(
    extractor: FeatureExtractor, images: Pixels
) -> None:
    assert extractor.image(images[:0]).tokens.shape == (0, 17, 64)
    assert extractor.text([]).vectors.shape == (0, 64)
    assert extractor.multimodal(images[:0], []).tokens.shape == (0, MAX_TEXT_TOKENS, 64)


def test_images_and_texts_must_be_as_many(extractor: FeatureExtractor, images: Pixels) -> None:
    with pytest.raises(ValueError, match="2 texts were given for 9 images"):
        extractor.multimodal(images, ["a", "b"])


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.03), ("float16", 0.005)])
def test_a_lower_precision_gives_nearly_the_same_in_float32(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, dtype: str, atol: float
) -> None:
    full = FeatureExtractor(matcher, tokenizer).image_vectors(images)
    lower = FeatureExtractor(matcher, tokenizer, dtype=dtype)  # type: ignore[arg-type]
    assert lower.image(images).tokens.dtype == torch.float32
    torch.testing.assert_close(lower.image_vectors(images), full, rtol=0, atol=atol)


def test_it_is_loaded_as_a_matcher_is(
    extractor: FeatureExtractor, matcher: BlipMatcher, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path, model=matcher, tokenizer=tokenizer)
    loaded = FeatureExtractor.from_pretrained(tmp_path)
    assert loaded.image_size_px == 32
    assert torch.equal(loaded.text_vectors(TEXTS), extractor.text_vectors(TEXTS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_nearly_the_same_on_the_cpu(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    full = FeatureExtractor(copy.deepcopy(matcher), tokenizer).multimodal(images, TEXTS)
    found = FeatureExtractor(matcher, tokenizer, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    pair = found.multimodal(images, TEXTS)
    assert pair.tokens.device.type == "cpu"
    torch.testing.assert_close(pair.tokens, full.tokens, rtol=0, atol=0.3)
