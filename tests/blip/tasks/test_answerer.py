from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams
from capfilt_blip.checkpoint import save_model
from capfilt_blip.choosing import Candidates
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.tasks import answers
from capfilt_blip.tasks.answerer import Answerer
from capfilt_blip.tasks.texts import clean_question
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise
from capfilt_blip.vqa import BlipVqa

Pixels = NDArray[np.uint8]
QUESTIONS = [
    ["what is red?", "where are two small triangles?"],
    ["a star"],
    [],
    ["a", "b", "is it a blue square: above?", "two"],
    [""],
    ["red " * 60],
    ["a red circle", "a red circle"],
    ["a blue circle"],
    ["a", "green"],
]
WORDS = ["red", "blue", "circle", "square", "two", "small", "yellow", "star", "of", "left"]
PAIRS = [f"{one} {two}" for one, two in itertools.product(WORDS, WORDS)]
CANDIDATES = ["yes", *WORDS, *PAIRS, "a red circle above a blue square", ""]
EVERY_LENGTH = Limits(min_new_tokens=0, max_new_tokens=9)


@pytest.fixture
def answerer(vqa: BlipVqa, tokenizer: Tokenizer) -> Answerer:
    return Answerer(vqa, tokenizer)


def read(model: BlipVqa, tokenizer: Tokenizer, image: Pixels, question: str) -> Memory:
    """Read a question about one image, with no padding anywhere."""
    embeds = model.vision(normalise(torch.from_numpy(image[None])))
    batch = tokenizer.encode([clean_question(question)], first="enc", max_tokens=35)
    memory = model.text_encoder.project_memory(embeds)
    return model.read_questions(batch.ids, batch.mask, memory)


def slow_logprob(model: BlipVqa, tokenizer: Tokenizer, memory: Memory, answer: str) -> float:
    """One answer to one question, token by token."""
    [ids] = tokenizer.encode([answer], first="dec", max_tokens=64).ids.tolist()
    total = 0.0
    for place in range(1, len(ids)):
        before = torch.tensor([ids[:place]])
        logits = model.lm_logits(before, torch.ones_like(before, dtype=torch.bool), memory)
        total += logits[0, -1].log_softmax(-1)[ids[place]].item()
    return total


