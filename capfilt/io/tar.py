"""Tars, read where they lie: no extraction, no unpickling, and no damage passed over in silence.

`scan` walks the headers and tells where each regular file's bytes are, so that later stages read
them by offset. It is stricter than `tarfile`, which takes a bad or cut header for the end of the
archive: an archive is whole only if its two closing blocks are there and nothing follows them.
What a tar cannot know, that the bytes inside a member changed, is for the caller's SHA-256.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple

from capfilt.errors import StorageError
from capfilt.io.ustar import Header, KnownHeaders
from capfilt.io.window import ReadAt, Window, stream_reader

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER_BYTES = 2**30
MAX_MEMBERS = 1_000_000
GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, 2.3.1
MAX_HEADER_BYTES = 2**20  # of a long name or PAX header
TIMES = {b"mtime", b"atime", b"ctime"}  # all that most writers put into PAX records
PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
WITHOUT_BYTES = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE}
    | {tarfile.DIRTYPE, tarfile.FIFOTYPE}
)  # as tarfile does: what their size field says is not in the archive
EXTENDS_NEXT = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
    | {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)


class TarDamage(StorageError):
    """The tar breaks here; what follows cannot be trusted.

    Args:
        at_byte: position of the first byte that is wrong or missing.
        why: what is wrong with it.
    """

    def __init__(self, at_byte: int, why: str) -> None:
        super().__init__(at_byte, why)
        self.at_byte = at_byte
        self.why = why

    def __str__(self) -> str:
        return f"the tar is damaged at byte {self.at_byte:,}: {self.why}"


class CompressedTar(TarDamage):
    """The file is whole, but cannot be read at a place: it is compressed."""


class Member(NamedTuple):
    """A regular file inside a tar; a named tuple, since a shard has tens of thousands.

    Args:
        name: as stored; bytes that are not UTF-8 are spelled as hex escapes.
        offset: of its first byte in the tar.
        num_bytes: its length.
    """

    name: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSample:
    """The members that make one sample.

    Args:
        source_key: their name up to the first dot of its last part.
        occurrence: 0 for the first sample of that key in the tar, then 1, 2 ...
        members: by extension: what follows that dot, in lower case.
    """

    source_key: str
    occurrence: int
    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class _Overrides:
    """What extension headers say about the member after them."""

    name: str | None = None
    num_bytes: int | None = None
    sparse: bool = False


NO_OVERRIDES = _Overrides()


def scan(stream: BinaryIO) -> Iterator[Member]:
    """Find the regular files of a tar; links, devices, folders and sparse files are passed by.

    Args:
        stream: seekable, of an uncompressed tar: USTAR, GNU or PAX.

    Yields:
        Members in the order of the archive, each wholly inside the file.

    Raises:
        TarDamage: after the last sound member, if the archive is cut, broken, or past a limit.
    """
    end = stream.seek(0, os.SEEK_END)
    yield from scan_at(stream_reader(stream), end=end)


def scan_at(read_at: ReadAt, *, end: int) -> Iterator[Member]:
    """As `scan`, of a file that is read by position.

    Args:
        read_at: reads the tar.
        end: its length in bytes.
    """
    window, known = Window(read_at), KnownHeaders()
    position, num_members, overrides = 0, 0, NO_OVERRIDES
    while (header := _read_header(window, known, position, end)) is not None:
        name, kind, _ = header
        start = position + BLOCK
        if kind == tarfile.GNUTYPE_SPARSE:
            start = _after_sparse_map(window, start, end)
        num_bytes = _checked_size(header, overrides, position)
        if start + num_bytes > end:
            raise TarDamage(end, f"{num_bytes:,} bytes of {name!r} should end later")
        position = start + -(-num_bytes // BLOCK) * BLOCK
        if kind in EXTENDS_NEXT:
            overrides = _extended(kind, window.read(start, num_bytes), start, overrides)
            continue
        if kind in REGULAR and not overrides.sparse:
            num_members += 1
            if num_members > MAX_MEMBERS:
                raise TarDamage(start - BLOCK, f"more than {MAX_MEMBERS:,} members")
            yield Member(name if overrides.name is None else overrides.name, start, num_bytes)
        overrides = NO_OVERRIDES
    _check_end(window, position, end)


def group_samples(members: Iterable[Member]) -> list[TarSample]:
    """Join the members of each sample, wherever in the tar they lie.

    A key and extension seen before begin, or join, the next sample of that key: a tar may hold
    one name twice, and both are samples.

    Returns:
        Samples in the order of their first members.
    """
    samples: dict[tuple[str, int], dict[str, Member]] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    for member in members:
        key, extension = split_name(member.name)
        parts = samples.setdefault((key, 0), {})
        if extension in parts:
            repeats[key, extension] += 1
            parts = samples.setdefault((key, repeats[key, extension]), {})
        parts[extension] = member
    return [
        TarSample(source_key=key, occurrence=occurrence, members=parts)
        for (key, occurrence), parts in samples.items()
    ]


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: cut at the first dot of the name's last part.

    WebDataset's rule, so `a/b.c.jpg` is part `c.jpg` of sample `a/b`.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def write_tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    """A tar of files, in the order given: the same files give the same bytes.

    Times, owners and permissions are constants; PAX headers appear only where a name needs one.

    Args:
        files: name and content; names are non-empty UTF-8 text without NUL.
    """
    parts: list[bytes] = []
    for name, payload in files:
        assert name and "\0" not in name, f"a tar member cannot be named {name!r}"
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(payload), 0o444
        parts += [
            header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"),
            payload,
            bytes(-len(payload) % BLOCK),
        ]
    return b"".join([*parts, bytes(2 * BLOCK)])


def _read_header(window: Window, known: KnownHeaders, position: int, end: int) -> Header | None:
    """The header at a position; None if the closing blocks begin there."""
    block = window.read(position, BLOCK)
    if (header := known.read(block)) is not None:
        return header
    if position == 0 and block.startswith(GZIP_MAGIC):
        raise CompressedTar(0, "a compressed tar, and a plain one is needed; gunzip it")
    if len(block) < BLOCK:
        raise TarDamage(end, "the closing blocks are missing; the file was cut")
    if block.count(0) == BLOCK:
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarDamage(position, f"no sound member header ({error})") from error
    known.learn(block)
    return info.name, info.type, info.size


def _checked_size(header: Header, overrides: _Overrides, position: int) -> int:
    (name, kind, declared), limit = header, MAX_MEMBER_BYTES
    if kind in WITHOUT_BYTES:
        return 0
    if kind in EXTENDS_NEXT:
        limit = MAX_HEADER_BYTES
    elif overrides.num_bytes is not None:
        declared = overrides.num_bytes
    if not 0 <= declared <= limit:
        raise TarDamage(position, f"{name!r} says it has {declared:,} bytes; {limit:,} are allowed")
    return declared


def _extended(kind: bytes, payload: bytes, start: int, before: _Overrides) -> _Overrides:
    """What is known of the next member after one more extension header."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        name = payload.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        return replace(before, name=name)
    if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return _from_pax(payload, start, before)
    return before  # link targets and archive-wide comments say nothing about a file's bytes


