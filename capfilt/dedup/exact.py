"""The exact tier: images with the same bytes are one image.

It goes first because it is nearly free and because it takes the largest groups (one popular file
with a hundred thousand copies) out of the way of the tiers that compare images pair by pair.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def equality_codes(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A small number per row, equal where the value is.

    Args:
        values: (N,) strings, none of them null.
    """
    # 64-bit offsets: a hundred million digests are more text than 32-bit ones can reach.
    chunks = values.cast(pa.large_string()).dictionary_encode().chunks
    return np.concatenate([np.zeros(0, np.int64), *(chunk.indices.to_numpy() for chunk in chunks)])


def first_of_equal(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each row, the first row with the same code.

    Args:
        codes: (N,) as from `equality_codes`, in [0, N).

    Returns:
        (N,) row numbers, none above the row's own; a row's own number if it is the first.
    """
    first = np.zeros(len(codes), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the first row is written last, and stays
    of_each: npt.NDArray[np.int64] = first[codes]
    return of_each
