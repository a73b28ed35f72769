"""Tars: what is in them, where, and that no damage passes for the end of the archive."""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.io import tar
from capfilt.io.tar import (
    Member,
    TarDamage,
    group_samples,
    scan,
    scan_at,
    split_name,
    write_tar,
)
from capfilt.io.ustar import KnownHeaders

FILES = [("a.jpg", b"j" * 700), ("a.txt", b"one"), ("b.jpg", b""), ("b.txt", b"t" * 512)]
CLOSING = bytes(1024)


def members(payload: bytes) -> list[Member]:
    return list(scan(io.BytesIO(payload)))


def names(payload: bytes) -> list[str]:
    return [member.name for member in members(payload)]


def contents(payload: bytes) -> list[tuple[str, bytes]]:
    return [(m.name, payload[m.offset : m.offset + m.num_bytes]) for m in members(payload)]


def until_damage(payload: bytes) -> tuple[list[Member], TarDamage | None]:
    found = []
    try:
        for member in scan(io.BytesIO(payload)):
            found.append(member)
    except TarDamage as damage:
        return found, damage
    return found, None


def made_by_tarfile(
    files: list[tuple[str, bytes]], *, form: int, infos: list[tarfile.TarInfo] | None = None
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for info in infos or []:
            archive.addfile(info)
        for name, payload in files:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return stream.getvalue()


def header(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % 512)


def test_what_is_written_is_found_where_it_is() -> None:
    assert contents(write_tar(FILES)) == FILES


def test_a_tar_is_read_by_tarfile_too() -> None:
    with tarfile.open(fileobj=io.BytesIO(write_tar(FILES))) as archive:
        found = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
        infos = archive.getmembers()
    assert found == FILES
    assert {(i.mtime, i.uid, i.gid, i.mode, i.uname) for i in infos} == {(0, 0, 0, 0o444, "")}


def test_the_same_files_give_the_same_bytes() -> None:
    assert write_tar(FILES) == write_tar(list(FILES))
    assert write_tar(FILES) != write_tar(FILES[::-1])


def test_an_empty_tar_is_two_blocks_of_zeros() -> None:
    assert write_tar([]) == CLOSING
    assert members(CLOSING) == []


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_a_tar_cannot_hold_is_not_written(name: str) -> None:
    with pytest.raises(AssertionError, match="cannot be named"):
        write_tar([(name, b"x")])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.jpg", "folder/" * 20 + "a.jpg", "ümlaut.jpg"])
def test_all_formats_of_tar_are_read(form: int, name: str) -> None:
    payload = made_by_tarfile([(name, b"12345"), ("b", b"x")], form=form)
    assert contents(payload) == [(name, b"12345"), ("b", b"x")]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_are_read(form: int) -> None:
    name = "é" * 3000 + ".jpg"
    assert names(made_by_tarfile([(name, b"1")], form=form)) == [name]


def test_a_pax_size_counts() -> None:
    record = b"11 size=3\n"
    record = str(len(record) - 1).encode() + record[2:]
    payload = header("pax", kind=b"x", size=len(record)) + padded(record)
    payload += header("a", size=0) + padded(b"123") + CLOSING
    assert contents(payload) == [("a", b"123")]


def test_a_name_that_is_not_utf8_keeps_its_bytes_apart() -> None:
    payload = write_tar([("a?.jpg", b"1"), ("b?.jpg", b"2")])
    for old, new in ((b"a?.jpg", b"a\xff.jpg"), (b"b?.jpg", b"a\xfe.jpg")):
        payload = with_new_name(payload, old, new)
    assert names(payload) == ["a\\xff.jpg", "a\\xfe.jpg"]


def with_new_name(payload: bytes, old: bytes, new: bytes) -> bytes:
    at = payload.index(old)
    block = new + payload[at + len(new) : at + 512]
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    return payload[:at] + block[:148] + b"%06o\0 " % total + block[156:] + payload[at + 512 :]


@pytest.mark.parametrize(
    "kind",
    [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"5"],
)
def test_links_devices_and_folders_are_passed_by(kind: bytes) -> None:
    info = tarfile.TarInfo("../../etc/passwd")
    info.type, info.linkname = kind, "/etc/passwd"
    payload = made_by_tarfile(FILES, form=tarfile.PAX_FORMAT, infos=[info])
    assert contents(payload) == FILES


@pytest.mark.parametrize("kind", [b"V", b"D", b"Z"])
def test_members_of_unknown_kind_are_passed_by_with_their_bytes(kind: bytes) -> None:
    hidden = header("hidden.jpg", size=512)
    payload = header("x", kind=kind, size=1024) + hidden + bytes(512) + write_tar(FILES)
    assert names(payload) == [name for name, _ in FILES]


def test_sparse_files_are_passed_by() -> None:
    sparse = bytearray(header("s.jpg", kind=b"S", size=512))
    sparse[482] = 1  # the map goes on in one more block
    total = sum(sparse[:148]) + sum(sparse[156:]) + 8 * 32
    sparse[148:156] = b"%06o\0 " % total
    record = b"22 GNU.sparse.major=1\n"
    pax = header("pax", kind=b"x", size=len(record)) + padded(record) + header("p.jpg", size=3)
    payload = bytes(sparse) + bytes(512) + b"s" * 512 + pax + padded(b"123") + write_tar(FILES)
    assert contents(payload)[-4:] == FILES
    assert len(members(payload)) == 4


def test_names_that_would_leave_a_folder_are_only_names(tmp_path: Path) -> None:
    hostile = ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:\\x.jpg", "x\n.jpg"]
    assert names(write_tar([(name, b"1") for name in hostile])) == hostile
    assert list(tmp_path.iterdir()) == []


def test_a_cut_at_any_byte_is_damage_and_what_came_before_is_found() -> None:
    payload = write_tar(FILES)
    whole = members(payload)
    for length in range(0, len(payload), 3):
        found, damage = until_damage(payload[:length])
        assert damage is not None
        assert damage.at_byte == length
        assert found == [m for m in whole if m.offset + m.num_bytes <= length]


@pytest.mark.parametrize("zero_blocks", [0, 1])
def test_missing_closing_blocks_are_damage(zero_blocks: int) -> None:
    payload = write_tar(FILES)[:-1024] + bytes(512 * zero_blocks)
    found, damage = until_damage(payload)
    assert len(found) == 4
    assert "closing block" in str(damage)


def test_every_flipped_bit_of_a_header_is_damage_or_changes_nothing() -> None:
    payload = write_tar([("a.jpg", b"12345"), ("b.jpg", b"6")])
    whole = members(payload)
    num_damaged = 0
    for bit in range(1024 * 8, 1536 * 8):  # the header of b.jpg
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << (bit % 8)
        found, damage = until_damage(bytes(damaged))
        num_damaged += damage is not None
        assert (damage and (damage.at_byte, found) == (1024, whole[:1])) or found == whole
    assert num_damaged > 4000


def test_what_follows_the_closing_blocks_is_damage() -> None:
    two = write_tar(FILES) + write_tar(FILES)
    found, damage = until_damage(two)
    assert len(found) == 4
    assert damage is not None
    assert damage.at_byte == len(two) // 2
    assert str(damage) == "the tar is damaged at byte 5,120: bytes follow the closing blocks"


def test_padding_after_the_closing_blocks_is_fine() -> None:
    assert len(members(write_tar(FILES) + bytes(9216))) == 4


@pytest.mark.parametrize("payload", [b"", b"x" * 100, b"\x89PNG" * 300, bytes(511)])
def test_what_is_not_a_tar_is_damage_at_once(payload: bytes) -> None:
    found, damage = until_damage(payload)
    assert found == []
    assert damage is not None


@pytest.mark.parametrize("size", [2**30 + 1, 2**50, -1, -(2**40)])
def test_an_absurd_size_is_damage_and_costs_nothing(size: int) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = abs(size)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        block[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    _, damage = until_damage(bytes(block) + CLOSING)
    assert damage is not None
    assert "1,073,741,824 are allowed" in damage.why


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_an_absurd_extension_header_is_damage(kind: bytes) -> None:
    _, damage = until_damage(header("x", kind=kind, size=2**20 + 1) + bytes(2**20 + 1024))
    assert damage is not None
    assert "1,048,576 are allowed" in damage.why


@pytest.mark.parametrize(
    "record",
    [b"0 a=b\n", b"99 path=x\n", b"9 path=xy", b"path=x\n", b"5 a\n12 path=x\n", b"10 size=-1\n",
     b"-7 a=b\n", b"1 a=b\n"],
)  # fmt: skip
def test_a_broken_pax_record_is_damage(record: bytes) -> None:
    payload = header("p", kind=b"x", size=len(record)) + padded(record) + write_tar(FILES)
    found, damage = until_damage(payload)
    assert found == []
    assert damage is not None
    assert "PAX" in damage.why


def test_too_many_members_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_MEMBERS", 3)
    found, damage = until_damage(write_tar(FILES))
    assert len(found) == 3
    assert damage is not None
    assert damage.why == "more than 3 members"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 3000))
