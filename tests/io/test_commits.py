"""A shard counts once its commit exists: accounting, conflicts, damage, two writers."""

from __future__ import annotations

import hashlib
import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.errors import AccountingError, DeterminismError, PlanError, StorageError
from capfilt.io.commits import Commit, NewFile, Table
from capfilt.io.files import LocalFiles
from capfilt.io.storage import Store

PLAN = "a" * 64


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(Store.at_url(str(tmp_path)), stage="index", round=0, plan=PLAN)


def rows(payload: bytes = b"rows") -> NewFile:
    return NewFile(role="rows", folder="", suffix=".parquet", payload=payload, rows=10)


def vectors(payload: bytes = b"vectors") -> NewFile:
    return NewFile(role="vectors", folder="vectors", suffix=".parquet", payload=payload, rows=9)


def commit(table: Table, shard: int = 7, payload: bytes = b"rows") -> Commit:
    return table.commit(
        shard, [rows(payload), vectors()], rows_in=10, kept=8, dropped={"bad": 2, "none": 0}
    )


def test_a_committed_shard_can_be_found_and_read(table: Table) -> None:
    committed = commit(table)
    assert table.find(7) == committed
    assert table.commits() == {7: committed}
    assert table.read(7) == b"rows"
    assert table.read(7, "vectors") == b"vectors"


def test_files_are_named_by_shard_and_content(table: Table) -> None:
    digest = hashlib.sha256(b"rows").hexdigest()
    ref = commit(table).file()
    assert ref.path == f"00007-{digest[:12]}.parquet"
    assert (ref.bytes, ref.sha256, ref.rows) == (4, digest, 10)
    assert commit(table).file("vectors").path.startswith("vectors/00007-")


def test_the_commit_file_is_canonical_json(table: Table, tmp_path: Path) -> None:
    commit(table)
    payload = (tmp_path / "_commits" / "00007.json").read_text()
    fields = json.loads(payload)
    assert payload == json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
    assert {name: fields[name] for name in ("v", "plan", "stage", "round", "shard")} == {
        "v": 1, "plan": PLAN, "stage": "index", "round": 0, "shard": 7
    }  # fmt: skip
    assert (fields["rows_in"], fields["kept"], fields["dropped"]) == (10, 8, {"bad": 2})


def test_commits_come_in_the_order_of_shards(table: Table) -> None:
    for shard in (100_000, 2, 10):
        commit(table, shard)
    assert list(table.commits()) == [2, 10, 100_000]


def test_an_empty_table_has_no_commits(table: Table) -> None:
    assert table.commits() == {}
    assert table.find(0) is None


def test_committing_again_confirms(table: Table) -> None:
    assert commit(table) == commit(table)


def test_a_shard_may_have_no_files(table: Table) -> None:
    table.commit(1, [], rows_in=0, kept=0, dropped={})
    assert table.commits()[1].files == ()


def test_files_without_a_commit_do_not_count(table: Table, tmp_path: Path) -> None:
    commit(table)
    (tmp_path / "_commits" / "00007.json").unlink()
    assert table.commits() == {}


@pytest.mark.parametrize(
    ("rows_in", "kept", "dropped"),
    [(10, 8, {"bad": 1}), (10, 8, {"bad": 3}), (10, 12, {"bad": -2}), (-1, -1, {})],
)
def test_rows_that_do_not_add_up_are_not_committed(
    table: Table, tmp_path: Path, rows_in: int, kept: int, dropped: dict[str, int]
) -> None:
    with pytest.raises(AccountingError, match=r"index, shard 7: .* rows in, but .* kept and"):
        table.commit(7, [rows()], rows_in=rows_in, kept=kept, dropped=dropped)
    assert list(tmp_path.iterdir()) == []


def test_other_content_under_one_plan_names_both_digests(table: Table) -> None:
    commit(table)
    with pytest.raises(DeterminismError) as caught:
        commit(table, payload=b"ROWS")
    for payload in (b"rows", b"ROWS"):
        assert hashlib.sha256(payload).hexdigest() in str(caught.value)
    assert "vectors" not in str(caught.value)
    assert table.read(7) == b"rows"


def test_other_counts_under_one_plan_are_a_determinism_error(table: Table) -> None:
    commit(table)
    with pytest.raises(DeterminismError, match="kept was 8 and is now 10"):
        table.commit(7, [rows(), vectors()], rows_in=10, kept=10, dropped={})


def test_another_plan_is_refused(table: Table) -> None:
    commit(table)
    other = replace(table, plan="b" * 64)
    for attempt in (lambda: commit(other), other.commits, lambda: other.read(7)):
        with pytest.raises(PlanError, match=f"made under plan {PLAN}, this run has plan bbbb"):
            attempt()