@torch.no_grad()
def test_answers_are_those_of_one_question_at_a_time(
    answerer: Answerer, vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    found = answerer.answer(images, QUESTIONS, beams=Beams(num_beams=1))
    assert [len(row) for row in found] == [len(row) for row in QUESTIONS]
    prompt = tokenizer.prompt_ids("")
    for image, questions, row in zip(images, QUESTIONS, found, strict=True):
        for question, answer in zip(questions, row, strict=True):
            memory = read(vqa, tokenizer, image, question)
            alone = generate_greedy(vqa, memory, prompt_ids=prompt, limits=EVERY_LENGTH)
            assert answer.text == tokenizer.decode(alone.token_ids[0]).strip()
            assert answer.logprob == pytest.approx(alone.logprobs.item(), abs=1e-3)
            assert answer.num_tokens == alone.num_tokens.item()


def test_a_beam_finds_likelier_answers(answerer: Answerer, images: Pixels) -> None:
    # Of one length, so that scores are sums.
    limits = Limits(min_new_tokens=5, max_new_tokens=6)
    sums = [
        sum(answer.logprob for row in found for answer in row)
        for found in (
            answerer.answer(images, QUESTIONS, limits=limits, beams=Beams(num_beams=count))
            for count in (1, 8)
        )
    ]
    assert sums[1] > sums[0]


def test_an_answer_has_nine_tokens_at_most_and_may_be_empty(
    answerer: Answerer, vqa: BlipVqa, images: Pixels
) -> None:
    found = [answer for row in answerer.answer(images, QUESTIONS) for answer in row]
    assert max(answer.num_tokens for answer in found) == 9
    vqa.lm_head.bias.data[vqa.config.sep_token_id] = 1000
    [[answer]] = answerer.answer(images[:1], [["what?"]])
    assert (answer.text, answer.num_tokens) == ("", 1)


def test_a_question_starts_with_enc(answerer: Answerer, vqa: BlipVqa, images: Pixels) -> None:
    before = answerer.rank(images[:1], [["what?"]], candidates=WORDS)
    vqa.text_encoder.embeddings.words.weight.data[vqa.config.enc_token_id] *= -1
    assert answerer.rank(images[:1], [["what?"]], candidates=WORDS) != before


def test_an_answer_starts_with_dec(answerer: Answerer, vqa: BlipVqa, images: Pixels) -> None:
    before = answerer.answer(images[:1], [["what?"]])
    vqa.text_decoder.embeddings.words.weight.data[vqa.config.bos_token_id] *= -1
    assert answerer.answer(images[:1], [["what?"]]) != before


def test_no_answer_depends_on_neighbours_or_order(answerer: Answerer, images: Pixels) -> None:
    def ask(rows: list[int], questions: list[list[str]]) -> list[object]:
        written = answerer.answer(images[rows], questions, batch_size=4)
        chosen = answerer.rank(images[rows], questions, candidates=PAIRS[:20], batch_size=4)
        return list(zip(written, chosen, strict=True))

    plain = ask([*range(9)], QUESTIONS)
    order = np.random.default_rng(3).permutation(9).tolist()
    assert ask(order, [QUESTIONS[i] for i in order]) == [plain[i] for i in order]
    for i in (0, 3, 5):
        assert ask([i], [QUESTIONS[i]]) == [plain[i]]
    others = [["another question altogether " * 5] * 5, *QUESTIONS[1:]]
    assert ask([*range(9)], others)[1:] == plain[1:]


def test_an_answer_does_not_depend_on_the_other_questions_about_its_image(
    answerer: Answerer, images: Pixels
) -> None:
    [together] = answerer.answer(images[3:4], [QUESTIONS[3]])
    for question, answer in zip(QUESTIONS[3], together, strict=True):
        assert answerer.answer(images[3:4], [[question]]) == [[answer]]


@torch.no_grad()
def test_rankings_are_those_of_a_slow_version(
    answerer: Answerer, vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    [[ranking]] = answerer.rankings(images[:1], [["what is it?"]], candidates=CANDIDATES)
    memory = read(vqa, tokenizer, images[0], "what is it?")
    slow = [slow_logprob(vqa, tokenizer, memory, text) for text in CANDIDATES]
    assert sorted(answer.index for answer in ranking) == [*range(len(CANDIDATES))]
    assert [answer.text for answer in ranking] == [CANDIDATES[answer.index] for answer in ranking]
    for answer in ranking:
        assert answer.logprob == pytest.approx(slow[answer.index], abs=1e-3)
    sums = [answer.logprob for answer in ranking]
    assert sums == sorted(sums, reverse=True)


@torch.no_grad()
def test_the_short_list_is_of_the_likeliest_first_tokens(
    answerer: Answerer, vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    [[ranking]] = answerer.rankings(
        images[:1], [["what?"]], candidates=[*PAIRS, *WORDS], num_first=15
    )
    memory = read(vqa, tokenizer, images[0], "what?")
    start = torch.tensor([[tokenizer.dec_id]])
    first = vqa.lm_logits(start, start > 0, memory)[0, 0]
    by_first = sorted(WORDS, key=lambda word: -first[tokenizer.prompt_ids(word)[1]])
    # Eleven candidates share the likeliest first token; of the next eleven the first four remain.
    pairs = {f"{by_first[0]} {word}" for word in WORDS} | {f"{by_first[1]} {w}" for w in WORDS[:4]}
    assert {answer.text for answer in ranking} == pairs | {by_first[0]}


@pytest.mark.parametrize("num_first", [1, 16, 17, 128])
def test_the_chosen_answer_leads_the_ranking(
    answerer: Answerer, images: Pixels, num_first: int
) -> None:
    asked = images[3:8], QUESTIONS[3:8]
    rankings = answerer.rankings(*asked, candidates=CANDIDATES, num_first=num_first)
    chosen = answerer.rank(*asked, candidates=CANDIDATES, num_first=num_first)
    assert chosen == [[ranking[0] for ranking in row] for row in rankings]


def test_of_equal_candidates_the_first_is_chosen(answerer: Answerer, images: Pixels) -> None:
    candidates = [*PAIRS, *PAIRS]
    chosen = answerer.rank(images, QUESTIONS, candidates=candidates, num_first=200)
    assert all(answer.index < len(PAIRS) for row in chosen for answer in row)
    [[ranking]] = answerer.rankings(images[:1], [["what?"]], candidates=PAIRS[:2] * 9)
    places = [answer.index for answer in ranking]
    assert places == sorted(places[:9]) + sorted(places[9:])


def test_a_search_ends_when_nothing_can_win(
    answerer: Answerer, vqa: BlipVqa, images: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_passes = 0
    decode = vqa.text_decoder.decode

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal num_passes
        num_passes += 1
        return decode(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(vqa.text_decoder, "decode", counted)
    answerer.rankings(images[:1], [["what?"]], candidates=CANDIDATES)
    whole, num_passes = num_passes, 0
    answerer.rank(images[:1], [["what?"]], candidates=CANDIDATES)
    assert num_passes < whole == 1 + 8  # the first tokens, and 113 candidates by 16


def test_a_memory_of_several_frames_is_read_like_an_image(
    vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    with torch.inference_mode():
        embeds = vqa.vision(normalise(torch.from_numpy(images[:6])))
        frames = vqa.text_encoder.project_memory(embeds.view(2, 3 * 17, 64))
        memory = answers.read_questions(vqa, tokenizer, ["what?", "who?"], image_memory=frames)
        same = vqa.text_encoder.project_memory(
            embeds.view(2, 3, 17, 64)[:, [2, 0, 1]].flatten(1, 2)
        )
        again = answers.read_questions(vqa, tokenizer, ["what?", "who?"], image_memory=same)
    listed = Candidates.of(WORDS, tokenizer=tokenizer, model=vqa)
    found = answers.score_answers(vqa, memory, candidates=listed)
    # Frames have no order.
    for one, two in zip(found, answers.score_answers(vqa, again, candidates=listed), strict=True):
        assert [answer.text for answer in one] == [answer.text for answer in two]
    assert [row[0] for row in found] == answers.choose_answers(vqa, memory, candidates=listed)
    assert len(answers.write_answers(vqa, tokenizer, memory)) == 2


def test_no_images_have_no_answers(answerer: Answerer, images: Pixels) -> None:
    assert answerer.answer(images[:0], []) == []
    assert answerer.rank(images[:0], [], candidates=["yes"]) == []


def test_what_cannot_be_asked_is_refused(answerer: Answerer, images: Pixels) -> None:
    with pytest.raises(ValueError, match="1 lists of questions were given for 9 images"):
        answerer.answer(images, [["what?"]])
    with pytest.raises(ValueError, match="there are no candidates"):
        answerer.rank(images[:1], [["what?"]], candidates=[])
    with pytest.raises(ValueError, match="num_first is 0; it must be 1 or more"):
        answerer.rank(images[:1], [["what?"]], candidates=["yes"], num_first=0)
    with pytest.raises(ValueError, match=r"candidate 1 has 63 tokens; .* positions for 62"):
        answerer.rank(images[:1], [["what?"]], candidates=["a", "red " * 63, "two"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_scores_nearly_the_same(
    vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    asked = images[:2], [["what?"], ["where?"]]
    full = Answerer(vqa, tokenizer).rankings(*asked, candidates=WORDS)
    lower = Answerer(vqa, tokenizer, dtype=dtype).rankings(*asked, candidates=WORDS)  # type: ignore[arg-type]
    for [one], [two] in zip(full, lower, strict=True):
        expected = {answer.index: answer.logprob for answer in one}
        for answer in two:
            assert answer.logprob == pytest.approx(expected[answer.index], abs=1.0)


def test_a_saved_model_answers_as_before(
    answerer: Answerer, vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path, model=vqa, tokenizer=tokenizer)
    loaded = Answerer.from_pretrained(tmp_path)
    assert loaded.image_size_px == 32
    assert loaded.answer(images[:2], QUESTIONS[:2]) == answerer.answer(images[:2], QUESTIONS[:2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same_whoever_is_beside(
    vqa: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    full = Answerer(copy.deepcopy(vqa), tokenizer).rank(images, QUESTIONS, candidates=CANDIDATES)
    on_gpu = Answerer(vqa, tokenizer, device="cuda")
    found = on_gpu.rank(images, QUESTIONS, candidates=CANDIDATES)
    for one, two in zip(full, found, strict=True):
        sums = [[answer.logprob for answer in row] for row in (one, two)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-2)
    assert on_gpu.rank(images[:1], QUESTIONS[:1], candidates=CANDIDATES) == found[:1]
