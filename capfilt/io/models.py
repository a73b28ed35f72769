"""Model directories: where they are, and a digest of what is in them.

A model is named by a local directory, a folder on a store, or a hub id such as
`Salesforce/blip-image-captioning-base`. Workers load from a local directory; the plan holds a
digest, so that other weights under the same name are noticed.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import fsspec
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from capfilt.errors import CheckpointError

WEIGHT_PATTERNS = ("*.json", "*.safetensors", "*.txt", "pytorch_model.bin")
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
        return Path(snapshot_download(name, allow_patterns=list(WEIGHT_PATTERNS)))
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
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory}: no config.json; not a model directory")
    names = sorted({path.name for glob in WEIGHT_PATTERNS for path in directory.glob(glob)})
    digest = hashlib.sha256()
    for name in names:
        with (directory / name).open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{len(name)}:{name}:{inner};".encode())
    return digest.hexdigest()


def _copied(url: str) -> Path:
    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.exists(f"{path}/config.json"):
        raise CheckpointError(f"{url}: no config.json there; not a model directory")
    target = Path(tempfile.mkdtemp(prefix="capfilt-model-"))
    for source in filesystem.ls(path, detail=False):
        filesystem.get_file(source, str(target / str(source).rsplit("/", 1)[-1]))
    return target


def _first_line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:200]
