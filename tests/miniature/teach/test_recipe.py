from __future__ import annotations

from pathlib import Path

import pytest

from capfilt.miniature.teach.__main__ import measure
from capfilt.miniature.teach.recipe import Plan, teach

SHORT = Plan(
    num_groups=160,
    num_sight_steps=1,
    num_first_steps=1,
    num_captioning_steps=1,
    num_captioner_steps=1,
    num_first_filter_steps=1,
    num_filter_steps=1,
    num_last_filter_steps=1,
    num_vector_steps=1,
)
WEIGHTS = Path(__file__).parents[3] / "capfilt" / "miniature" / "weights"


@pytest.mark.long
def test_the_recipe_ends_with_two_models_that_can_be_measured(tmp_path: Path) -> None:
    teach(tmp_path, plan=SHORT)
    found = measure(tmp_path, num_questions=4)
    assert found.captions.num_texts == 4


@pytest.mark.long
def test_the_shipped_models_are_as_good_as_the_model_card_says() -> None:
    found = measure(WEIGHTS, num_questions=300)
    assert found.filter.precision is not None and found.filter.precision > 0.93
    assert found.filter.recall is not None and found.filter.recall > 0.88
    assert found.captions.share is not None and found.captions.share > 0.83
    assert found.captions_kept.share is not None and found.captions_kept.share > 0.9


def test_the_shipped_weights_stay_small() -> None:
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 8_000_000
