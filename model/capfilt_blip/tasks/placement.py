"""Where a model computes and in what: the names a user may give."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch

Device: TypeAlias = str | torch.device
"""As torch understands it: "cpu", "cuda", "cuda:1"."""

Dtype = Literal["float32", "bfloat16", "float16"]


def torch_dtype(name: Dtype) -> torch.dtype:
    """Return the torch dtype of a name.

    Raises:
        ValueError: there is no such name.
    """
    if name not in get_args(Dtype):
        raise ValueError(f"dtype is {name!r}; it must be one of {', '.join(get_args(Dtype))}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
