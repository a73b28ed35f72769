import pytest

from capfilt.miniature.measure import duplicate_quality, filter_quality, truth_share
from capfilt.miniature.world import Cell, Thing, scene_of


def test_filter_quality_counts_what_is_kept_and_true():
    # kept:  1 1 1 0 0 ; true: 1 0 1 1 0 -> right 2 of 3 kept, 2 of 3 true
    quality = filter_quality([True, True, True, False, False], [True, False, True, True, False])
    assert (quality.num_right, quality.num_chosen, quality.num_true) == (2, 3, 3)
    assert (quality.precision, quality.recall) == (2 / 3, 2 / 3)


def test_of_nothing_kept_there_is_no_precision():
    quality = filter_quality([False], [True])
    assert (quality.precision, quality.recall) == (None, 0.0)


def test_of_nothing_true_there_is_no_recall():
    quality = filter_quality([True], [False])
    assert (quality.precision, quality.recall) == (0.0, None)


def test_flags_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        filter_quality([True, False], [True])


def test_truth_share_counts_what_is_no_statement_as_not_true():
    star = Thing(size="small", colour="red", kind="star", cell=Cell(row=0, column=0))
    scene = scene_of(background="white", things=(star,), seed=0)
    share = truth_share(["a red star", "a blue star", "photo", None], [scene] * 4)
    assert (share.num_true, share.num_texts, share.share) == (1, 4, 0.25)


def test_of_no_texts_there_is_no_share():
    assert truth_share([], []).share is None


def test_duplicate_quality_counts_pairs():
    # planted: {a b c} {d e} f -> ab ac bc de ; found: {a b} {c d e} f -> ab cd ce de ; right ab de
    planted = {"a": "1", "b": "1", "c": "1", "d": "2", "e": "2", "f": "3"}
    found = {"a": "a", "b": "a", "c": "c", "d": "c", "e": "c", "f": "f"}
    quality = duplicate_quality(found, planted)
    assert (quality.num_right, quality.num_chosen, quality.num_true) == (2, 4, 4)


def test_the_names_of_groups_do_not_matter():
    quality = duplicate_quality({"a": "x", "b": "x"}, {"a": "7", "b": "7"})
    assert (quality.precision, quality.recall) == (1.0, 1.0)


def test_groups_of_one_make_no_pairs():
    quality = duplicate_quality({"a": "a", "b": "b"}, {"a": "1", "b": "2"})
    assert (quality.precision, quality.recall) == (None, None)


def test_groups_of_other_samples_are_refused():
    with pytest.raises(AssertionError, match="the same samples"):
        duplicate_quality({"a": "a"}, {"b": "b"})
