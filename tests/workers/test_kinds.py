from __future__ import annotations

import pytest

from capfilt.errors import CheckpointError
from capfilt.workers.kinds import (
    check_dtype,
    check_filter,
    check_role,
    gives_match_probability,
    is_blip,
)


def test_a_run_that_recorded_no_kind_used_blip() -> None:
    assert is_blip(None)
    assert is_blip("blip")
    assert not is_blip("clip")


@pytest.mark.parametrize(
    ("model_type", "given"),
    [(None, True), ("blip", True), ("siglip", True), ("siglip2", True), ("clip", False)],
)
def test_clip_alone_gives_no_probability(model_type: str | None, given: bool) -> None:
    assert gives_match_probability(model_type) is given


def test_a_model_that_cannot_be_the_filter_is_refused_with_a_list_of_those_that_can() -> None:
    with pytest.raises(CheckpointError) as refused:
        check_filter("some/bert", "bert")
    assert str(refused.value) == (
        "some/bert: a model of type 'bert' cannot be the filter; types that can: "
        "blip, clip, metaclip_2, siglip, siglip2"
    )
    check_filter("some/clip", "clip")


def test_int8_is_for_blip_alone() -> None:
    with pytest.raises(CheckpointError) as refused:
        check_dtype("some/clip", "clip", "int8")
    assert str(refused.value) == (
        "some/clip: a model of type 'clip' cannot compute in int8, which is for BLIP; "
        "set its dtype: float32"
    )
    check_dtype("some/clip", "clip", "bfloat16")
    check_dtype("some/blip", "blip", "int8")


@pytest.mark.parametrize("architecture", [None, "BlipForPreTraining", "CLIPModel"])
@pytest.mark.parametrize("role", ["captioner", "filter"])
def test_a_model_not_made_for_the_other_role_may_have_either(
    architecture: str | None, role: str
) -> None:
    check_role("some/model", role, architecture)
