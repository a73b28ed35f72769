from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.blip import BlipMatcher
from capfilt_blip.checkpoint import save_model
from capfilt_blip.tasks.match_rows import TEXT_LENGTHS, steady_rows, text_rows
from capfilt_blip.tasks.matcher import Matcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
TEXTS = [
    ["a red circle", "two small triangles"],
    ["a star"],
    [],
    ["a", "b", "a blue square above", "two", "a yellow star left of it"],
    [""],
    ["red " * 50],
    ["a red circle", "a red circle"],
    ["a blue circle"],
    ["a", "green"],
]


@pytest.fixture
def filter_(matcher: BlipMatcher, tokenizer: Tokenizer) -> Matcher:
    return Matcher(matcher, tokenizer)


@torch.no_grad()
def test_scores_are_those_of_one_pair_at_a_time(
    filter_: Matcher, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    scores = filter_.score(images, TEXTS)
    for image, texts, score in zip(torch.from_numpy(images), TEXTS, scores, strict=True):
        embeds = matcher.vision(normalise(image[None]))
        kv = matcher.text_encoder.project_memory(embeds)
        for text, itm_prob, itc_cos in zip(texts, score.itm_prob, score.itc_cos, strict=True):
            fused = tokenizer.encode([text], first="enc", max_tokens=35)
            alone = tokenizer.encode([text], first="cls", max_tokens=35)
            match = matcher.itm_logits(fused.ids, fused.mask, kv).softmax(-1)[0, 1]
            vector = matcher.text_vectors(alone.ids, alone.mask)
            assert itm_prob == pytest.approx(match.item(), abs=1e-5)
            assert itc_cos == pytest.approx(
                (vector @ matcher.image_vectors(embeds).T).item(), abs=1e-5
            )


def test_the_itm_head_reads_enc(filter_: Matcher, matcher: BlipMatcher, images: Pixels) -> None:
    before = filter_.score(images, TEXTS)
    matcher.text_encoder.embeddings.words.weight.data[matcher.config.enc_token_id] *= -1
    after = filter_.score(images, TEXTS)
    assert after[0].itm_prob != before[0].itm_prob
    assert after[0].itc_cos == before[0].itc_cos  # read with [CLS]


def test_the_itm_head_reads_cls_where_that_is_asked_for(
    filter_: Matcher, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    as_cls = Matcher(matcher, tokenizer, first_token="cls")
    expected, before = filter_.score(images, TEXTS), as_cls.score(images, TEXTS)
    assert [score.itc_cos for score in before] == [score.itc_cos for score in expected]
    matcher.text_encoder.embeddings.words.weight.data[matcher.config.enc_token_id] *= -1
    assert as_cls.score(images, TEXTS) == before
    matcher.text_encoder.embeddings.words.weight.data[matcher.config.cls_token_id] *= -1
    assert as_cls.score(images, TEXTS)[0].itm_prob != before[0].itm_prob


def test_an_unknown_first_token_is_refused(matcher: BlipMatcher, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="first_token is 'dec'; it must be 'enc' or 'cls'"):
        Matcher(matcher, tokenizer, first_token="dec")  # type: ignore[arg-type]


def test_scores_do_not_depend_on_order(filter_: Matcher, images: Pixels) -> None:
    order = np.random.default_rng(3).permutation(9)
    plain = filter_.score(images, TEXTS, batch_size=4)
    shuffled = filter_.score(images[order], [TEXTS[i] for i in order], batch_size=4)
    assert shuffled == [plain[i] for i in order]


def test_scores_do_not_depend_on_neighbours(filter_: Matcher, images: Pixels) -> None:
    plain = filter_.score(images, TEXTS, batch_size=4)
    for i in range(9):
        assert filter_.score(images[i, None], [TEXTS[i]], batch_size=4) == [plain[i]]
    others = [["another text altogether"] * 7, *TEXTS[1:]]
    assert filter_.score(images, others, batch_size=4)[1:] == plain[1:]


def test_a_texts_score_does_not_depend_on_the_other_texts_of_its_image(
    filter_: Matcher, images: Pixels
) -> None:
    five = filter_.score(images[3:4], [TEXTS[3]])[0]
    for place, text in enumerate(TEXTS[3]):
        [alone] = filter_.score(images[3:4], [[text]])
        assert (alone.itm_prob, alone.itc_cos) == ([five.itm_prob[place]], [five.itc_cos[place]])


def test_a_text_is_padded_to_the_next_length_and_no_further(tokenizer: Tokenizer) -> None:
    texts = ["red " * count for count in (0, 10, 11, 14, 15, 22, 23, 33, 99)]
    [rows] = text_rows(tokenizer, [texts])
    assert [row.length for row in rows] == [12, 12, 16, 16, 24, 24, 35, 35, 35]
    assert [row.num_read for row in rows] == [2, 12, 13, 16, 17, 24, 25, 35, 35]


@torch.no_grad()
def test_padding_to_the_longest_length_gives_the_same(
    filter_: Matcher, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels
) -> None:
    found = filter_.score(images, TEXTS)
    memory = matcher.text_encoder.project_memory(matcher.vision(normalise(torch.tensor(images))))
    for place in range(2):
        long = tokenizer.encode(
            [(*texts, "", "")[place] for texts in TEXTS], first="enc", max_tokens=35, pad_to=35
        )
        expected = matcher.itm_logits(long.ids, long.mask, memory).softmax(-1)[:, 1].tolist()
        for score, itm_prob in zip(found, expected, strict=True):
            assert score.itm_prob[place : place + 1] == pytest.approx(
                [itm_prob] * len(score.itm_prob[place : place + 1]), abs=1e-5
            )


@pytest.mark.parametrize("batch_size", [2, 5, 7, 10])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_no_number_of_threads_makes_a_score_depend_on_its_place(
    filter_: Matcher, images: Pixels, batch_size: int, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        plain = filter_.score(images, TEXTS, batch_size=batch_size)
        turned = filter_.score(images[::-1], TEXTS[::-1], batch_size=batch_size)
    finally:
        torch.set_num_threads(before)
    assert turned[::-1] == plain


def test_images_with_texts_of_like_length_are_scored_together(filter_: Matcher) -> None:
    short, middle, long = "red", "red " * 12, "red " * 40
    texts = [[long], [short, middle], [], [short], [middle, short], [long], [short]]
    assert filter_.best_order(texts) == [2, 3, 6, 1, 4, 0, 5]


def test_itm_is_computed_where_it_is_asked_for_and_has_the_same_bits(
    filter_: Matcher, images: Pixels
) -> None:
    whole = filter_.score(images, TEXTS, batch_size=4)
    scoring = filter_.begin(batch_size=4)
    wanted = {(0, 1), (3, 0), (3, 4), (5, 0), (7, 0)}
    asked_with: dict[tuple[int, int], float] = {}

    def asked(image: int, place: int, itc_cos: float) -> bool:
        asked_with[image, place] = itc_cos
        return (image, place) in wanted

    found = scoring.add(images, TEXTS, asked=asked)
    scoring.finish()
    for image, (one, score) in enumerate(zip(whole, found, strict=True)):
        assert (score.itc_cos, score.image_vector) == (one.itc_cos, one.image_vector)
        assert score.itm_prob == [
            itm_prob if (image, place) in wanted else None
            for place, itm_prob in enumerate(one.itm_prob)
        ]
        assert score.itc_cos == [asked_with[image, i] for i in range(len(TEXTS[image]))]


def test_keys_and_values_are_computed_of_images_that_itm_is_asked_of(
    filter_: Matcher, matcher: BlipMatcher, images: Pixels
) -> None:
    projected: list[int] = []
    key = matcher.text_encoder.layers[0].cross_attention.heads.key  # type: ignore[union-attr]
    key.register_forward_hook(lambda _, given, __: projected.append(len(given[0])))
    scoring = filter_.begin(batch_size=4)
    for start in (0, 4, 8):
        batch, texts = (
            images[start : start + 4],
            [["a red circle"]] * len(images[start : start + 4]),
        )
        scoring.add(batch, texts, asked=lambda image, _, __: image % 2 == 0)  # 2, 2 and 1 of 9
    assert projected == [4]
    scoring.finish()
    assert projected == [4, 4]  # the fifth, and filler


def test_cosines_alone_take_no_itm(filter_: Matcher, matcher: BlipMatcher, images: Pixels) -> None:
    expected = [score.itc_cos for score in filter_.score(images, TEXTS)]
    matcher.itm_head.register_forward_pre_hook(lambda *_: pytest.fail("ITM was computed"))
    assert filter_.similarity(images, TEXTS) == expected


@pytest.mark.parametrize(("given", "steady"), [(1, 2), (3, 3), (5, 4), (7, 4), (8, 8), (11, 8)])
def test_rows_are_so_many_that_their_place_makes_no_difference(given: int, steady: int) -> None:
    assert steady_rows(given) == steady


def test_the_longest_text_has_a_length() -> None:
    assert TEXT_LENGTHS[-1] == 35


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 16])
def test_the_batch_size_changes_rounding_at_most(
    filter_: Matcher, images: Pixels, batch_size: int
) -> None:
    expected = filter_.score(images, TEXTS, batch_size=4)
    for one, two in zip(filter_.score(images, TEXTS, batch_size=batch_size), expected, strict=True):
        assert one.itm_prob == pytest.approx(two.itm_prob, abs=1e-5)
        assert one.itc_cos == pytest.approx(two.itc_cos, abs=1e-5)


def test_an_image_without_texts_still_has_its_vector(filter_: Matcher, images: Pixels) -> None:
    scores = filter_.score(images, [[] for _ in images])
    assert all(score.itm_prob == score.itc_cos == score.num_tokens == [] for score in scores)
    lengths = np.linalg.norm([score.image_vector for score in scores], axis=1)
    assert lengths == pytest.approx(np.ones(9), abs=1e-6)


def test_a_long_text_is_cut_and_its_whole_length_told(filter_: Matcher, images: Pixels) -> None:
    longer = ["red " * 33 + "circle", "red " * 33 + "blue square", "red " * 33]
    [score] = filter_.score(images[:1], [longer])
    assert score.num_tokens == [34, 35, 33]
    assert score.itm_prob[0] == score.itm_prob[1] == score.itm_prob[2]


def test_match_and_similarity_are_the_parts_of_score(filter_: Matcher, images: Pixels) -> None:
    scores = filter_.score(images, TEXTS)
    assert filter_.match(images, TEXTS) == [score.itm_prob for score in scores]
    assert filter_.similarity(images, TEXTS) == [score.itc_cos for score in scores]


def test_no_images_have_no_scores(filter_: Matcher, images: Pixels) -> None:
    assert filter_.score(images[:0], []) == []


def test_images_and_lists_of_texts_must_be_as_many(filter_: Matcher, images: Pixels) -> None:
    with pytest.raises(ValueError, match="1 lists of texts were given for 9 images"):
        filter_.score(images, [["a"]])


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_a_lower_precision_gives_nearly_the_same(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, dtype: str, atol: float
) -> None:
    full = Matcher(matcher, tokenizer).score(images, TEXTS)
    lower = Matcher(matcher, tokenizer, dtype=dtype).score(images, TEXTS)  # type: ignore[arg-type]
    for one, two in zip(full, lower, strict=True):
        assert one.itm_prob == pytest.approx(two.itm_prob, abs=atol)
        assert one.itc_cos == pytest.approx(two.itc_cos, abs=atol)


def test_it_is_loaded_with_a_tokenizer_from_elsewhere(
    filter_: Matcher, matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model=matcher, tokenizer=tokenizer)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "model" / name).rename(tmp_path / name)
    loaded = Matcher.from_pretrained(tmp_path / "model", tokenizer=tmp_path)
    assert loaded.score(images, TEXTS) == filter_.score(images, TEXTS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "atol"), [("float32", 1e-3), ("bfloat16", 0.1), ("float16", 0.02)]
)
def test_a_gpu_gives_nearly_the_same_whoever_is_beside(
    matcher: BlipMatcher, tokenizer: Tokenizer, images: Pixels, dtype: str, atol: float
) -> None:
    full = Matcher(matcher, tokenizer).match(images, TEXTS)
    on_gpu = Matcher(matcher, tokenizer, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    found = on_gpu.match(images, TEXTS)
    for one, two in zip(full, found, strict=True):
        assert one == pytest.approx(two, abs=atol)
    assert on_gpu.match(images[:1], TEXTS[:1]) == found[:1]