def test_a_commit_in_the_wrong_place_is_refused(table: Table, tmp_path: Path) -> None:
    commit(table)
    (tmp_path / "_commits" / "00007.json").rename(tmp_path / "_commits" / "00008.json")
    with pytest.raises(StorageError, match="shard 7; index, round 0, shard 8 belongs here"):
        table.commits()


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_lost_or_cut_file_is_found_by_its_length(
    table: Table, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    ref = commit(table).file()
    damage(tmp_path / ref.path)
    cure = f"{ref.path}: it .*; delete _commits/00007.json of this table and run again"
    for attempt in (table.commits, lambda: table.find(7), lambda: table.read(7, "vectors")):
        with pytest.raises(StorageError, match=cure):
            attempt()


def test_a_flipped_bit_is_found_when_read(table: Table, tmp_path: Path) -> None:
    flip(tmp_path / commit(table).file().path)
    with pytest.raises(StorageError, match=r"its SHA-256 is .* was committed; delete _commits"):
        table.read(7)
    assert table.read(7, "vectors") == b"vectors"


@pytest.mark.parametrize("damage", [lose, cut, flip])
def test_the_cure_for_a_damaged_file_works(
    table: Table, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    before = commit(table)
    damage(tmp_path / before.file().path)
    (tmp_path / "_commits" / "00007.json").unlink()
    assert commit(table) == before
    assert table.read(7) == b"rows"


def test_a_file_that_arrives_short_is_not_committed(tmp_path: Path) -> None:
    short = Store(root_url=str(tmp_path), files=LosingFiles(root=tmp_path))
    table = Table(short, stage="index", round=0, plan=PLAN)
    with pytest.raises(StorageError, match=r"4 bytes were written and 3 arrived; nothing was"):
        commit(table)
    assert table.commits() == {}


class LosingFiles(LocalFiles):
    """Cuts what is written, and says nothing."""

    def create(self, path: str, payload: bytes) -> None:
        super().create(path, payload[:-1])


def test_a_cut_or_flipped_commit_is_found(table: Table, tmp_path: Path) -> None:
    commit(table)
    path = tmp_path / "_commits" / "00007.json"
    sound = path.read_bytes()
    for position in range(0, len(sound), 5):
        for damaged in (sound[:position], flipped(sound, position, bit=position % 8)):
            path.write_bytes(damaged)
            with pytest.raises(StorageError, match=r"delete _commits/00007.json of this table"):
                table.find(7)


def flipped(payload: bytes, position: int, *, bit: int) -> bytes:
    changed = bytearray(payload)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.mark.parametrize(
    "change",
    [{"extra": 1}, {"kept": "8"}, {"v": 2}, {"files": None}, {"dropped": {"bad": 2.0}}],
)
def test_a_commit_of_another_form_is_refused(
    table: Table, tmp_path: Path, change: dict[str, object]
) -> None:
    commit(table)
    path = tmp_path / "_commits" / "00007.json"
    fields = json.loads(path.read_text()) | change
    path.write_text(json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(StorageError, match=r"cannot be understood|not as it was written"):
        table.find(7)


def test_a_shard_that_is_not_committed_names_the_command(table: Table) -> None:
    with pytest.raises(StorageError, match="shard 3 is not committed; run `capfilt index`"):
        table.read(3)


def test_a_role_that_was_not_committed_is_named(table: Table) -> None:
    commit(table)
    with pytest.raises(StorageError, match=r"'tar' was committed; there are \['rows', 'vectors'"):
        table.read(7, "tar")


def test_tables_and_commits_can_be_pickled(table: Table) -> None:
    committed = commit(table)
    assert pickle.loads(pickle.dumps(table)).read(7) == b"rows"
    assert pickle.loads(pickle.dumps(committed)) == committed


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_two_writers_of_the_same_shard_help_each_other(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}"
    table = Table(Store.at_url(url), stage="index", round=0, plan=PLAN)
    outcomes = race(table, payloads=(b"rows", b"rows"), num_shards=30)
    assert [type(outcome) for outcome in outcomes] == [Commit] * 60
    assert len(table.commits()) == 30


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_of_two_writers_with_other_content_one_wins(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}"
    table = Table(Store.at_url(url), stage="index", round=0, plan=PLAN)
    outcomes = race(table, payloads=(b"rows", b"ROWS"), num_shards=30)
    assert sum(isinstance(outcome, Commit) for outcome in outcomes) == 30
    assert sum(isinstance(outcome, DeterminismError) for outcome in outcomes) == 30
    assert {table.read(shard) for shard in range(30)} <= {b"rows", b"ROWS"}


def race(table: Table, *, payloads: tuple[bytes, bytes], num_shards: int) -> list[object]:
    barrier, outcomes = threading.Barrier(2), []

    def write(payload: bytes) -> None:
        for shard in range(num_shards):
            barrier.wait()
            try:
                outcomes.append(commit(table, shard, payload))
            except DeterminismError as error:
                outcomes.append(error)

    threads = [threading.Thread(target=write, args=(payload,)) for payload in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
