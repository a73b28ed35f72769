from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from math import inf, nan
from pathlib import Path

import pytest

from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.protocols import TextScores
from capfilt.workers.score import (
    ImageToScore,
    ScoreWorker,
    TextToScore,
    load_scorer,
    scored_image,
    unscored,
)
from tests.small_run import planted_shards


def text(words: str | None, index: int = 0, *, reason: str | None = None) -> TextToScore:
    return TextToScore(
        text=words, text_source="synthetic", text_index=index, logprob=-2.0, reason=reason
    )


def image_to_score(number: int, *texts: TextToScore) -> ImageToScore:
    image = planted_shards()[0][number].image
    payload = b"" if image is None else image[1]
    digest = hashlib.sha256(payload).hexdigest()
    return ImageToScore(
        image=SourceImage(key=f"{number:032x}", payload=payload, sha256=digest), texts=texts
    )


def numbers(
    itm_prob: Sequence[float | None], *, vector: Sequence[float] = (1.0, 0.0)
) -> TextScores:
    return TextScores(
        itm_prob=list(itm_prob), itc_cos=[0.25] * len(itm_prob), num_tokens=[3] * len(itm_prob),
        image_vector=list(vector),
    )  # fmt: skip


def test_numbers_go_to_the_texts_they_belong_to() -> None:
    row = image_to_score(0, text("a"), text(None, 1, reason="text_missing"), text("c", 2))
    scored = scored_image(row, numbers([0.5, 0.75]))
    assert [(s.text, s.itm_prob, s.reason) for s in scored.scores] == [
        ("a", 0.5, None), (None, None, "text_missing"), ("c", 0.75, None)
    ]  # fmt: skip
    assert {s.logprob for s in scored.scores} == {-2.0}


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_score_that_is_no_number_is_a_reason_of_its_own(bad: float) -> None:
    scored = scored_image(image_to_score(0, text("a"), text("b", 1)), numbers([bad, 0.5]))
    assert [(s.itm_prob, s.reason) for s in scored.scores] == [
        (None, "score_not_finite"), (0.5, None)
    ]  # fmt: skip
    assert scored.scores[0].detail == f"itm_prob is {bad}, itc_cos is 0.25"


def test_a_filter_without_probabilities_leaves_them_null_and_the_text_scored() -> None:
    scored = scored_image(image_to_score(0, text("a")), numbers([None]))
    assert [(s.itm_prob, s.itc_cos, s.reason) for s in scored.scores] == [(None, 0.25, None)]


def test_a_vector_that_is_no_vector_is_left_out() -> None:
    scored = scored_image(image_to_score(0, text("a")), numbers([0.5], vector=(nan, 0.0)))
    assert scored.vector is None
    assert scored.scores[0].reason is None


def test_a_text_keeps_its_own_reason_when_its_image_fails_too() -> None:
    row = unscored(
        image_to_score(0, text("a"), text(" ", 1, reason="text_empty")), "bytes_changed", "d"
    )
    assert [s.reason for s in row.scores] == ["bytes_changed", "text_empty"]


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[ScoreWorker]:
    scorer = load_scorer(models / "filter", device="cpu", dtype="float32", num_threads=1)
    worker = ScoreWorker(scorer, ImageDecoder(ImageLimits()), batch_images=3)
    yield worker
    worker.close()


def test_images_with_any_number_of_texts_share_batches(worker: ScoreWorker) -> None:
    rows = [
        image_to_score(0, text("a red circle"), text("a blue square", 1), text("x", 2)),
        image_to_score(1),
        image_to_score(2, text(None, reason="text_missing")),
        image_to_score(3, text("a star")),
    ]
    scored = worker(rows)
    assert [len(s.scores) for s in scored] == [3, 0, 1, 1]
    assert all(s.vector is not None and s.vector.key == r.image.key
               for s, r in zip(scored, rows, strict=True))  # fmt: skip
    assert len({s.itm_prob for s in scored[0].scores}) == 3


def test_the_order_of_images_changes_no_score(worker: ScoreWorker) -> None:
    rows = [image_to_score(i, text("a red circle")) for i in range(6)]
    forward, backward = worker(rows), worker(rows[::-1])[::-1]
    assert [s.vector for s in forward] == [s.vector for s in backward]
    assert [s.scores[0].itm_prob for s in forward] == [s.scores[0].itm_prob for s in backward]


def test_a_broken_image_s_texts_have_the_reason(worker: ScoreWorker) -> None:
    broken = next(i for i, p in enumerate(planted_shards()[0]) if p.name == "cut")
    refused, sound = worker([image_to_score(broken, text("a")), image_to_score(0, text("a"))])
    assert (refused.scores[0].reason, refused.vector) == ("image_unreadable", None)
    assert sound.scores[0].reason is None


def test_a_captioner_is_no_filter(models: Path) -> None:
    with pytest.raises(CheckpointError, match="a matcher is 'BlipForImageTextRetrieval'"):
        load_scorer(models / "captioner", device="cpu", dtype="float32", num_threads=1)
