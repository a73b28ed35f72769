"""The recipes in jobs/ are sound, and a run can be submitted to a cluster as a job."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from capfilt.config import load_recipe
from tests.small_run import SmallRun

ROOT = Path(__file__).resolve().parents[1]
START_S = 90.0
JOB_S = 300.0


@pytest.mark.parametrize("name", ["smoke", "reference"])
def test_a_shipped_recipe_is_sound(name: str) -> None:
    assert load_recipe(str(ROOT / "jobs" / f"{name}.yaml")).run == f"runs/{name}"


def test_the_reference_recipe_keeps_to_the_paper() -> None:
    recipe = load_recipe(str(ROOT / "jobs" / "reference.yaml"))
    assert (recipe.caption.num_captions, recipe.caption.top_p, recipe.caption.top_k) == (1, 0.9, 0)
    assert (recipe.select.policy, recipe.select.min_itm_prob) == ("both", 0.5)
    assert (recipe.train.queue_size, recipe.train.weight_decay) == (57_600, 0.05)


@pytest.mark.parametrize("name", ["cluster", "rayjob"])
def test_a_cluster_file_is_yaml(name: str) -> None:
    assert yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """A cluster of this machine with a job server; the environment that finds it."""
    folder = tempfile.mkdtemp(prefix="capfilt-cluster-")
    dashboard = free_port()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
        # The default port of the agent may be taken by a cluster of another test.
        f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=150000000", "--disable-usage-stats",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_job_server(environment["RAY_API_SERVER_ADDRESS"])
        yield environment
    finally:
        kill_processes_that_name(folder)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def kill_processes_that_name(folder: str) -> None:
    """Every process of the cluster has its folder on the command line."""
    for entry in Path("/proc").iterdir():
        try:
            named = entry.name.isdigit() and folder.encode() in (entry / "cmdline").read_bytes()
            if named and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            continue


def wait_for_job_server(address: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no job server at {address} after {START_S:g} s")


@pytest.mark.slow
def test_a_run_is_submitted_as_a_job(
    cluster: dict[str, str], small_run: SmallRun, tmp_path: Path
) -> None:
    run = SmallRun(folder=tmp_path / "run", web=small_run.web, models=small_run.models)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run.recipe(pool={"kind": "ray"}).model_dump(mode="json")))
    job = submitted(cluster, "run", str(recipe), folder=tmp_path)
    assert job.returncode == 0, job.stdout + job.stderr
    published = small_run.tables().of("publish").store.url
    assert_same_files(Path(published), Path(run.tables().of("publish").store.url))


def submitted(
    cluster: dict[str, str], *command: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Submit a job; the server answers before its agent can take one, so ask until it can."""
    deadline = time.monotonic() + START_S
    while True:
        job = subprocess.run(
            [str(ROOT / "jobs" / "submit.sh"), *command],
            env=cluster, cwd=folder, capture_output=True, text=True, timeout=JOB_S, check=False,
        )  # fmt: skip
        if "No available agent" not in job.stderr + job.stdout or time.monotonic() > deadline:
            return job
        time.sleep(1)


def assert_same_files(left: Path, right: Path) -> None:
    names = sorted(p.name for p in left.glob("*.parquet"))
    assert names == sorted(p.name for p in right.glob("*.parquet"))
    assert all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def submitted_without_a_cluster(**environment: str) -> tuple[int, str]:
    """A job sent where no server is: exit code and standard error."""
    ran = subprocess.run(
        [str(ROOT / "jobs" / "submit.sh"), "run", "recipe.yaml"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stderr


def test_a_cluster_out_of_reach_is_one_line() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    code, said = submitted_without_a_cluster(PATH=tools, RAY_API_SERVER_ADDRESS=address)
    assert code == 1
    assert said == (
        f"jobs/submit.sh: no Ray job server answers at {address} ([Errno 111] Connection refused); "
        "set RAY_API_SERVER_ADDRESS to your cluster's, or start one here: ray start --head\n"
    )


def test_a_machine_without_ray_is_told_what_to_install() -> None:
    code, said = submitted_without_a_cluster(PATH="/usr/bin:/bin")
    assert (code, said) == (
        1, "jobs/submit.sh: there is no ray command here; run pip install 'ray[default]'\n"
    )  # fmt: skip


def test_submit_without_a_command_says_how() -> None:
    ran = subprocess.run(
        [str(ROOT / "jobs" / "submit.sh")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "jobs/submit.sh run" in ran.stdout