def test_any_bytes_give_members_inside_the_file_or_damage(noise: bytes, at: int) -> None:
    payload = write_tar(FILES)
    payload = payload[:at] + noise + payload[at + len(noise) :]
    found, _ = until_damage(payload)
    assert all(0 <= m.offset <= m.offset + m.num_bytes <= len(payload) for m in found)


NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
    | st.text("aA./é🦊\n ", min_size=1, max_size=300),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_any_name_survives_the_round_trip(some_names: list[str]) -> None:
    files = [(name, name.encode()) for name in some_names]
    assert contents(write_tar(files)) == files


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_grouping_loses_no_member_and_repeats_no_sample(some_names: list[str]) -> None:
    found = members(write_tar([(name, b"1") for name in some_names]))
    samples = group_samples(found)
    assert sum(len(sample.members) for sample in samples) == len(found)
    assert len({(s.source_key, s.occurrence) for s in samples}) == len(samples)
    for sample in samples:
        for extension, member in sample.members.items():
            assert split_name(member.name) == (sample.source_key, extension)


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("000.jpg", "000", "jpg"),
        ("a/b.c/000.seg.PNG", "a/b.c/000", "seg.png"),
        ("./000.jpg", "./000", "jpg"),
        ("README", "README", ""),
        ("a/.hidden", "a/", "hidden"),
        ("a.", "a", ""),
        ("🦊.jpg", "🦊", "jpg"),
        ("..", "", "."),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_last_part(
    name: str, key: str, extension: str
) -> None:
    assert split_name(name) == (key, extension)


