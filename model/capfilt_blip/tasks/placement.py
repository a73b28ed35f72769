"""Where a model computes and in what: the names a user may give."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch

Device: TypeAlias = str | torch.device
"""As torch understands it: "cpu", "cuda", "cuda:1"."""

Dtype = Literal["float32", "bfloat16", "float16"]


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
