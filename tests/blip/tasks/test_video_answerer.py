from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import Limits
from capfilt_blip.tasks.answerer import Answerer
from capfilt_blip.tasks.answers import read_questions, write_answers
from capfilt_blip.tasks.video_answerer import VideoAnswerer
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise
from capfilt_blip.vqa import BlipVqa

Pixels = NDArray[np.uint8]
QUESTIONS = [["what colour", "how many circles are there"], ["where"], []]
LIMITS = Limits(min_new_tokens=2, max_new_tokens=5)
CANDIDATES = ["red", "a blue circle", "two", "left of it", "yellow"]


@pytest.fixture
def model(config: BlipConfig) -> BlipVqa:
    vqa = BlipVqa(config)
    for name, weight in vqa.named_parameters():
        norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(weight, mean=norm, std=0.3)
    return vqa.eval()


@pytest.fixture
def answerer(model: BlipVqa, tokenizer: Tokenizer) -> VideoAnswerer:
    return VideoAnswerer(model, tokenizer)


@pytest.fixture
def videos() -> list[Pixels]:
    """Three videos of 3, 10 and 1 frames."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (3, 10, 1)]


@torch.no_grad()
def _memory(model: BlipVqa, frames: Pixels) -> Memory:
    """The memory of a video, frame by frame."""
    tokens = [model.vision(normalise(torch.from_numpy(frame[None]))) for frame in frames]
    return model.text_encoder.project_memory(torch.cat(tokens, dim=1))


def test_answers_are_those_of_one_video_and_one_question_at_a_time(
    answerer: VideoAnswerer, model: BlipVqa, tokenizer: Tokenizer, videos: list[Pixels]
) -> None:
    found = answerer.answer(videos, QUESTIONS, limits=LIMITS, beams=Beams(num_beams=2))
    assert [len(row) for row in found] == [2, 1, 0]
    for video, questions, answers in zip(videos, QUESTIONS, found, strict=True):
        for question, answer in zip(questions, answers, strict=True):
            asked = read_questions(model, tokenizer, [question], image_memory=_memory(model, video))
            [alone] = write_answers(
                model, tokenizer, asked, limits=LIMITS, beams=Beams(num_beams=2)
            )
            assert answer.text == alone.text
            assert answer.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_a_video_of_one_frame_is_an_image(
    answerer: VideoAnswerer, model: BlipVqa, tokenizer: Tokenizer, images: Pixels
) -> None:
    questions = [["what colour", "where"]] * 3
    frames = [image[None] for image in images[:3]]
    image_answerer = Answerer(model, tokenizer)
    written = answerer.answer(frames, questions, limits=LIMITS)
    as_images = image_answerer.answer(images[:3], questions, limits=LIMITS)
    assert [[a.text for a in row] for row in written] == [
        [a.text for a in row] for row in as_images
    ]
    chosen = answerer.rank(frames, questions, candidates=CANDIDATES)
    as_images_chosen = image_answerer.rank(images[:3], questions, candidates=CANDIDATES)
    for row, image_row in zip(chosen, as_images_chosen, strict=True):
        assert [a.text for a in row] == [a.text for a in image_row]
        logprobs = [a.logprob for a in image_row]
        assert [a.logprob for a in row] == pytest.approx(logprobs, abs=1e-3)


def test_every_frame_is_read(answerer: VideoAnswerer, videos: list[Pixels]) -> None:
    [[whole]] = answerer.rank(videos[1:2], [["where"]], candidates=["red"])
    for frame in range(10):
        fewer = [np.delete(videos[1], frame, axis=0)]
        [[less]] = answerer.rank(fewer, [["where"]], candidates=["red"])
        assert less.logprob != pytest.approx(whole.logprob, abs=1e-5)


def test_an_answer_does_not_depend_on_what_else_is_asked(
    answerer: VideoAnswerer, videos: list[Pixels]
) -> None:
    together = answerer.answer(videos, QUESTIONS, limits=LIMITS)
    for video, questions, answers in zip(videos, QUESTIONS, together, strict=True):
        for question, answer in zip(questions, answers, strict=True):
            assert answerer.answer([video], [[question]], limits=LIMITS) == [[answer]]


def test_videos_and_lists_of_questions_must_be_as_many(
    answerer: VideoAnswerer, videos: list[Pixels]
) -> None:
    with pytest.raises(ValueError, match="1 lists of questions were given for 3 videos"):
        answerer.answer(videos, [["where"]])


def test_a_video_without_frames_is_refused(answerer: VideoAnswerer, videos: list[Pixels]) -> None:
    with pytest.raises(ValueError, match="video 0 has no frames"):
        answerer.answer([videos[0][:0]], [["where"]])
