from __future__ import annotations

import pytest
import torch

from capfilt_blip.tasks.placement import torch_device, torch_dtype


def test_a_device_that_is_there_is_taken() -> None:
    assert torch_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"device is '{name}', which cannot be used here"
    ) as caught:
        torch_device(name)
    assert "\n" not in str(caught.value)


def test_a_dtype_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32"):
        torch_dtype("int8")  # type: ignore[arg-type]  # the point of the test
