"""The program that fetches one shard of URLs: img2dataset's downloader, behind a guard.

    python -m capfilt.io.fetch_child SPEC.json

img2dataset fetches through `urllib.request.urlopen`, so the guard is an opener, installed before it
starts (`guard.py`). One process fetches one shard; img2dataset's own pool, logger and resume are
not used, since the pool of capfilt does that work.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import urllib.request
from pathlib import Path

from img2dataset.downloader import Downloader
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter

from capfilt.io.fetch import FetchOptions, FetchSpec
from capfilt.io.guard import GuardedOpener, Limits

PR_SET_PDEATHSIG = 1  # prctl(2)
PROGRAM = "img2dataset"
"""Named in the User-Agent that is sent, so rules for this robot are for us too."""


def main(spec_path: str) -> None:
    """Fetch the shard a spec file describes; the outcome lies in its output folder."""
    spec = FetchSpec.from_json(Path(spec_path).read_text(encoding="utf-8"))
    _end_with(spec.parent_pid)
    urllib.request.install_opener(GuardedOpener(_limits(spec.options)))
    _downloader(spec).download_shard((spec.shard, spec.urls_file))


def _end_with(parent_pid: int) -> None:
    """Die when the parent does, however it dies; also if it is dead by now."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the process that asked for this shard is gone")


def _limits(options: FetchOptions) -> Limits:
    return Limits(
        allowed_hosts=frozenset(host.lower() for host in options.allowed_hosts),
        max_bytes=options.max_bytes,
        deadline_s=2 * options.timeout_s,
        robots=frozenset({options.user_agent_token.lower(), PROGRAM}),
    )


def _downloader(spec: FetchSpec) -> Downloader:
    # Bytes are kept as served: no decoding here, no resizing, no re-encoding.
    resizer = Resizer(image_size=1, resize_mode="no", resize_only_if_bigger=False,
                      disable_all_reencoding=True)  # fmt: skip
    return Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=resizer,
        thread_count=spec.options.threads,
        save_caption=True,
        extract_exif=False,
        output_folder=spec.output_folder,
        column_list=["caption", "url"],
        timeout=spec.options.timeout_s,
        number_sample_per_shard=spec.options.urls_per_shard,
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=spec.options.retries,
        user_agent_token=spec.options.user_agent_token,
        disallowed_header_directives=None,  # the guard looks at them: img2dataset misses some
    )


if __name__ == "__main__":
    main(sys.argv[1])
