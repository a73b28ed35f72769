"""Files of weights to tensors: nothing in a file is run, and what is wrong with it is one line.

    model.safetensors, or its shards and model.safetensors.index.json     read first
    pytorch_model.bin, or its shards and pytorch_model.bin.index.json     pickle, read as data only
    one file of either format: .safetensors; .pth, .pt, .bin

Files are mapped into memory where their format allows it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class CheckpointError(ValueError):
    """A model cannot be read; the text is one line: where, what was found, what is needed."""


def read_directory(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of a model directory, whole or in shards.

    Args:
        folder: holds weights under one of the four names above.

    Returns:
        The file that was read, which for shards is their index, and its tensors by name.

    Raises:
        CheckpointError: there are none, or they are incomplete, damaged or something else.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if _is_there(whole):
            return whole, read_file(whole)
        if _is_there(index):
            return index, _read_shards(index)
    raise CheckpointError(
        f"{folder}: no model.safetensors and no pytorch_model.bin{_why_none(folder)}"
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """Read one file of weights.

    A dict in a dict, as training programs save it, is taken out by its key: `model` (Salesforce,
    LAVIS) or `state_dict` (mmpretrain). The names lose the "module." of a distributed model.

    Args:
        path: ".safetensors" is read as such, any other name as a file of `torch.save`.

    Raises:
        CheckpointError: the file is incomplete, damaged or something else.
    """
    try:
        _refuse_pages_and_pointers(path)
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    # A damaged pickle can raise nearly anything: IndexError, UnicodeDecodeError, struct.error...
    except Exception as error:
        raise CheckpointError(_what_is_wrong(path, error)) from error
    return _without_prefix(_tensors_of(content, path=path))


def some_of(names: Iterable[str]) -> str:
    """List names for a message: the first five by alphabet."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (", ..." if len(ordered) > 5 else "")


def _unpickled(path: Path) -> object:
    # Files of torch before 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    return content


def _refuse_pages_and_pointers(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise CheckpointError(f"{path}: an empty file; copy or download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a git-lfs pointer, not the weights; run `git lfs pull` where it came from"
        )
    if start.startswith(b"<"):
        raise CheckpointError(
            f"{path}: a web page, not weights: it starts with {start[:20].decode('latin-1')!r}; "
            "check the address it was downloaded from"
        )


def _what_is_wrong(path: Path, error: Exception) -> str:
    # torch names the class or function that a pickle wanted somewhere in a long text.
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return (
            f"{path}: a pickle that wants to run {wanted[1]!r}, which was not done; "
            "only tensors are read: save the state dict alone"
        )
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return (
        f"{path}: {path.stat().st_size:,} bytes that are no whole weights file "
        f"({first_line[:100]}); copy or download it again"
    )


def _tensors_of(content: object, *, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; a dict of tensors is due")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    others = {str(key) for key in content} - set(tensors)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; its keys are: {some_of(others)}")
    if others:
        raise CheckpointError(f"{path}: holds entries that are no tensors: {some_of(others)}")
    return tensors


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # DistributedDataParallel puts it before each name.
    if not all(name.startswith("module.") for name in tensors):
        return tensors
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _read_shards(index: Path) -> dict[str, Tensor]:
    names_by_shard = _names_by_shard(index)
    missing = {shard for shard in names_by_shard if not (index.parent / shard).is_file()}
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of its {len(names_by_shard)} shards are missing: "
            f"{some_of(missing)}{_unfinished(index.parent) or '; download them'}"
        )
    weights: dict[str, Tensor] = {}
    for shard, names in sorted(names_by_shard.items()):
        tensors = read_file(index.parent / shard)
        other = names ^ set(tensors)
        if other:
            raise CheckpointError(
                f"{index.parent / shard}: holds {len(tensors)} tensors and {index.name} says "
                f"{len(names)}; they differ in: {some_of(other)}"
            )
        weights |= tensors
    return weights


def _names_by_shard(index: Path) -> dict[str, set[str]]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: defaultdict[str, set[str]] = defaultdict(set)
        for name, shard in weight_map.items():
            shards[shard].add(name)
        outside = {shard for shard in shards if Path(shard).name != shard}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: not an index of shards ({type(error).__name__}: {error}); download it again"
        ) from error
    if outside or not shards:
        raise CheckpointError(
            f"{index}: names {some_of(outside) or 'no files'}; files beside it are due"
        )
    return shards


def _is_there(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path}: a link to a file that is not there; the download did not finish: repeat it"
        )
    return path.is_file()


def _why_none(folder: Path) -> str:
    """Say what in a folder tells why there are no weights, as the end of a message."""
    shards = [
        path.name for kind in ("safetensors", "bin") for path in folder.glob(f"*-of-*.{kind}")
    ]
    if shards:
        return f"; {some_of(shards)} need their index, a file *.index.json: download it"
    return _unfinished(folder)


def _unfinished(folder: Path) -> str:
    """Say that a download stopped half-way, if one did, as the end of a message."""
    # Where huggingface_hub keeps unfinished files: in the folder's own cache or beside its blobs.
    places = (folder, folder / ".cache/huggingface/download", folder.parent.parent / "blobs")
    names = [path.name for place in places for path in place.glob("*.incomplete")]
    return f"; a download did not finish ({some_of(names)}): repeat it" if names else ""
