from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.runtime.cluster import ClusterSettings
from capfilt.runtime.lanes import Limits
from capfilt.runtime.ray_pool import RayPool, RaySettings
from tests.runtime.jobs import DoublingJob


@pytest.fixture(scope="session")
def pool() -> Iterator[RayPool]:
    """A pool on a cluster of two CPUs, started once for all tests."""
    settings = RaySettings(
        cluster=ClusterSettings(address="local", num_cpus=2, object_store_bytes=100_000_000),
        limits=Limits(placement_grace_s=0.5),
    )
    pool = RayPool(settings)
    yield pool
    pool.close()


@pytest.fixture
def job(tmp_path: Path) -> DoublingJob:
    return DoublingJob(folder=tmp_path)
