"""A table on disk: files that count only once their shard's commit exists.

    <table>/00007-<sha256, 12 digits>.parquet    data, named by content, never overwritten
    <table>/_commits/00007.json                  created exclusively: the commit point of shard 7

Data goes first and is checked by length; the commit names it with its digest. A writer may die
anywhere: without the commit nothing has happened, and trying again makes the same bytes under the
same names. Readers start at commits; a file that no commit names does not exist.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from capfilt.errors import AccountingError, DeterminismError, PlanError, StorageError
from capfilt.io.storage import MissingError, OccupiedError, Store
from capfilt.lineage import canonical_json

log = logging.getLogger(__name__)

COMMIT_NAME = re.compile(r"(\d{5,})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file about to be committed.

    Args:
        role: what the shard's readers ask for: `rows`, `vectors` ...; unique in the shard.
        folder: relative to the table; "" is the table's own folder.
        suffix: end of the name, dot included.
        payload: the bytes.
        rows: rows, or members, in it.
    """

    role: str
    folder: str
    suffix: str
    payload: bytes
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A committed file: where it is, relative to the table, and what it must be."""

    role: str
    path: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A shard that is done. Equal inputs under one plan give an equal commit."""

    plan: str
    stage: str
    round: int
    shard: int
    rows_in: int
    kept: int
    dropped: Mapping[str, int]  # reason -> rows
    input_sha256: str | None
    files: tuple[FileRef, ...]
    v: Literal[1] = 1  # of this format

    def file(self, role: str = "rows") -> FileRef:
        """The file of a role.

        Raises:
            StorageError: the shard has no such file.
        """
        for ref in self.files:
            if ref.role == role:
                return ref
        raise StorageError(
            f"{self.stage}, shard {self.shard}: no file with role {role!r} was committed; "
            f"there are {[ref.role for ref in self.files]}"
        )


@dataclass(frozen=True, slots=True)
class Table:
    """The committed shards of one stage in one round under one plan. Picklable.

    Args:
        store: the folder `<run>/round-000/<table>/<plan, 12 digits>`.
        stage: the stage that writes it.
        round: bootstrap round, from 0.
        plan: digest of all settings that can change a byte.
    """

    store: Store
    _: KW_ONLY
    stage: str
    round: int
    plan: str

    def commit(
        self,
        shard: int,
        files: Sequence[NewFile],
        *,
        rows_in: int,
        kept: int,
        dropped: Mapping[str, int],
        input_sha256: str | None = None,
    ) -> Commit:
        """Write a shard's files and make them count; a shard committed before is confirmed.

        Args:
            shard: the shard's number.
            files: all files of the shard; none is fine.
            rows_in: rows the shard came with.
            kept: rows that go on to the next stage.
            dropped: rows that do not, by reason; zeros are left out.
            input_sha256: digest of what the shard was made from, for the record.

        Returns:
            The commit, durable when this returns.

        Raises:
            AccountingError: rows_in is not kept plus dropped; nothing is written.
            PlanError: the shard is committed under another plan.
            DeterminismError: it is committed under this plan with other content.
            StorageError: a write failed; nothing counts until a retry succeeds.
        """
        commit = Commit(
            plan=self.plan,
            stage=self.stage,
            round=self.round,
            shard=shard,
            rows_in=rows_in,
            kept=kept,
            dropped={reason: rows for reason, rows in dropped.items() if rows},
            input_sha256=input_sha256,
            files=tuple(_reference(shard, file) for file in files),
        )
        _check_accounting(commit, where=self.store.url)
        self._refuse_other(commit)
        for file, ref in zip(files, commit.files, strict=True):
            self._put_data(file, ref)
        self._put_commit(commit)
        return commit

    def commits(self) -> dict[int, Commit]:
        """All committed shards, by number, in order.

        A stale listing may miss a shard: it is done again, with the same bytes.

        Raises:
            StorageError: a commit, or the length of a file it names, is damaged.
            PlanError: a commit is of another plan.
        """
        matches = map(COMMIT_NAME.fullmatch, self.store.names("_commits"))
        shards = sorted(int(match[1]) for match in matches if match)
        found = ((shard, self.find(shard)) for shard in shards)
        return {shard: commit for shard, commit in found if commit is not None}

    def find(self, shard: int) -> Commit | None:
        """The commit of a shard, its files checked by length; None if it is not committed.

        Raises:
            StorageError: the commit, or the length of a file it names, is damaged.
            PlanError: the commit is of another plan.
        """
        try:
            payload = self.store.read(_commit_path(shard))
        except MissingError:
            return None
        commit = self._parse(shard, payload)
        for ref in commit.files:
            self._check_length(shard, ref)
        return commit

    def read(self, shard: int, role: str = "rows") -> bytes:
        """The bytes of one file of a committed shard, checked by length and SHA-256.

        Raises:
            StorageError: the shard is not committed, has no such file, or the file is damaged.
        """
        commit = self.find(shard)
        if commit is None:
            raise StorageError(
                f"{self.store.url}: shard {shard} is not committed; run `capfilt {self.stage}`"
            )
        ref = commit.file(role)
        payload = self.store.read(ref.path)
        found = hashlib.sha256(payload).hexdigest()
        if found != ref.sha256:
            raise self._damaged(shard, ref, f"its SHA-256 is {found}, {ref.sha256} was committed")
        return payload

    def _put_data(self, file: NewFile, ref: FileRef) -> None:
        try:
            self.store.put_new(ref.path, file.payload)
        except OccupiedError:
            # The name is the content's digest, so what is there is damaged, not different.
            log.warning("%s/%s: was damaged and is written again", self.store.url, ref.path)
            self.store.put(ref.path, file.payload)
        found = self.store.size(ref.path)
        if found != ref.bytes:  # s3fs 2024.10 cut uploads near 1 GB without an error (its #915)
            raise StorageError(
                f"{self.store.url}/{ref.path}: {ref.bytes:,} bytes were written and {found:,} "
                "arrived; nothing was committed, run the same command again"
            )

    def _put_commit(self, commit: Commit) -> None:
        try:
            self.store.put_new(_commit_path(commit.shard), _encode(commit))
        except OccupiedError as error:
            self._refuse_other(commit)
            raise StorageError(
                f"{self.store.url}/{_commit_path(commit.shard)}: changed while it was written; "
                "run the same command again"
            ) from error

    def _refuse_other(self, ours: Commit) -> None:
        """Raise if the shard is committed already and not as `ours`."""
        path = _commit_path(ours.shard)
        try:
            payload = self.store.read(path)
        except MissingError:
            return
        theirs = self._parse(ours.shard, payload)
        if theirs != ours:
            raise DeterminismError(
                f"{self.store.url}/{path}: shard {ours.shard} of {self.stage} gave other content "
                f"than before under the same plan: {_differences(theirs, ours)}; "
                "the first result is kept"
            )

    def _parse(self, shard: int, payload: bytes) -> Commit:
        where = f"{self.store.url}/{_commit_path(shard)}"
        try:
            commit = _commit_adapter().validate_json(payload, strict=True)
        except ValidationError as error:
            raise StorageError(f"{where}: cannot be understood; {_cure(shard)}") from error
        if _encode(commit) != payload:  # also if there are fields that Commit does not know
            raise StorageError(f"{where}: is not as it was written; {_cure(shard)}")
        if commit.plan != self.plan:
            raise PlanError(
                f"{where}: was made under plan {commit.plan}, this run has plan {self.plan}; "
                "choose another run folder"
            )
        if (commit.shard, commit.stage, commit.round) != (shard, self.stage, self.round):
            raise StorageError(
                f"{where}: is of {commit.stage}, round {commit.round}, shard {commit.shard}; "
                f"{self.stage}, round {self.round}, shard {shard} belongs here; {_cure(shard)}"
            )
        return commit

    def _check_length(self, shard: int, ref: FileRef) -> None:
        try:
            found = self.store.size(ref.path)
        except MissingError as error:
            raise self._damaged(shard, ref, "it is missing") from error
        if found != ref.bytes:
            raise self._damaged(shard, ref, f"it has {found:,} bytes, {ref.bytes:,} were committed")

    def _damaged(self, shard: int, ref: FileRef, what: str) -> StorageError:
        return StorageError(f"{self.store.url}/{ref.path}: {what}; {_cure(shard)}")


