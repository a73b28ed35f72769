from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from math import inf, nan
from pathlib import Path

import pytest

from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.cascade import Cascade
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
    planted = planted_shards()[0][number].image
    payload = b"" if planted is None else planted[1]
    digest = hashlib.sha256(payload).hexdigest()
    image = SourceImage(key=f"{number:032x}", payload=payload, sha256=digest)
    return ImageToScore(key=image.key, read_image=lambda: image, texts=texts)


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
    assert all(s.vector is not None and s.vector.key == r.key
               for s, r in zip(scored, rows, strict=True))  # fmt: skip
    assert len({s.itm_prob for s in scored[0].scores}) == 3


def test_the_order_of_images_changes_no_score(worker: ScoreWorker) -> None:
    rows = [image_to_score(i, text("a red circle")) for i in range(6)]
    forward, backward = worker(rows), worker(rows[::-1])[::-1]
    assert [s.vector for s in forward] == [s.vector for s in backward]
    assert [s.scores[0].itm_prob for s in forward] == [s.scores[0].itm_prob for s in backward]


def test_texts_of_any_length_come_back_to_their_images(worker: ScoreWorker) -> None:
    rows = [image_to_score(i, text("x " * count)) for i, count in enumerate((40, 1, 20, 12, 2))]
    scored = worker(rows)
    assert [s.scores[0].num_tokens for s in scored] == [40, 1, 20, 12, 2]
    assert [s.scores[0].key for s in scored] == [row.key for row in rows]
    for row, together in zip(rows, scored, strict=True):
        assert worker([row]) == [together]


def test_a_prepared_shard_is_scored_in_its_own_order(worker: ScoreWorker) -> None:
    rows = [image_to_score(i, text("x " * count)) for i, count in enumerate((40, 1, 20, 12, 2))]
    expected = worker(rows)
    ahead = worker.prepare(rows)
    assert list(ahead) == rows
    assert worker(ahead) == expected
    assert worker(ahead) == expected  # a second try


@pytest.fixture(scope="module")
def cosines(worker: ScoreWorker) -> list[float]:
    """Of `MANY`, sorted."""
    scored = worker(many())
    return sorted(s.itc_cos for image in scored for s in image.scores if s.itc_cos is not None)


def many() -> list[ImageToScore]:
    words = ["a red circle", "a blue square", "star " * 14, "x", "two"]
    return [
        image_to_score(i, text(words[i % 5]), text(None, 1, reason="text_missing"),
                       text(words[i % 3], 2))
        for i in range(8)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cascading(models: Path, cosines: list[float]) -> Iterator[ScoreWorker]:
    cascade = Cascade(itc_cos_drop=cosines[4], itc_cos_keep=cosines[11], audit_share=0.5, seed=3)
    scorer = load_scorer(models / "filter", device="cpu", dtype="float32", num_threads=1)
    worker = ScoreWorker(scorer, ImageDecoder(ImageLimits()), batch_images=3, cascade=cascade)
    yield worker
    worker.close()


def test_a_cascade_leaves_out_itm_where_itc_decides_and_changes_no_other_bit(
    worker: ScoreWorker, cascading: ScoreWorker, cosines: list[float]
) -> None:
    whole = [s for image in worker(many()) for s in image.scores]
    found = [s for image in cascading(many()) for s in image.scores]
    for before, after in zip(whole, found, strict=True):
        assert after.itc_cos == before.itc_cos
        if before.itc_cos is None:
            assert (after.decided_by, after.audited) == (None, False)
            continue
        low, high = before.itc_cos <= cosines[4], before.itc_cos >= cosines[11]
        assert after.decided_by == ("itc_low" if low else "itc_high" if high else "itm")
        computed = after.decided_by == "itm" or after.audited
        assert after.itm_prob == (before.itm_prob if computed else None)
    assert {s.decided_by for s in found} == {None, "itm", "itc_low", "itc_high"}
    assert {s.audited for s in found if s.decided_by in ("itc_low", "itc_high")} == {True, False}
    assert not any(s.audited for s in found if s.decided_by == "itm")


def test_a_cascade_gives_the_same_whoever_else_is_in_the_shard(cascading: ScoreWorker) -> None:
    together = cascading(many())
    assert cascading(many()[::-1])[::-1] == together
    assert [cascading([row])[0] for row in many()] == together


def test_a_broken_image_s_texts_have_the_reason(worker: ScoreWorker) -> None:
    broken = next(i for i, p in enumerate(planted_shards()[0]) if p.name == "cut")
    refused, sound = worker([image_to_score(broken, text("a")), image_to_score(0, text("a"))])
    assert (refused.scores[0].reason, refused.vector) == ("image_unreadable", None)
    assert sound.scores[0].reason is None


def test_a_captioner_is_no_filter(models: Path) -> None:
    with pytest.raises(CheckpointError, match="a matcher is 'BlipForImageTextRetrieval'"):
        load_scorer(models / "captioner", device="cpu", dtype="float32", num_threads=1)