def grouped(*some_names: str) -> list[tuple[str, int, list[str]]]:
    found = (Member(name=name, offset=0, num_bytes=0) for name in some_names)
    return [(s.source_key, s.occurrence, list(s.members)) for s in group_samples(found)]


def test_parts_that_are_not_neighbours_are_joined() -> None:
    assert grouped("a.jpg", "b.jpg", "a.txt", "b.txt") == [
        ("a", 0, ["jpg", "txt"]),
        ("b", 0, ["jpg", "txt"]),
    ]


def test_a_name_that_comes_twice_is_two_samples() -> None:
    assert grouped("a.jpg", "a.txt", "a.JPG", "a.txt") == [
        ("a", 0, ["jpg", "txt"]),
        ("a", 1, ["jpg", "txt"]),
    ]


@pytest.mark.slow
def test_webdataset_splits_names_alike() -> None:
    webdataset = pytest.importorskip("webdataset.tariterators")
    for name in ("000.jpg", "a/b.c/000.seg.png", "./000.jpg", "x/y.jpg", "🦊.a.b"):
        assert webdataset.base_plus_ext(name) == split_name(name)


@pytest.fixture(scope="module")
def large() -> Iterator[bytes]:
    rng = random.Random(0)
    yield write_tar([(f"{i:06d}.txt", rng.randbytes(i % 900)) for i in range(6000)])


