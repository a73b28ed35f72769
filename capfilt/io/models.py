"""Model directories: where they are, and a digest of what is in them.

A model is named by a local directory, a folder on a store, or a hub id such as
`Salesforce/blip-image-captioning-base`. Workers load from a local directory; the plan holds a
digest, so that other weights under the same name are noticed.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from capfilt.errors import CheckpointError

MODEL_PATTERNS = (
    *("*.json", "*.safetensors", "pytorch_model.bin"),
    *("*.txt", "*.model", "*.tiktoken", "*.jinja"),  # tokenizers, and what a chat is written as
)
"""Files of a model directory that can change what the model says."""


def local_model(name: str) -> Path:
    """A local directory that holds the model.

    Args:
        name: directory, folder URL (`s3://...`, `memory://...`) or hub id.

    Returns:
        The directory itself, a copy in the temporary folder, or the hub's cache.

    Raises:
        CheckpointError: there is no such directory and the hub does not answer with one.
    """
    path = Path(name.removeprefix("file://")).expanduser()
    if path.is_dir():
        return path
    if "://" in name:
        return _copied(name)
    if path.is_absolute() or name.startswith("."):
        raise CheckpointError(f"{name}: no such directory; give a model directory or a hub id")
    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_PATTERNS)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as err:
        raise CheckpointError(
            f"{name}: neither a directory here nor a model the hub gives out "
            f"({type(err).__name__}: {_first_line(err)})"
        ) from err


def model_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of a model's files, as hex.

    Raises:
        CheckpointError: the directory holds no config.json.
    """
    _config_file(directory)
    names = {path.name for glob in MODEL_PATTERNS for path in directory.glob(glob)}
    return digest_of({name: _file_digest(directory / name) for name in names})


def digest_of(files: Mapping[str, str]) -> str:
    """What `model_digest` says of a directory with these files.

    Args:
        files: SHA-256 by name; files that say nothing of the model are passed by.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        if any(fnmatchcase(name, glob) for glob in MODEL_PATTERNS):
            digest.update(f"{len(name)}:{name}:{files[name]};".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_type_of(directory: Path) -> str | None:
    """The kind of a model, such as `blip` or `clip`; None if its config.json names none.

    Raises:
        CheckpointError: the directory holds no config.json, or it is not JSON.
    """
    model_type = _config(directory).get("model_type")
    return model_type if isinstance(model_type, str) else None


def architecture_of(directory: Path) -> str | None:
    """The one architecture a model's config.json lists; None if it lists none, or several.

    Raises:
        CheckpointError: as `model_type_of`.
    """
    listed = _config(directory).get("architectures")
    match listed:
        case [str(architecture)]:
            return architecture
    return None


def _config(directory: Path) -> Mapping[str, Any]:
    file = _config_file(directory)
    try:
        config = json.loads(file.read_bytes())
    except ValueError as err:
        raise CheckpointError(f"{file}: is not JSON: {err}") from err
    return config if isinstance(config, dict) else {}


def _config_file(directory: Path) -> Path:
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{directory}: no config.json; not a model directory")
    return file


def _copied(url: str) -> Path:
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if not filesystem.exists(f"{path}/config.json"):
            raise CheckpointError(f"{url}: no config.json there; not a model directory")
        sources = sorted(str(source) for source in filesystem.ls(path, detail=False))
        return _copy(url, tuple((source, filesystem.ukey(source)) for source in sources))
    except (OSError, ImportError, ValueError) as err:  # a store without its package, or unknown
        raise CheckpointError(f"{url}: cannot be read: {_first_line(err)}") from err


@functools.cache
def _copy(url: str, files: tuple[tuple[str, str], ...]) -> Path:
    """A copy that lasts as long as this process, which makes it once.

    Args:
        url: of the folder.
        files: each file's path in the store, and what changes when it does.
    """
    filesystem, _ = fsspec.core.url_to_fs(url)
    target = Path(tempfile.mkdtemp(prefix="capfilt-model-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    for source, _ in files:
        filesystem.get_file(source, str(target / source.rsplit("/", 1)[-1]))
    return target


def _first_line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:200]