def _reference(shard: int, file: NewFile) -> FileRef:
    sha256 = hashlib.sha256(file.payload).hexdigest()
    name = f"{shard:05d}-{sha256[:12]}{file.suffix}"
    return FileRef(
        role=file.role,
        path=f"{file.folder}/{name}" if file.folder else name,
        bytes=len(file.payload),
        sha256=sha256,
        rows=file.rows,
    )


def _check_accounting(commit: Commit, *, where: str) -> None:
    roles = Counter(ref.role for ref in commit.files)
    assert all(count == 1 for count in roles.values()), f"roles of one shard repeat: {roles}"
    dropped = sum(commit.dropped.values())
    negative = min(commit.rows_in, commit.kept, *commit.dropped.values()) < 0
    if negative or commit.rows_in != commit.kept + dropped:
        raise AccountingError(
            f"{where}: {commit.stage}, shard {commit.shard}: {commit.rows_in:,} rows in, but "
            f"{commit.kept:,} kept and {dropped:,} dropped {dict(commit.dropped)}; "
            "nothing was committed, please report this"
        )


def _commit_path(shard: int) -> str:
    return f"_commits/{shard:05d}.json"


def _cure(shard: int) -> str:
    return f"delete {_commit_path(shard)} of this table and run again to redo the shard"


def _encode(commit: Commit) -> bytes:
    """Canonical JSON with a digest of its own, so that a commit shows damage to itself."""
    fields = asdict(commit)
    own = hashlib.sha256(canonical_json(fields).encode()).hexdigest()
    return (canonical_json(fields | {"self_sha256": own}) + "\n").encode()


@functools.cache
def _commit_adapter() -> TypeAdapter[Commit]:
    return TypeAdapter(Commit)


def _differences(theirs: Commit, ours: Commit) -> str:
    """What differs between two commits of a shard, files by their digests."""
    before, after = (
        asdict(commit) | {f"SHA-256 of {ref.role}": ref.sha256 for ref in commit.files}
        for commit in (theirs, ours)
    )
    return ", ".join(
        f"{name} was {before.get(name)} and is now {after.get(name)}"
        for name in sorted((before.keys() | after.keys()) - {"files"})
        if before.get(name) != after.get(name)
    )
