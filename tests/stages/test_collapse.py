"""The guard: it stops what is surely past a limit, and says what to do."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from capfilt.config import GuardSection
from capfilt.errors import CapfiltError
from capfilt.stages.collapse import check_round, most_vocabulary_kept, problems
from capfilt.stages.diversity import Diversity, diversity_of, share_of
from capfilt.stages.round_report import RoundReport, SourceFigures

DEFAULT = GuardSection()
VARIED = diversity_of(pa.array([f"picture {i} of {i % 20}" for i in range(200)]))


def report(
    captions: Diversity = VARIED, *, rejected: int = 50, judged: int = 200, round_: int = 0
) -> RoundReport:
    texts = SourceFigures(kept=share_of(1, 2), mean_itm_prob=None, mean_itc_cos=None)
    return RoundReport(
        round=round_, plan="", noise_ratio=share_of(rejected, judged), web=texts, synthetic=texts,
        images_kept=0, texts_per_kept_image=None, images_published=0, captions=captions,
        audit_disagreement=None, training=(),
    )  # fmt: skip


def repeating(count: int, total: int) -> Diversity:
    """One caption so many times, all others different."""
    return diversity_of(pa.array(["a dog"] * count + [f"a {i}" for i in range(total - count)]))


def with_words(vocabulary: int, *, seen_once: int = 0) -> Diversity:
    return replace(VARIED, vocabulary=vocabulary, words_seen_once=seen_once)


def broken(now: RoundReport, before: RoundReport | None = None, **limits: object) -> list[str]:
    return list(problems(now, before, DEFAULT.model_copy(update=limits)))


def test_a_varied_round_passes() -> None:
    assert broken(report(), report()) == []


# The 95 % Wilson interval of 28 of 200 is 9.9 % to 19.5 %, that of 29 is 10.3 % to 20.0 %.
@pytest.mark.parametrize(("count", "stops"), [(28, False), (29, True)])
def test_a_repeated_caption_stops_a_round_once_its_interval_is_past_the_limit(
    count: int, stops: bool
) -> None:
    assert bool(broken(report(repeating(count, 200)))) == stops


# That of 162 of 200 begins at 74.999 %, that of 163 at 75.5 %.
@pytest.mark.parametrize(("rejected", "stops"), [(162, False), (163, True)])
def test_noise_stops_a_round_once_its_interval_is_past_the_limit(
    rejected: int, stops: bool
) -> None:
    assert bool(broken(report(rejected=rejected))) == stops


def test_a_share_at_the_limit_passes() -> None:
    assert broken(report(repeating(200, 200)), max_commonest_caption_share=1.0) == []
    assert broken(report(rejected=200), max_noise_ratio=1.0) == []
    assert broken(report(rejected=0), max_noise_ratio=0.0) == []


@pytest.mark.parametrize(("vocabulary", "stops"), [(20, False), (19, True)])
def test_losing_more_than_half_of_the_words_stops_a_round(vocabulary: int, stops: bool) -> None:
    assert bool(broken(report(with_words(vocabulary)), report(with_words(40)))) == stops


def test_words_seen_once_make_a_vocabulary_uncertain() -> None:
    # (30 + 1.96 * 4) / (100 - 1.96 * 5) = 37.84 / 90.2
    now, before = with_words(30, seen_once=16), with_words(100, seen_once=25)
    assert most_vocabulary_kept(now, before) == pytest.approx(0.41951, abs=1e-4)


def test_a_vocabulary_that_may_all_be_chance_proves_nothing() -> None:
    assert broken(report(with_words(1)), report(with_words(3, seen_once=3))) == []


def test_the_first_round_has_no_vocabulary_to_lose() -> None:
    assert broken(report(with_words(1))) == []


def test_few_captions_are_not_judged() -> None:
    assert broken(report(repeating(99, 99))) == []
    assert broken(report(repeating(100, 100))) != []
    assert broken(report(repeating(99, 99)), min_captions=99) != []


def test_a_limit_set_to_null_is_not_asked() -> None:
    worst, before = report(repeating(200, 200), rejected=200), report(with_words(4000))
    assert len(broken(worst, before)) == 3
    off = {"max_commonest_caption_share": None, "max_noise_ratio": None}
    assert broken(worst, before, **off, min_vocabulary_kept=None) == []


def test_the_line_says_what_was_measured_what_is_allowed_and_what_to_set() -> None:
    with pytest.raises(CapfiltError) as caught:
        check_round(report(repeating(100, 200), round_=1), report(), DEFAULT, where="/runs/web")
    assert str(caught.value) == (
        "/runs/web: round 1 is not trained on: the commonest caption, 'a dog', is 50.0% of 200 "
        "(95 % interval 43.1% to 56.9%), and guard.max_commonest_caption_share allows 0.1. Its "
        "tables stay: look at them with `capfilt report`; a limit set to null is off"
    )
    assert caught.value.exit_code == 1


def test_every_broken_limit_is_said_in_one_line() -> None:
    now, before = report(with_words(10), rejected=190), report(with_words(1_000))
    with pytest.raises(CapfiltError) as caught:
        check_round(now, before, DEFAULT, where="run")
    line = str(caught.value)
    assert "the filter rejects 95.0% of 200 (95 % interval 91.0% to 97.3%) captions" in line
    assert "fell from 1,000 to 10 words, 1.0% (95 % interval up to 1.0%)" in line
    assert "guard.max_noise_ratio allows 0.75; " in line
    assert "\n" not in line


def test_a_caption_in_the_line_is_short_and_cannot_act() -> None:
    captions = diversity_of(pa.array(["\x1b[31m\n" + "long " * 50] * 200))
    [problem] = broken(report(captions))
    assert "\\x1b[31m\\nlong" in problem
    assert "\x1b" not in problem
    assert len(problem) < 250
