from __future__ import annotations

from capfilt.miniature.alt_texts import AltKind
from capfilt.miniature.teach.exam import marks, questions


def test_questions_are_half_true_and_say_so_by_kind() -> None:
    asked = questions("test", 200)
    assert 80 <= sum(question.is_true for question in asked) <= 120
    assert all(question.is_true == (question.kind is AltKind.TRUE) for question in asked)


def test_questions_of_a_seed_are_the_same() -> None:
    first, again = (questions("test", 3) for _ in range(2))
    assert [q.text for q in first] == [q.text for q in again]
    assert first[2].image.tobytes() == again[2].image.tobytes()


def test_marks_count_what_is_right() -> None:
    asked = questions("test", 20)
    truth = [question.is_true for question in asked]
    texts = [question.text for question in asked]
    found = marks(asked, kept=truth, captions=texts, captions_kept=[True] * 20)
    assert found.filter.precision == found.filter.recall == 1.0
    assert set(found.right_by_kind.values()) == {1.0}
    assert found.captions.num_true == sum(truth) == found.captions_kept.num_true
