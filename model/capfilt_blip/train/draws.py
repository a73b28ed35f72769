"""What training draws at random, keyed by step and process instead of drawn from one long stream.

Nothing of it then has to be saved: step 700 draws the same whether 699 steps ran before it in this
process, in one that was killed, or on another number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def key_of(*parts: int | str) -> int:
    """Give a seed, in [0, 2**32), that depends on all parts and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


@contextmanager
def keyed_dropout(key: int, *, device: torch.device) -> Iterator[None]:
    """Have dropout and dropped paths drawn by a key within the block.

    They draw from torch's global generators, which are left as they were found.

    Args:
        key: from `key_of`.
        device: of the model.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


def uniform_draws(key: int, *, num_draws: int) -> Tensor:
    """Give (2, num_draws) float64 in [0, 1), on the CPU, the same on every machine."""
    generator = torch.Generator("cpu").manual_seed(key)
    return torch.rand(2, num_draws, generator=generator, dtype=torch.float64, device="cpu")
