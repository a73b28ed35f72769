"""Joining a Ray cluster, or starting one on this machine, with settings fit for a batch run.

A cluster started here asks for a token (in a file only its owner can read), has no dashboard, sends
no usage statistics, takes the children of a dying worker with it, and vanishes with this process.
Its ports still listen on all interfaces: on a shared network, put a firewall around it.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import capfilt.pool
from capfilt.errors import CapfiltError
from capfilt.pool import AnyJob

log = logging.getLogger(__name__)

# Each lets Ray Data unpickle what it finds in files, that is: run code from somebody's data.
UNSAFE_SWITCHES = (
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
)
CONNECT_S = 10.0
LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",
    "RAY_memory_usage_threshold": "0.90",
    "RAY_local_fs_capacity_threshold": "0.90",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Which cluster, and how large one started here is."""

    address: str | None = None
    """Cluster to join; `local` starts one; None joins that of a Ray job, or else starts one."""
    num_cpus: int | None = None
    """CPUs of a cluster started here; None takes those of the machine."""
    object_store_bytes: int = 200_000_000
    """Shared memory of a cluster started here. Small: shards never travel through it."""


class Cluster:
    """A connection to a Ray cluster.

    Args:
        ours: whether closing it disconnects (and ends a cluster started here).
        grows: whether machines may join later, so that what fits nowhere now may fit then.
        folder: temporary files of a cluster started here.
    """

    def __init__(self, *, ours: bool, grows: bool, folder: Path | None = None) -> None:
        self._ours = ours
        self._grows = grows
        self._folder = folder

    def check_room(self, chain: Sequence[AnyJob]) -> None:
        """See that each job's worker fits on some machine.

        Raises:
            CapfiltError: it does not, and no machine will join.
        """
        machines = _machines()
        for job in chain:
            asked = {"CPU": job.resources.num_cpus, "GPU": job.resources.num_gpus}
            if any(_fits(asked, machine) for machine in machines):
                continue
            line = (
                f"stage {job.stage}: a worker asks for {asked['CPU']:g} CPUs and {asked['GPU']:g} "
                f"GPUs; no machine has both (largest: {_largest(machines, 'CPU'):g} CPUs, "
                f"{_largest(machines, 'GPU'):g} GPUs); lower pool.{job.stage}.cpus or .gpus"
            )
            if not self._grows:
                raise CapfiltError(line)
            log.warning("%s, or wait for a machine to join", line)

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started here."""
        if self._ours:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def connect(settings: ClusterSettings) -> Cluster:
    """Join a cluster or start one.

    Inside `ray job submit` the variable RAY_ADDRESS leads to the cluster of the job. A process
    that is connected already stays so, and `Cluster.close` leaves that connection alone.

    Raises:
        CapfiltError: the cluster does not answer, or a setting would let data run code.
    """
    for switch in UNSAFE_SWITCHES:
        if os.environ.get(switch, "0").lower() not in ("", "0", "false"):
            raise CapfiltError(f"{switch} is set: it lets files run code; unset it")
    if ray.is_initialized():
        return Cluster(ours=False, grows=True)
    logging.getLogger("ray").setLevel(logging.ERROR)  # its advice is about settings we made
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return _start_here(settings)
    try:
        _knock(address)
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise CapfiltError(f"no Ray cluster at {address!r} (pool.address): {why}") from error
    return Cluster(ours=True, grows=True)


def _knock(address: str) -> None:
    """See that something listens: Ray would try for a minute and then abort the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _start_here(settings: ClusterSettings) -> Cluster:
    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    _provide_token()
    folder = _short_folder()
    with _importable_in_workers():
        ray.init(
            address="local",
            num_cpus=settings.num_cpus,
            object_store_memory=settings.object_store_bytes,
            include_dashboard=False,
            _temp_dir=str(folder / "ray"),  # Ray opens it to everybody; the folder above is ours
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    return Cluster(ours=True, grows=False, folder=folder)


def _short_folder() -> Path:
    """A folder of ours under a short path: Ray's socket names must stay below 108 characters."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="capfilt-", dir=base if len(base) < 30 else "/tmp"))


def _provide_token() -> None:
    """Make the cluster's token ourselves: Ray would write it readable for everybody.

    It is kept as long as the process, because Ray reads it once and remembers it.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    folder = _short_folder()
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@contextmanager
def _importable_in_workers() -> Iterator[None]:
    """Let workers import this package when it runs from a source tree.

    They inherit the environment in which the cluster is started, but not our `sys.path`.
    """
    root = Path(capfilt.pool.__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        yield
        return
    before = os.environ.get("PYTHONPATH")
    paths = [str(root), str(root / "model"), *([before] if before else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _machines() -> list[Mapping[str, float]]:
    """Resources of the machines that are there now."""
    nodes: Callable[[], list[Any]] = ray.nodes
    return [node["Resources"] for node in nodes() if node["Alive"]]


def _fits(asked: Mapping[str, float], machine: Mapping[str, float]) -> bool:
    return all(amount <= machine.get(name, 0.0) for name, amount in asked.items())


def _largest(machines: Sequence[Mapping[str, float]], resource: str) -> float:
    return max((machine.get(resource, 0.0) for machine in machines), default=0.0)
