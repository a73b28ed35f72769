from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tasks.reranker import Hits
from capfilt_blip.tasks.retriever import Retriever
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
TEXTS = [
    "a red circle",
    "two small triangles",
    "a star",
    "",
    "a blue square above a yellow star",
    "red " * 50,
    "green",
]


@pytest.fixture
def retriever(matcher: BlipMatcher, tokenizer: Tokenizer) -> Retriever:
    return Retriever(matcher, tokenizer)


PairScore = Callable[[int, int], tuple[float, float]]


@pytest.fixture
def pair_score(matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels) -> PairScore:
    """Cosine and final score of an image and a text, computed with nothing else around."""

    @torch.no_grad()
    def alone(image: int, text: int) -> tuple[float, float]:
        embeds = matcher.vision(normalise(torch.from_numpy(images[image, None])))
        memory = matcher.text_encoder.project_memory(embeds)
        fused = tokenizer.encode([TEXTS[text]], first="enc", max_tokens=35)
        lone = tokenizer.encode([TEXTS[text]], first="cls", max_tokens=35)
        vector = matcher.text_vectors(lone.ids, lone.mask)
        cosine = (vector @ matcher.image_vectors(embeds).T).item()
        return cosine, matcher.itm_logits(fused.ids, fused.mask, memory)[0, 1].item() + cosine

    return alone


def _slowly(pairs: list[tuple[float, float]], *, num_candidates: int) -> list[tuple[int, float]]:
    """Places and scores of one query's candidates, best first."""
    nearest = sorted(range(len(pairs)), key=lambda place: -pairs[place][0])[:num_candidates]
    return sorted(((place, pairs[place][1]) for place in nearest), key=lambda found: -found[1])


def _assert_same(ranking: Hits, expected: list[list[tuple[int, float]]]) -> None:
    assert ranking.indices.tolist() == [[place for place, _ in row] for row in expected]
    scores = np.array([[score for _, score in row] for row in expected])
    assert ranking.scores.numpy() == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("num_candidates", [1, 3, 100])
def test_rankings_are_those_of_one_pair_at_a_time(
    retriever: Retriever, pair_score: PairScore, images: Pixels, num_candidates: int
) -> None:
    found = retriever.rank(
        images, TEXTS, num_candidates=num_candidates, batch_size=4, texts_per_pass=3
    )
    table = [[pair_score(image, text) for text in range(7)] for image in range(9)]
    _assert_same(found.texts, [_slowly(row, num_candidates=num_candidates) for row in table])
    columns = [[row[text] for row in table] for text in range(7)]
    _assert_same(found.images, [_slowly(row, num_candidates=num_candidates) for row in columns])


@pytest.mark.parametrize("num_candidates", [1, 3, 100])
def test_one_direction_alone_is_that_part_of_both(
    retriever: Retriever, images: Pixels, num_candidates: int
) -> None:
    both = retriever.rank(images, TEXTS, num_candidates=num_candidates)
    texts = retriever.find_texts(images, TEXTS, num_candidates=num_candidates)
    found = retriever.find_images(images, TEXTS, num_candidates=num_candidates)
    _assert_identical(texts, both.texts)
    _assert_identical(found, both.images)


def test_scores_do_not_depend_on_what_else_there_is(retriever: Retriever, images: Pixels) -> None:
    every = _table(retriever.rank(images, TEXTS, batch_size=4, texts_per_pass=4).images)
    for image in range(9):
        one = retriever.rank(images[image, None], TEXTS, batch_size=4, texts_per_pass=4)
        assert torch.equal(_table(one.images)[:, 0], every[:, image])
    for text in range(7):
        one = retriever.rank(images, [TEXTS[text]], batch_size=4, texts_per_pass=4)
        assert torch.equal(_table(one.images)[0], every[text])


def test_the_order_of_images_and_texts_changes_no_score(
    retriever: Retriever, images: Pixels
) -> None:
    order, text_order = np.random.default_rng(3).permutation(9), [6, 0, 3, 5, 1, 2, 4]
    plain = _table(retriever.rank(images, TEXTS).images)
    shuffled = _table(retriever.rank(images[order], [TEXTS[i] for i in text_order]).images)
    assert torch.equal(shuffled, plain[text_order][:, torch.from_numpy(order)])


def test_of_equal_scores_the_lower_place_comes_first(retriever: Retriever, images: Pixels) -> None:
    same = np.repeat(images[:1], 6, axis=0)
    found = retriever.rank(same, ["a star"] * 5, num_candidates=4)
    assert found.texts.indices.tolist() == [[0, 1, 2, 3]] * 6
    assert found.images.indices.tolist() == [[0, 1, 2, 3]] * 5


