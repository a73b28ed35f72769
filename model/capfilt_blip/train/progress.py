"""A training's state as a file: written beside and renamed, and known to be whole when it is read.

    <folder>/step-00001200.safetensors

The header holds a digest of everything else in the file, so a torn or altered file is recognised.
One process writes into a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from capfilt_blip.train.errors import StateError

logger = logging.getLogger(__name__)

_DIGEST = "sha256"


def state_path(folder: str | Path, *, step: int) -> Path:
    """Name the file of the state after so many steps."""
    return Path(folder) / f"step-{step:08d}.safetensors"


def save_state(path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write a state; once this returns it survives a crash of the machine.

    Args:
        path: replaced if it exists; its folder is made.
        state: from `Engine.state`.
        meta: what else belongs to it; "sha256" is taken.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    digest = _digest(state, meta)
    save_file(dict(state), beside, metadata={**meta, _DIGEST: digest})
    _flush(beside)
    beside.replace(target)
    _flush(target.parent)


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_state` wrote.

    Returns:
        The state, and what was saved with it.

    Raises:
        StateError: the file is not there, is damaged, or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path}: no whole state of a training ({error})") from error
    written = meta.pop(_DIGEST, None)
    if written is None:
        raise StateError(f"{path}: has no digest, so it is no state of a training")
    if written != _digest(state, meta):
        raise StateError(f"{path}: damaged: its content is not what its digest says; delete it")
    return state, meta


def newest_sound(folder: str | Path) -> Path | None:
    """Find the state of the latest step that can be read; damaged ones are logged and left."""
    for path in _newest_first(folder):
        try:
            load_state(path)
        except StateError as error:
            logger.warning("%s; going back to the state before it", error)
        else:
            return path
    return None


def keep_last(folder: str | Path, num_kept: int) -> None:
    """Delete all states but those of the last steps, and what killed writers left.

    Args:
        folder: of the states.
        num_kept: at least 1.
    """
    assert num_kept >= 1, f"num_kept is {num_kept}; at least the newest state is kept"
    dead = [*_newest_first(folder)[num_kept:], *Path(folder).glob(".step-*.safetensors.tmp")]
    for path in dead:
        path.unlink(missing_ok=True)


def _newest_first(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("step-*.safetensors"), reverse=True)


def _digest(state: Mapping[str, Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes, bytes and meta."""
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, lie on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
