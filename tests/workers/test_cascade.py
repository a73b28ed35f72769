from __future__ import annotations

from math import nan

import numpy as np
import pytest

from capfilt.workers.cascade import Cascade

CASCADE = Cascade(itc_cos_drop=0.2, itc_cos_keep=0.4, audit_share=0.1, seed=0)
KEYS = [f"{number:032x}" for number in range(20_000)]


def audited(cascade: Cascade) -> set[str]:
    return {key for key in KEYS if cascade.audits(key, text_source="web", text_index=0)}


@pytest.mark.parametrize(
    ("itc_cos", "by"),
    [(-1.0, "itc_low"), (0.2, "itc_low"), (0.201, "itm"), (0.399, "itm"), (0.4, "itc_high"),
     (1.0, "itc_high"), (nan, "itm")],
)  # fmt: skip
def test_itc_decides_at_the_bounds_and_beyond(itc_cos: float, by: str) -> None:
    assert CASCADE.decided_by(itc_cos) == by


def test_a_bound_that_float32_cannot_hold_still_counts_as_reached() -> None:
    assert CASCADE.decided_by(float(np.float32(0.2))) == "itc_low"  # float32(0.2) is above 0.2
    kept = Cascade(itc_cos_drop=0.1, itc_cos_keep=0.7, audit_share=0.0, seed=0)
    assert kept.decided_by(float(np.float32(0.7))) == "itc_high"  # float32(0.7) is below 0.7


def test_the_audit_has_its_share() -> None:
    # Of 20,000 draws of 0.1 the deviation is 42; four of them are 0.0085.
    assert len(audited(CASCADE)) / len(KEYS) == pytest.approx(0.1, abs=0.0085)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 20_000)])
def test_an_audit_of_nothing_or_all_is_that(share: float, count: int) -> None:
    cascade = Cascade(itc_cos_drop=0.2, itc_cos_keep=0.4, audit_share=share, seed=0)
    assert len(audited(cascade)) == count


def test_a_larger_share_keeps_the_texts_of_a_smaller_one() -> None:
    larger = Cascade(itc_cos_drop=0.2, itc_cos_keep=0.4, audit_share=0.2, seed=0)
    assert audited(CASCADE) < audited(larger)


def test_another_seed_source_or_index_is_another_draw() -> None:
    other = Cascade(itc_cos_drop=0.2, itc_cos_keep=0.4, audit_share=0.1, seed=1)
    synthetic = {k for k in KEYS if CASCADE.audits(k, text_source="synthetic", text_index=0)}
    second = {k for k in KEYS if CASCADE.audits(k, text_source="synthetic", text_index=1)}
    draws = [audited(CASCADE), audited(other), synthetic, second]
    for i, one in enumerate(draws):
        for another in draws[:i]:
            # Independent draws share 0.01 of the keys: 200, with a deviation of 14.
            assert 140 < len(one & another) < 260