def test_the_score_is_a_logit_plus_a_cosine(
    retriever: Retriever, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    before = _table(retriever.rank(images, TEXTS).images)
    matcher.itm_head.bias.data += torch.tensor([0.5, 2.0])
    # A probability could not grow by 2, and one made of both logits would see the 0.5.
    assert torch.allclose(_table(retriever.rank(images, TEXTS).images), before + 2, atol=1e-4)
    matcher.itm_head.weight.data.zero_()
    matcher.itm_head.bias.data.zero_()
    cosines = Matcher(matcher, tokenizer).similarity(images, [TEXTS] * 9)
    found = _table(retriever.rank(images, TEXTS).texts)
    assert found.numpy() == pytest.approx(np.array(cosines), abs=1e-5)


def test_the_itm_head_reads_enc_and_the_vectors_cls(
    retriever: Retriever, matcher: BlipMatcher, images: Pixels
) -> None:
    words = matcher.text_encoder.embeddings.words.weight.data
    matcher.itm_head.weight.data.zero_()
    cosines = _table(retriever.rank(images, TEXTS).images)
    words[matcher.config.enc_token_id] *= -1
    assert torch.equal(_table(retriever.rank(images, TEXTS).images), cosines)
    words[matcher.config.cls_token_id] *= -1
    assert not torch.equal(_table(retriever.rank(images, TEXTS).images), cosines)


def test_an_image_without_candidates_is_encoded_once(
    retriever: Retriever, matcher: BlipMatcher, images: Pixels
) -> None:
    sizes: list[int] = []
    matcher.vision.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    retriever.find_images(images, ["a star"], num_candidates=2, batch_size=2)
    assert sizes == [2] * 5 + [2]  # 9 images for their vectors, then the 2 candidates


def test_a_pair_that_is_wanted_twice_is_read_once(
    retriever: Retriever, matcher: BlipMatcher, images: Pixels
) -> None:
    passes: list[int] = []
    matcher.itm_head.register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    retriever.rank(images, TEXTS, texts_per_pass=4)
    assert passes == [4, 4] * 9


def test_no_more_image_tokens_are_alive_at_the_end_of_many_images_than_of_few(
    retriever: Retriever, matcher: BlipMatcher, images: Pixels
) -> None:
    few = _bytes_alive(retriever, matcher, images[:4])
    assert 0 < _bytes_alive(retriever, matcher, np.concatenate([images, images[:7]])) <= few


def _bytes_alive(retriever: Retriever, matcher: BlipMatcher, images: Pixels) -> int:
    """What all image tokens, keys and values take when the last batch is encoded again."""
    num_tokens = matcher.config.vision.num_tokens
    alive: list[int] = []

    def count(_: object, args: tuple[Tensor], __: object) -> None:
        alive.append(0)
        if len(alive) == len(images):  # two passes of batches of two
            found = [thing for thing in gc.get_objects() if type(thing) is Tensor]
            tokens = [t for t in found if t.dim() >= 3 and num_tokens in t.shape[1:]]
            storages = {t.data_ptr(): t.untyped_storage().nbytes() for t in tokens}
            alive[-1] = sum(storages.values())

    handle = matcher.vision.register_forward_hook(count)
    retriever.rank(images, TEXTS[:3], batch_size=2, texts_per_pass=4)
    handle.remove()
    assert len(alive) == len(images)
    return alive[-1]


def test_images_may_come_one_by_one(retriever: Retriever, images: Pixels) -> None:
    class Folder:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, place: int) -> Image.Image:
            return Image.fromarray(images[place])

    lazily = retriever.rank(Folder(), TEXTS, batch_size=4)  # type: ignore[arg-type]  # duck
    _assert_identical(lazily.images, retriever.rank(images, TEXTS, batch_size=4).images)


@pytest.mark.parametrize(("num_images", "num_texts"), [(0, 0), (0, 7), (9, 0)])
def test_nothing_has_no_candidates(
    retriever: Retriever, images: Pixels, num_images: int, num_texts: int
) -> None:
    found = retriever.rank(images[:num_images], TEXTS[:num_texts])
    assert found.texts.indices.shape == found.texts.scores.shape == (num_images, num_texts)
    assert found.images.indices.shape == found.images.scores.shape == (num_texts, num_images)


def test_a_query_needs_a_candidate(retriever: Retriever, images: Pixels) -> None:
    with pytest.raises(ValueError, match="num_candidates is 0; it must be 1 or more"):
        retriever.rank(images, TEXTS, num_candidates=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_gives_nearly_the_same(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    full = Retriever(matcher, tokenizer).rank(images[:3], TEXTS, texts_per_pass=7)
    lower = Retriever(matcher, tokenizer, dtype=dtype)  # type: ignore[arg-type]  # a parameter
    found = lower.rank(images[:3], TEXTS, batch_size=3, texts_per_pass=7)
    assert torch.allclose(_table(found.images), _table(full.images), atol=0.3, rtol=0.05)


def _table(ranking: Hits) -> Tensor:
    """Scores by place, where all others are candidates: (Q, N)."""
    return torch.empty_like(ranking.scores).scatter(1, ranking.indices, ranking.scores)


def _assert_identical(one: Hits, two: Hits) -> None:
    assert torch.equal(one.indices, two.indices)
    assert torch.equal(one.scores, two.scores)
