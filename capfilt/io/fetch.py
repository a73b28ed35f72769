"""Fetch a shard of URLs with img2dataset, in a process of its own, and read back what it did.

img2dataset writes samples in the order they arrive. `fetch_shard` gives them back in the order of
the list, so that the shard made of them does not depend on which server was quick.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from capfilt.errors import MissingDependencyError, ShardError
from capfilt.io.guard import OPTED_OUT, REFUSED
from capfilt.io.tar import group_samples, scan
from capfilt.records import Reason

MAX_DETAIL_CHARS = 200

PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Environment variables the fetching process gets; above all no credentials, no proxies."""

MALFORMED = ("unknown url type", "no host given", "nonnumeric port", "url can't contain")
"""Parts of what Python's libraries say of URLs that can lead nowhere."""

OUTAGE = ("temporary failure in name resolution", "network is unreachable")
"""Parts of messages that speak of this machine's network, not of the URL."""

OUTAGE_MIN_URLS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How to fetch; see `config.DownloadSection` for each field."""

    urls_per_shard: int
    timeout_s: float
    retries: int
    max_bytes: int
    threads: int
    allowed_hosts: tuple[str, ...]
    user_agent_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSpec:
    """What the fetching process is told."""

    shard: int
    urls_file: str  # Arrow file with columns `caption` and `url`; img2dataset removes it
    output_folder: str
    parent_pid: int
    options: FetchOptions

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FetchSpec:
        """Read back what `to_json` wrote."""
        fields = json.loads(text)
        options = fields.pop("options")
        hosts = tuple(options.pop("allowed_hosts"))
        return cls(**fields, options=FetchOptions(**options, allowed_hosts=hosts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What became of one URL: the bytes as served, or why there are none."""

    source_key: str
    payload: bytes | None
    reason: str | None
    detail: str | None


def require_img2dataset() -> None:
    """Check that img2dataset is installed, without importing it.

    Raises:
        MissingDependencyError: it is not; names the command.
    """
    if importlib.util.find_spec("img2dataset") is None:
        raise MissingDependencyError(
            "download needs img2dataset, which is not installed; "
            "run `pip install 'capfilt[download]'`"
        )


def fetch_shard(
    shard: int, urls: Sequence[tuple[str | None, str | None]], options: FetchOptions
) -> list[Fetch]:
    """Fetch the URLs of one shard.

    Args:
        shard: its number; part of each sample's name.
        urls: URL and web text, at most `options.urls_per_shard`.
        options: how to fetch.

    Returns:
        One result per URL, in the same order.

    Raises:
        ShardError: the fetching process failed as a whole, or the network did.
    """
    with tempfile.TemporaryDirectory(prefix="capfilt-fetch-") as folder:
        spec = FetchSpec(
            shard=shard,
            urls_file=str(Path(folder) / "urls.arrow"),
            output_folder=folder,
            parent_pid=os.getpid(),
            options=options,
        )
        _write_urls(Path(spec.urls_file), urls)
        _run_child(Path(folder), spec)
        fetches = _results(Path(folder), shard, len(urls))
    refuse_outage(fetches)
    return fetches


def source_key(shard: int, row: int) -> str:
    """The name of a URL's sample in the shard made of it, such as `00003-000017`."""
    return f"{shard:05d}-{row:06d}"


def reason_of(error: str) -> Reason:
    """The reason behind a message of the guard, urllib or the system."""
    words = error.removeprefix("<urlopen error ").lower()
    if words.startswith("http error"):
        refused = "redirection to url" in words and "is not allowed" in words
        return Reason.URL_REFUSED if refused else Reason.HTTP_ERROR
    if words.startswith(REFUSED) or any(part in words for part in MALFORMED):
        return Reason.URL_REFUSED
    if words.startswith(OPTED_OUT.lower()):
        return Reason.OPTED_OUT
    if "timed out" in words:
        return Reason.FETCH_TIMEOUT
    return Reason.FETCH_FAILED


def refuse_outage(fetches: Sequence[Fetch]) -> None:
    """Refuse a shard most of which was lost because this machine's network was down.

    Raises:
        ShardError: more than half of the URLs, and not just a few.
    """
    lost = [f for f in fetches if any(part in (f.detail or "").lower() for part in OUTAGE)]
    if len(lost) >= OUTAGE_MIN_URLS and 2 * len(lost) > len(fetches):
        raise ShardError(
            f"the network seems to be down: {len(lost)} of {len(fetches)} URLs failed with words "
            f"such as {lost[0].detail!r}; see to it, then run the same command again"
        )


def image_extension(payload: bytes) -> str:
    """The file extension of an image by its first bytes; `jpg` if it is none we know."""
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if payload.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if payload[:4] == b"RIFF" and payload[8:12] == b"WEBP":
        return "webp"
    return "bmp" if payload.startswith(b"BM") else "jpg"


def _write_urls(path: Path, urls: Sequence[tuple[str | None, str | None]]) -> None:
    table = pa.table(
        {
            "caption": pa.array([text for _, text in urls], pa.string()),
            "url": pa.array([url or "" for url, _ in urls], pa.string()),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _run_child(folder: Path, spec: FetchSpec) -> None:
    path = folder / "spec.json"
    path.write_text(spec.to_json(), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-m", "capfilt.io.fetch_child", str(path)],
        env=_environment(folder),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C is for us: we end the shard first
        check=False,
    )
    if child.returncode < 0:
        killer = signal.Signals(-child.returncode).name
        raise ShardError(f"the fetching process was killed by {killer}; was memory short?")
    if child.returncode:
        words = child.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise ShardError(f"fetching ended with code {child.returncode}: {words[-1][:500]}")


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),
        "HOME": str(folder),
        "NO_ALBUMENTATIONS_UPDATE": "1",  # img2dataset's libraries call home
        "WANDB_MODE": "disabled",
    }


def _results(folder: Path, shard: int, num_urls: int) -> list[Fetch]:
    statuses = pa.parquet.read_table(
        folder / f"{shard:05d}.parquet", columns=["key", "error_message"]
    )
    errors = dict(zip(*(column.to_pylist() for column in statuses.columns), strict=True))
    if len(errors) != num_urls:
        raise ShardError(f"img2dataset reported on {len(errors)} of {num_urls} URLs")
    payloads = _payloads(folder / f"{shard:05d}.tar")
    # img2dataset's keys are row numbers with leading zeros: their order is the list's.
    return [
        _fetch(source_key(shard, row), payloads.get(key), errors[key])
        for row, key in enumerate(sorted(errors))
    ]


def _payloads(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        members = {s.source_key: s.members["jpg"] for s in group_samples(scan(file))}
        return {
            key: os.pread(file.fileno(), member.num_bytes, member.offset)
            for key, member in members.items()
        }


def _fetch(key: str, payload: bytes | None, error: str | None) -> Fetch:
    if payload is not None and error is None:
        return Fetch(source_key=key, payload=payload, reason=None, detail=None)
    words = " ".join((error or "no answer was recorded").split())[:MAX_DETAIL_CHARS]
    return Fetch(source_key=key, payload=None, reason=reason_of(words), detail=words)
