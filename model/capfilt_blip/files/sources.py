"""Where a model is, in a directory, a file or on the hub, and the tokenizer that goes with it."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from capfilt_blip.files.weights import CheckpointError
from capfilt_blip.tokenizer import Tokenizer

_BERT = "bert-base-uncased"  # whose vocabulary every published BLIP has
_CONFIG_AND_TOKENIZER = ["config.json", "tokenizer.json", "vocab.txt"]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def locate(source: str | Path) -> Path:
    """Find a model, on the hub if it is not here.

    Args:
        source: directory, file of weights, or hub id "owner/name" with "@" and a commit behind it
            if wanted. Of the hub, only what is needed is downloaded.

    Returns:
        A directory or a file.

    Raises:
        CheckpointError: there is none.
    """
    path, name = Path(source), str(source)
    if path.is_dir() or path.is_file():
        return path
    if "://" in name:
        raise CheckpointError(f"{name}: an address; download the file and name it by its path")
    hub_id, _, revision = name.partition("@")
    if path.suffix in _SUFFIXES or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        raise CheckpointError(
            f"{name}: no such directory or file, and no hub id, which is 'owner/name'"
        )
    try:
        folder = _snapshot(hub_id, revision=revision or None, weights=_SAFETENSORS)
        if not any((folder / name).exists() for name in _SAFETENSORS[:2]):
            folder = _snapshot(hub_id, revision=revision or None, weights=_PICKLES)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no such directory, and the hub does not give it "
            f"({type(error).__name__}); check the name and the network, or name a directory"
        ) from error
    return folder


def read_tokenizer(place: Path) -> Tokenizer:
    """Read a tokenizer.

    Args:
        place: directory with `tokenizer.json` or `vocab.txt`, or one of these files.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not place.exists():
        raise CheckpointError(f"{place}: no such file or directory; a tokenizer is due there")
    try:
        if place.is_file() and place.suffix == ".txt":
            return Tokenizer.from_vocab_file(place)
        return Tokenizer.from_dir(place.parent if place.is_file() else place)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(f"{place}: the tokenizer cannot be read: {error}") from error


def tokenizer_beside(path: Path) -> Tokenizer:
    """Find the tokenizer of a file of weights: beside it, or on the hub that of BERT.

    Args:
        path: of the weights; original files bring no tokenizer.

    Raises:
        CheckpointError: there is none beside it and the hub does not give one.
    """
    if any((path.parent / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return read_tokenizer(path.parent)
    try:
        vocab = huggingface_hub.hf_hub_download(_BERT, "vocab.txt")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no vocab.txt beside it, and the hub does not give that of {_BERT} "
            f"({type(error).__name__}); name one by tokenizer="
        ) from error
    return read_tokenizer(Path(vocab))


def _snapshot(hub_id: str, *, revision: str | None, weights: list[str]) -> Path:
    patterns = [*_CONFIG_AND_TOKENIZER, *weights]
    folder = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
    return Path(folder)
