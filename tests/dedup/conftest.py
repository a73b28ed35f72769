from __future__ import annotations

import pytest

from capfilt.dedup.index import limit_threads


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tests run beside each other; FAISS threads that spin would multiply their time."""
    limit_threads(1)
