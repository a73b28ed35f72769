"""How far a training is, on disk: where it goes on after its process was killed.

    _progress/pretrain/step-00001200.safetensors
    _progress/lost/pretrain-000000038400-00000.json     pairs that could not be read

A record holds all that the rest of the training depends on, and a digest of itself. What a killed
writer left is passed over, and the record before it serves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from capfilt.errors import CapfiltError
from capfilt.io.storage import Store
from capfilt.records import PHASES, HeldOutCaption, Phase, TrainStep
from capfilt_blip.train.alarms import Alarms
from capfilt_blip.train.errors import StateError
from capfilt_blip.train.progress import keep_last, load_state, newest_sound, save_state, state_path
from capfilt_blip.train.world import World

SCRATCH = "capfilt-progress-"
"""Begin of the names of scratch folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a phase has to tell, weights aside."""

    num_samples: int = 0  # that all processes have seen in this phase
    finished: bool = False
    steps: tuple[TrainStep, ...] = ()  # those logged
    captions: tuple[HeldOutCaption, ...] = ()  # written when it was measured last
    alarms: Alarms = field(default_factory=Alarms)  # what they have seen; they see every step


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A phase at some point."""

    notes: Notes
    tensors: Mapping[str, Tensor]  # of its engine, or of its model once it is finished


class ProgressFolder:
    """The records of one training. One process writes; all may read.

    Args:
        store: their folder. In one that is in no file system a record is written and read as a
            whole, through a scratch file.
        num_kept: records kept of each phase, at least 1.
    """

    def __init__(self, store: Store, *, num_kept: int) -> None:
        self._store = store
        self._num_kept = num_kept

    def newest(self, phase: Phase) -> Progress | None:
        """The newest sound record of a phase."""
        with closing(_folders(self._store.child(phase))) as folders:
            for folder in folders:
                path = newest_sound(folder)
                if path is not None:
                    tensors, meta = load_state(path)
                    return Progress(notes=_notes(meta), tensors=tensors)
        return None

    def of_step(self, phase: Phase, *, step: int) -> Progress | None:
        """The record after so many steps of a phase, if it is there and sound."""
        with closing(_folders(self._store.child(phase))) as folders:
            for folder in folders:
                path = state_path(folder, step=step)
                if path.exists():
                    return _sound(path)
        return None

    def save(self, phase: Phase, progress: Progress, *, step: int) -> None:
        """Write a record, then remove those that are not kept any longer.

        Args:
            phase: its phase.
            progress: the record.
            step: optimizer steps done in the phase.
        """
        tensors = {name: t.detach().cpu().contiguous() for name, t in progress.tensors.items()}
        meta = {"notes": json.dumps(asdict(progress.notes))}
        store = self._store.child(phase)
        folder = store.local_path()
        if folder is not None:
            save_state(state_path(folder, step=step), tensors, meta)
            keep_last(folder, self._num_kept)
            return
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            path = state_path(scratch, step=step)
            save_state(path, tensors, meta)
            store.put(path.name, path.read_bytes())
        for name in store.names()[: -self._num_kept]:
            store.remove(name)

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


def agreed_progress(
    folder: ProgressFolder, phase: Phase, *, batch_size: int, world: World, device: torch.device
) -> Progress | None:
    """The first process's newest record, which all of them go on from; all call it together.

    What a process sees of a folder on the network may be old.

    Args:
        folder: of the records.
        phase: whose record.
        batch_size: of all processes together.
        world: the processes.
        device: that their messages take.

    Raises:
        CapfiltError: in each process, if one of them cannot read that record.
    """
    found = None if world.rank else folder.newest(phase)
    step = -1 if found is None else found.notes.num_samples // batch_size
    step = world.told([step], device=device)[0][0]
    if step < 0:
        return None
    if world.rank:
        found = folder.of_step(phase, step=step)
    told = world.told([int(found is not None)], device=device)
    blind = [rank for rank, [sees] in enumerate(told) if not sees]
    if blind:
        raise CapfiltError(
            f"{phase}: training goes on from step {step}, and workers {blind} of {world.size} "
            "cannot read its record; all machines must see the run's folder as it is"
        )
    return found


def _sound(path: Path) -> Progress | None:
    try:
        tensors, meta = load_state(path)
    except StateError:
        return None
    return Progress(notes=_notes(meta), tensors=tensors)


def _notes(meta: Mapping[str, str]) -> Notes:
    return TypeAdapter(Notes).validate_json(meta["notes"])


def _folders(store: Store) -> Generator[Path, None, None]:
    """Where the records are in a file system: in one folder, or newest first each in a copy.

    A copy is there until the next is asked for.
    """
    folder = store.local_path()
    if folder is not None:
        yield folder
        return
    for name in reversed(store.names()):
        with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
            Path(scratch, name).write_bytes(store.read(name))
            yield Path(scratch)