def _from_pax(payload: bytes, start: int, before: _Overrides) -> _Overrides:
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(payload) and payload[position]:
        match = PAX_RECORD.match(payload, position)
        stop = position + int(match[1]) if match else 0
        if match is None or match.end() >= stop or payload[stop - 1 : stop] != b"\n":
            raise TarDamage(start + position, "no sound PAX record")
        records[match[2]] = payload[match.end() : stop - 1]
        position = stop
    if records.keys() <= TIMES:
        return before
    size = records.get(b"size")
    if size is not None and not re.fullmatch(rb"\d{1,20}", size):
        raise TarDamage(start, f"PAX size is {size[:20]!r}, a number was expected")
    name = records.get(b"path")
    return _Overrides(
        name=before.name if name is None else name.decode("utf-8", "backslashreplace"),
        num_bytes=before.num_bytes if size is None else int(size),
        sparse=before.sparse or any(key.startswith(b"GNU.sparse") for key in records),
    )


def _after_sparse_map(window: Window, start: int, end: int) -> int:
    """Where the bytes of an old GNU sparse file begin: its map may go on in blocks of its own."""
    goes_on = window.read(start - BLOCK, BLOCK)[482]
    while goes_on:
        block = window.read(start, BLOCK)
        if len(block) < BLOCK:
            raise TarDamage(end, "the map of a sparse file is cut")
        start, goes_on = start + BLOCK, block[504]
    return start


def _check_end(window: Window, position: int, end: int) -> None:
    """The archive closes with two blocks of zeros, and zeros are all that follows."""
    if end - position < 2 * BLOCK:
        raise TarDamage(end, "the second closing block is missing; the file was cut")
    while chunk := window.read(position, 2**20):
        rest = chunk.lstrip(b"\0")
        if rest:
            raise TarDamage(position + len(chunk) - len(rest), "bytes follow the closing blocks")
        position += len(chunk)
    if position < end:
        raise TarDamage(position, "the file was cut while it was read")
