"""How far a training is, on disk: where it goes on after its process was killed.

    _progress/pretrain/step-00001200.safetensors
    _progress/lost/pretrain-000000038400-00000.json     pairs that could not be read

A record holds all that the rest of the training depends on, and a digest of itself. What a killed
writer left is passed over, and the record before it serves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter
from torch import Tensor

from capfilt.io.storage import Store
from capfilt.records import HeldOutCaption, TrainStep
from capfilt_blip.train.progress import keep_last, load_state, newest_sound, save_state, state_path

Phase = Literal["pretrain", "captioner", "filter"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The phases of a training, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a phase has to tell, weights aside."""

    num_samples: int = 0  # that all processes have seen in this phase
    finished: bool = False
    steps: tuple[TrainStep, ...] = ()  # those logged
    captions: tuple[HeldOutCaption, ...] = ()  # written when the phase was finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A phase at some point."""

    notes: Notes
    tensors: Mapping[str, Tensor]  # of its session, or of its model once it is finished


class ProgressFolder:
    """The records of one training. One process writes; all may read.

    Args:
        store: their folder. One that is in no file system is copied to and from.
        num_kept: records kept of each phase, at least 1.
    """

    def __init__(self, store: Store, *, num_kept: int) -> None:
        self._store = store
        self._num_kept = num_kept

    def newest(self, phase: Phase) -> Progress | None:
        """The newest sound record of a phase."""
        with _local(self._store.child(phase)) as folder:
            path = newest_sound(folder)
            if path is None:
                return None
            tensors, meta = load_state(path)
        notes = TypeAdapter(Notes).validate_json(meta["notes"])
        return Progress(notes=notes, tensors=tensors)

    def save(self, phase: Phase, progress: Progress, *, step: int) -> None:
        """Write a record, then remove those that are not kept any longer.

        Args:
            phase: its phase.
            progress: the record.
            step: optimizer steps done in the phase.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in progress.tensors.items()}
        notes = json.dumps(asdict(progress.notes))
        with _local(self._store.child(phase)) as folder:
            save_state(state_path(folder, step=step), tensors, {"notes": notes})
            keep_last(folder, self._num_kept)

    def note_lost(self, phase: Phase, lost: Mapping[str, str], *, name: str) -> None:
        """Note pairs that could not be read; any process may, at any time.

        Args:
            phase: in which they were met.
            lost: reason by pair.
            name: of the note. Who comes to the same place again writes the same note again.
        """
        self._lost.put(f"{phase}-{name}.json", json.dumps(lost).encode())

    def lost(self) -> dict[str, str]:
        """Reason by pair, of all that could not be read in any phase."""
        found = dict[str, str]()
        for name in self._lost.names():
            found |= TypeAdapter(dict[str, str]).validate_json(self._lost.read(name))
        return found

    def clear(self) -> None:
        """Remove all records: the training is over and its models are committed."""
        for folder in (self._lost, *map(self._store.child, PHASES)):
            for name in folder.names():
                folder.remove(name)

    @property
    def _lost(self) -> Store:
        return self._store.child("lost")


@contextmanager
def _local(store: Store) -> Iterator[Path]:
    """A folder as other programs see it: itself, or for the while a copy, given back afterwards."""
    place = store.local_path()
    if place is not None:
        yield place
        return
    before = store.names()
    with tempfile.TemporaryDirectory(prefix="capfilt-progress-") as scratch:
        for name in before:
            Path(scratch, name).write_bytes(store.read(name))
        yield Path(scratch)
        after = {path.name: path for path in Path(scratch).iterdir()}
        for name in after.keys() - set(before):
            store.put(name, after[name].read_bytes())
    for name in set(before) - after.keys():
        store.remove(name)
