"""From a source to the config, the tokenizer and the weights of the kind of model asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from capfilt_blip.config import BlipConfig
from capfilt_blip.files.layouts import Task, for_task, named_as_in_transformers, recognise
from capfilt_blip.files.shapes import config_of
from capfilt_blip.files.sources import locate, read_tokenizer, tokenizer_beside
from capfilt_blip.files.weights import CheckpointError, read_directory, read_file
from capfilt_blip.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that is needed to build a model and fill it."""

    config: BlipConfig
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    """By the names of transformers; those that the model needs, and unknown ones."""
    place: Path
    """Where the weights came from, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of model, as users meet it."""

    name: str
    loader: str
    architecture: str
    """In config.json: the class of transformers, or ours where it has none."""


KINDS: Mapping[Task, Kind] = {
    "captioning": Kind(
        name="captioner", loader="load_captioner", architecture="BlipForConditionalGeneration"
    ),
    "retrieval": Kind(
        name="matcher", loader="load_matcher", architecture="BlipForImageTextRetrieval"
    ),
    "pre-training": Kind(name="pre-training model", loader="load_blip", architecture="CapfiltBlip"),
    "VQA": Kind(name="VQA model", loader="load_vqa", architecture="BlipForQuestionAnswering"),
    "NLVR2": Kind(
        name="NLVR2 model", loader="load_nlvr", architecture="CapfiltBlipForVisualReasoning"
    ),
    "grounding": Kind(
        name="grounding model", loader="load_grounding", architecture="CapfiltBlipForGrounding"
    ),
}
# transformers gives the decoder's memory, the question, the width of images: ViT-L does not fit.
_WIDE_VQA = "CapfiltBlipForQuestionAnswering"
_HALVES: tuple[Task, ...] = ("captioning", "retrieval")  # of a pre-trained BLIP


def architecture_of(task: Task, *, config: BlipConfig) -> str:
    """Name the class of a model in config.json; transformers reads those it knows."""
    if task == "VQA" and config.vision.width != config.text.width:
        return _WIDE_VQA
    return KINDS[task].architecture


def find(source: str | Path, *, task: Task, tokenizer: str | Path | None) -> Found:
    """Read everything of a model but the model.

    Args:
        source: directory, file or hub id, as of `sources.locate`.
        task: what the model is for.
        tokenizer: directory or `vocab.txt` in place of the source's own.

    Raises:
        CheckpointError: the source cannot be read, or is of a task that this model cannot do.
    """
    place = locate(source)
    if place.is_dir():
        return _in_directory(place, task=task, tokenizer=tokenizer)
    tensors = read_file(place)
    contents = recognise(tensors, place=place)
    found = f"{place}: weights in the layout of {contents.layout}"
    _refuse_other_task(contents.task, wanted=task, found=found, due="due")
    if contents.layout == "transformers":
        config, _ = _read_config(place.parent / "config.json", wanted=task)
        words = _checked_tokenizer(Path(tokenizer or place.parent), config=config)
    else:
        words = read_tokenizer(Path(tokenizer)) if tokenizer else tokenizer_beside(place)
        config = config_of(contents.weights, tokenizer=words, place=place)
    weights = for_task(contents.weights, trained_for=contents.task, task=task, place=place)
    return Found(config=config, tokenizer=words, weights=weights, place=place)


def _in_directory(folder: Path, *, task: Task, tokenizer: str | Path | None) -> Found:
    config, trained_for = _read_config(folder / "config.json", wanted=task)
    words = _checked_tokenizer(Path(tokenizer or folder), config=config)
    place, tensors = read_directory(folder)
    weights = named_as_in_transformers(tensors, layout="transformers", place=place)
    weights = for_task(weights, trained_for=trained_for, task=task, place=place)
    return Found(config=config, tokenizer=words, weights=weights, place=place)


def _read_config(path: Path, *, wanted: Task) -> tuple[BlipConfig, Task]:
    """Read a config.json, and for which task its weights were trained."""
    try:
        fields: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = BlipConfig.from_hf(fields)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file; a model directory needs one (an original .pth file is named "
            "itself, not its directory)"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a BLIP config: {error}") from error
    due = KINDS[wanted].architecture
    architectures = fields.get("architectures") or [due]
    tasks = {kind.architecture: task for task, kind in KINDS.items()} | {_WIDE_VQA: "VQA"}
    found = f"{path}: architectures is {architectures}"
    if len(architectures) != 1 or architectures[0] not in tasks:
        raise CheckpointError(f"{found}; a {KINDS[wanted].name} is {due!r}")
    trained_for: Task = tasks[architectures[0]]
    _refuse_other_task(trained_for, wanted=wanted, found=found, due=repr(due))
    return config, trained_for


def _refuse_other_task(trained_for: Task, *, wanted: Task, found: str, due: str) -> None:
    if trained_for == wanted or (trained_for == "pre-training" and wanted in _HALVES):
        return
    readers = [trained_for, *(_HALVES if trained_for == "pre-training" else ())]
    loaders = " or ".join(KINDS[task].loader for task in readers)
    raise CheckpointError(
        f"{found}, a {KINDS[trained_for].name}, which {loaders} reads; "
        f"a {KINDS[wanted].name} is {due}"
    )


def _checked_tokenizer(place: Path, *, config: BlipConfig) -> Tokenizer:
    tokenizer = read_tokenizer(place)
    pairs = {
        "[PAD]": (tokenizer.pad_id, config.pad_token_id),
        "[CLS]": (tokenizer.cls_id, config.cls_token_id),
        "[SEP]": (tokenizer.sep_id, config.sep_token_id),
        "[DEC]": (tokenizer.dec_id, config.bos_token_id),
        "[ENC]": (tokenizer.enc_id, config.enc_token_id),
        "the vocabulary's size": (tokenizer.vocab_size, config.text.vocab_size),
    }
    for name, (in_tokenizer, in_config) in pairs.items():
        if in_tokenizer != in_config:
            raise CheckpointError(
                f"{place}: {name} is {in_tokenizer} in the tokenizer and {in_config} in "
                "config.json; they must agree"
            )
    return tokenizer
