"""Where a model computes and in what: the names a user may give."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar, get_args

import torch

from capfilt_blip.blip import BlipCaptioner, BlipMatcher
from capfilt_blip.int8 import quantise

Device: TypeAlias = str | torch.device
"""As torch understands it: "cpu", "cuda", "cuda:1"."""

Dtype = Literal["float32", "bfloat16", "float16"]

NumberFormat = Literal["float32", "bfloat16", "float16", "int8"]
"""A dtype, or int8: linear maps in 8-bit numbers and the rest in float32, on CPUs; see `int8`."""

ModelT = TypeVar("ModelT", BlipCaptioner, BlipMatcher)


def torch_device(name: Device) -> torch.device:
    """Return the torch device of a name.

    Raises:
        ValueError: torch does not know it, or this machine or build of torch does not have it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device is {str(name)!r}, which cannot be used here: {reason}") from error
    return device


def torch_dtype(name: Dtype) -> torch.dtype:
    """Return the torch dtype of a name.

    Raises:
        ValueError: there is no such name.
    """
    if name not in get_args(Dtype):
        raise ValueError(f"dtype is {name!r}; it must be one of {', '.join(get_args(Dtype))}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def weights_dtype(name: NumberFormat) -> torch.dtype:
    """Return the torch dtype that weights are read in: int8 is made of float32.

    Raises:
        ValueError: there is no such name.
    """
    return torch.float32 if name == "int8" else torch_dtype(name)


def placed(model: ModelT, *, device: Device, dtype: NumberFormat) -> ModelT:
    """Move a model to a device and a number format, in place, and to eval mode.

    Raises:
        ValueError: it cannot compute there, or not in this format.
    """
    place = torch_device(device)
    if dtype == "int8" and place.type != "cpu":
        raise ValueError(
            f"dtype is 'int8', which is for CPUs; device is {str(device)!r}: "
            "use device 'cpu', or dtype 'bfloat16'"
        )
    model = model.to(place, weights_dtype(dtype)).eval()
    return quantise(model) if dtype == "int8" else model