def test_scanning_is_as_fast_as_promised(large: bytes) -> None:
    start = time.process_time()
    num_members = len(members(large))
    assert num_members / (time.process_time() - start) > 5_000  # 60,000 on a quiet 2-core machine


def test_scanning_agrees_with_tarfile(large: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(large)) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
    assert [(m.name, m.offset, m.num_bytes) for m in members(large)] == expected


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([512 * n for n in range(0, 14)]), st.integers(0, 511), st.integers(0, 255))
def test_remembering_headers_changes_nothing(block: int, at: int, byte: int) -> None:
    plain = write_tar(FILES) if at % 2 else made_by_tarfile(FILES, form=tarfile.PAX_FORMAT)
    changed = plain[: block + at] + bytes([byte]) + plain[block + at + 1 :]
    one = changed[block : block + 512]
    total = sum(one[:148]) + sum(one[156:]) + 8 * 32
    payload = changed[: block + 148] + b"%06o\0 " % total + changed[block + 156 :]
    with pytest.MonkeyPatch.context() as without:
        without.setattr(KnownHeaders, "read", lambda self, block: None)
        expected, expected_damage = until_damage(payload)
    found, damage = until_damage(payload)
    assert found == expected
    assert str(damage) == str(expected_damage)


def test_files_whose_records_hold_only_a_time_are_read_quickly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As webdataset writes them: PAX records before every member."""
    careful = []
    frombuf = tarfile.TarInfo.frombuf
    monkeypatch.setattr(
        tarfile.TarInfo, "frombuf", lambda *args: careful.append(args) or frombuf(*args)
    )
    payload = b""
    for number in range(50):
        info = tarfile.TarInfo(f"{number}.txt")
        info.size, info.mtime = 3, 1_700_000_000.5 + number
        payload += info.tobuf(tarfile.PAX_FORMAT) + padded(b"abc")
    assert contents(payload + CLOSING) == [(f"{number}.txt", b"abc") for number in range(50)]
    assert len(careful) == 2  # the first records and the first file


def test_small_members_cost_no_read_of_their_own() -> None:
    files = [
        (f"{number:03d}.{extension}", bytes(size))
        for number in range(100)
        for extension, size in (("jpg", 20_000), ("txt", 40), ("json", 300))
    ]
    payload, asked = write_tar(files), []

    def read_at(position: int, num_bytes: int) -> bytes:
        asked.append(num_bytes)
        return payload[position : position + num_bytes]

    assert len(list(scan_at(read_at, end=len(payload)))) == 300
    assert len(asked) <= 100 + 4  # one between two images, and the end
    assert sum(asked[:100]) < len(payload) / 4


def test_a_file_whose_padding_is_cut_while_it_is_read_is_damage() -> None:
    payload = write_tar(FILES) + bytes(9216)
    left = payload[:-9000]

    def read_at(position: int, num_bytes: int) -> bytes:
        return left[position : position + num_bytes]

    with pytest.raises(TarDamage, match="cut while it was read") as damage:
        list(scan_at(read_at, end=len(payload)))
    assert damage.value.at_byte == len(left)


def test_no_code_here_extracts_or_unpickles() -> None:
    source = Path(tar.__file__).read_text()
    assert not re.search(r"\.extract|pickle\.|tarfile\.open", source)


def test_a_compressed_tar_is_called_so() -> None:
    packed = gzip.compress(write_tar([("a.txt", b"a")]))
    with pytest.raises(TarDamage, match="gunzip it"):
        list(scan(io.BytesIO(packed)))
