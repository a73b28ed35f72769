from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError
from capfilt.runtime.cluster import UNSAFE_SWITCHES, ClusterSettings, connect
from capfilt.runtime.ray_pool import RayPool


@pytest.mark.parametrize("switch", UNSAFE_SWITCHES)
def test_a_switch_that_lets_files_run_code_is_refused(switch: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(switch, "1")
    with pytest.raises(CapfiltError, match=f"{switch} is set: it lets files run code"):
        connect(ClusterSettings())


def test_the_token_can_be_read_by_its_owner_only(pool: RayPool):
    mode = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_an_existing_connection_is_used_and_left_alone(pool: RayPool):
    cluster = connect(ClusterSettings(address="nowhere:1"))
    cluster.close()
    cluster.check_room([])  # still answers


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(CapfiltError, match=r"no Ray cluster at '127.0.0.1:1' \(pool.address\)"):
        connect(ClusterSettings(address="127.0.0.1:1"))
