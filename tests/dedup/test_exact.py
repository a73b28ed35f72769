from __future__ import annotations

import numpy as np
import pyarrow as pa

from capfilt.dedup.exact import equality_codes, first_of_equal


def test_each_row_names_the_first_row_with_its_value() -> None:
    codes = equality_codes(pa.chunked_array([["b", "a", "b"], ["c", "a", "b"]]))
    assert first_of_equal(codes).tolist() == [0, 1, 0, 3, 1, 0]


def test_codes_agree_across_chunks() -> None:
    codes = equality_codes(pa.chunked_array([["x"], ["y"], ["x"]]))
    assert codes[0] == codes[2] != codes[1]


def test_no_values_give_no_rows() -> None:
    codes = equality_codes(pa.chunked_array([], pa.string()))
    assert first_of_equal(codes).tolist() == []


def test_many_copies_name_one_row() -> None:
    assert not np.any(first_of_equal(np.zeros(100_000, np.int64)))
