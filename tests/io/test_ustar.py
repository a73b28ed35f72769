"""Headers known from before: read as `tarfile` reads them, or not at all."""

from __future__ import annotations

import tarfile

import pytest

from capfilt.io.ustar import KnownHeaders


def header(name: str = "a.jpg", *, kind: bytes = b"0", size: int = 5, owner: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.uid, info.mtime = kind, size, owner, 1_700_000_000
    return info.tobuf(tarfile.USTAR_FORMAT)


def with_checksum(block: bytes) -> bytes:
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def by_tarfile(block: bytes) -> tuple[str, bytes, int] | None:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError):
        return None
    return info.name, info.type, info.size


def knowing(*blocks: bytes) -> KnownHeaders:
    known = KnownHeaders()
    for block in blocks:
        known.learn(block)
    return known


@pytest.mark.parametrize("name", ["b.txt", "n" * 100, "ü/🦊.jpg"])
def test_a_header_like_one_before_is_read(name: str) -> None:
    block = header(name, size=8**11 - 1)
    assert KnownHeaders().read(block) is None
    assert knowing(header()).read(block) == (name, b"0", 8**11 - 1)


def test_records_and_files_are_remembered_side_by_side() -> None:
    known = knowing(header("pax", kind=b"x"), header())
    assert known.read(header("p", kind=b"x", size=9)) == ("p", b"x", 9)
    assert known.read(header("b", size=7)) == ("b", b"0", 7)


def test_a_header_of_another_owner_is_left_to_the_careful_reader() -> None:
    assert knowing(header()).read(header("b.txt", owner=1000)) is None


@pytest.mark.parametrize("kind", [b"\0", b"1", b"5", b"7", b"L", b"S", b"g"])
def test_only_files_and_records_are_remembered(kind: bytes) -> None:
    assert knowing(header(kind=kind)).read(header(kind=kind)) is None


def test_a_name_with_a_prefix_is_left_to_the_careful_reader() -> None:
    block = header("folder/" * 20 + "a.jpg")
    assert knowing(block).read(block) is None


def test_a_piece_of_a_header_is_none() -> None:
    assert knowing(header()).read(header()[:511]) is None
    assert knowing(header()).read(b"") is None


def test_no_flipped_bit_is_passed_over() -> None:
    known, block = knowing(header()), header("b.txt")
    for bit in range(512 * 8):
        damaged = bytearray(block)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert known.read(bytes(damaged)) is None


@pytest.mark.parametrize("byte", [0, 32, ord("5"), ord("8"), ord("_"), ord("/"), 0x80, 0xFF])
def test_what_is_read_is_what_tarfile_reads(byte: int) -> None:
    known, num_read = knowing(header()), 0
    for at in range(512):
        block = header("name of 30 characters.jpg.....")
        block = with_checksum(block[:at] + bytes([byte]) + block[at + 1 :])
        found = known.read(block)
        assert found is None or found == by_tarfile(block)
        num_read += found is not None
    assert num_read >= 100  # a name of any bytes, at least


def test_the_largest_sum_of_bytes_is_exact() -> None:
    """Beyond 65,521 the short checksum would begin again at 0."""
    block = with_checksum(b"\xff" * 100 + header()[100:265] + b"\xff" * 64 + header()[329:])
    assert sum(block) > 40_000
    assert knowing(block).read(block) == ("\\xff" * 100, b"0", 5)


def test_a_sum_of_signed_bytes_is_left_to_the_careful_reader() -> None:
    """Some old writers count bytes over 127 as negative, and tarfile reads them."""
    block = bytearray(header("é.jpg"))
    block[148:154] = b"%06o" % (int(block[148:154], 8) - 2 * 256)
    assert by_tarfile(bytes(block)) == ("é.jpg", b"0", 5)
    assert knowing(header()).read(bytes(block)) is None
