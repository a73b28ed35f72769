"""What is made of img2dataset's answers; img2dataset itself is in test_fetch_child.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from capfilt.errors import MissingDependencyError, ShardError
from capfilt.io.fetch import (
    Fetch,
    FetchOptions,
    FetchSpec,
    fetch_shard,
    image_extension,
    reason_of,
    refuse_outage,
    require_img2dataset,
    source_key,
)

OPTIONS = FetchOptions(
    urls_per_shard=100,
    timeout_s=1.0,
    retries=0,
    max_bytes=1000,
    threads=4,
    allowed_hosts=("localhost:80",),
    user_agent_token="capfilt",
)
NO_RESOLVER = "<urlopen error [Errno -3] Temporary failure in name resolution>"


def lost(detail: str | None) -> Fetch:
    return Fetch(source_key="00000-000000", payload=None, reason="fetch_failed", detail=detail)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("<urlopen error refused by capfilt: localhost is 127.0.0.1>", "url_refused"),
        ("refused by capfilt: 'http://a@b/' holds a user name", "url_refused"),
        ("<urlopen error unknown url type: ftp>", "url_refused"),
        ("unknown url type: ''", "url_refused"),
        ("<urlopen error no host given>", "url_refused"),
        ("nonnumeric port: '80abc'", "url_refused"),
        ("URL can't contain control characters. '/a b' (found at least ' ')", "url_refused"),
        (
            "HTTP Error 302: Found - Redirection to url 'file:///etc/hosts' is not allowed",
            "url_refused",
        ),
        ("HTTP Error 404: Not Found", "http_error"),
        ("HTTP Error 418: refused by capfilt: timed out, x-robots-tag", "http_error"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would", "http_error"),
        ("opted out by X-Robots-Tag: noai", "opted_out"),
        ("timed out", "fetch_timeout"),
        ("<urlopen error timed out>", "fetch_timeout"),
        ("timed out: not finished after 20 s", "fetch_timeout"),
        ("<urlopen error [Errno 110] Connection timed out>", "fetch_timeout"),
        ("<urlopen error [Errno 111] Connection refused>", "fetch_failed"),
        ("<urlopen error [Errno -2] Name or service not known>", "fetch_failed"),
        (NO_RESOLVER, "fetch_failed"),
        ("body larger than 20,000,000 bytes", "fetch_failed"),
        ("body cut: 5 bytes are missing", "fetch_failed"),
        ("[Errno 104] Connection reset by peer", "fetch_failed"),
        ("no answer was recorded", "fetch_failed"),
    ],
)
def test_an_error_has_its_reason(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("beginning", "extension"),
    [
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"\x89PNG\r\n\x1a\n\0", "png"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "jpg"),
        (b"BM6\0", "bmp"),
        (b"<html>", "jpg"),
        (b"", "jpg"),
    ],
)
def test_an_image_is_named_by_what_it_is(beginning, extension):
    assert image_extension(beginning) == extension


def test_names_sort_as_the_list_does():
    rows = [(0, 0), (0, 9), (0, 10), (0, 99_999), (1, 0), (10, 0)]
    names = [source_key(*row) for row in rows]
    assert names == sorted(names)
    assert names[1] == "00000-000009"


def test_an_instruction_is_read_back_as_it_was_written():
    spec = FetchSpec(
        shard=3, urls_file="/u.arrow", output_folder="/o", parent_pid=7, options=OPTIONS
    )
    assert FetchSpec.from_json(spec.to_json()) == spec


def test_img2dataset_is_asked_for_by_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'capfilt\[download\]'"):
        require_img2dataset()


def test_an_outage_is_no_property_of_the_urls():
    fetches = [lost(NO_RESOLVER)] * 11 + [lost("HTTP Error 404: Not Found")] * 10
    with pytest.raises(ShardError, match="network seems to be down: 11 of 21 URLs"):
        refuse_outage(fetches)


def test_a_shard_of_which_half_is_lost_for_good_is_accepted():
    refuse_outage([lost(NO_RESOLVER)] * 10 + [lost("HTTP Error 404: Not Found")] * 10)
    refuse_outage([lost("<urlopen error [Errno -2] Name or service not known>")] * 100)
    refuse_outage([lost(NO_RESOLVER)] * 9)  # a handful may well be broken names
    refuse_outage([])


def program(folder: Path, *lines: str) -> str:
    """A program that stands in for Python, and so for the fetching process."""
    path = folder / "python"
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def test_a_fetching_process_that_fails_is_quoted(tmp_path, monkeypatch):
    last_words = "OSError: [Errno 28] No space left on device"
    script = program(tmp_path, "echo Traceback >&2", f"echo '{last_words}' >&2", "exit 3")
    monkeypatch.setattr(sys, "executable", script)
    with pytest.raises(ShardError) as caught:
        fetch_shard(0, [("http://example.org/", None)], OPTIONS)
    assert str(caught.value) == f"fetching ended with code 3: {last_words}"


def test_a_fetching_process_that_is_killed_is_not_its_urls_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path, "kill -KILL $$"))
    with pytest.raises(ShardError, match="killed by SIGKILL; was memory"):
        fetch_shard(0, [("http://example.org/", None)], OPTIONS)


def test_the_fetching_process_gets_no_credentials_and_no_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/ours.pem")
    script = program(tmp_path, f"env > {tmp_path}/environment", "exit 1")
    monkeypatch.setattr(sys, "executable", script)
    with pytest.raises(ShardError, match="no message"):
        fetch_shard(0, [("http://example.org/", None)], OPTIONS)
    given = (tmp_path / "environment").read_text()
    assert "secret" not in given
    assert "proxy" not in given.lower()
    assert "SSL_CERT_FILE=/etc/ssl/ours.pem" in given
    assert f"HOME={os.path.expanduser('~')}\n" not in given
