"""Models on disk: those of transformers, Salesforce, LAVIS and mmpretrain in, transformers' out.

    load_captioner   BlipForConditionalGeneration    or the decoder half of pre-training
    load_matcher     BlipForImageTextRetrieval       or the encoder half of pre-training
    load_vqa         BlipForQuestionAnswering        or, with ViT-L, CapfiltBlip...
    load_blip        CapfiltBlip                     transformers has no class for pre-training,
    load_nlvr        CapfiltBlipForVisualReasoning   none for two images
    load_grounding   CapfiltBlipForGrounding         and none for boxes

A directory has config.json, model.safetensors, the files of the tokenizer and of transformers'
processor, and a model card. An original file has weights alone: its config is read off their
shapes.

A load accounts for every tensor: one that is missing, unknown, of another shape or not finite is
an error that names it, for weights that stay random do their damage unseen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.files.hf_names import POSITIONS, stored_tensors
from capfilt_blip.files.layouts import Task
from capfilt_blip.files.model_card import card, preprocessor
from capfilt_blip.files.reading import KINDS, architecture_of, find
from capfilt_blip.files.shapes import grid_side
from capfilt_blip.files.weights import CheckpointError as CheckpointError  # what a load raises
from capfilt_blip.files.weights import some_of
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vision import resize_positions
from capfilt_blip.vqa import BlipVqa

logger = logging.getLogger(__name__)

Model = TypeVar("Model", Blip, BlipCaptioner, BlipMatcher, BlipVqa, BlipNlvr, BlipGrounding)
AnyModel: TypeAlias = Blip | BlipCaptioner | BlipMatcher | BlipVqa | BlipNlvr | BlipGrounding

_TASKS: Mapping[type, Task] = {
    BlipCaptioner: "captioning",
    BlipMatcher: "retrieval",
    BlipVqa: "VQA",
    BlipNlvr: "NLVR2",
    BlipGrounding: "grounding",
    Blip: "pre-training",
}


def load_captioner(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[BlipCaptioner, Tokenizer]:
    """Read a captioner.

    Args:
        source: a directory that `save_model` or transformers wrote; a hub id such
            as "Salesforce/blip-image-captioning-base", with "@" and a commit behind it if wanted;
            or an original file of Salesforce, LAVIS or mmpretrain. A pre-trained BLIP will do: its
            encoder half is left out.
        tokenizer: directory or `vocab.txt` to use in place of the source's own. Original files
            have none: then the one beside the file is used, else the hub's bert-base-uncased.
        image_size_px: resize the position embeddings for images of this side; by default it is
            that of config.json, or the one an original file was trained for.
        dtype: of the parameters in memory, whatever the file holds.

    Returns:
        The model in eval mode on the CPU, and its tokenizer.

    Raises:
        CheckpointError: the source cannot be read, or is something else.
    """
    return _load(
        source, kind=BlipCaptioner, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype
    )


def load_matcher(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[BlipMatcher, Tokenizer]:
    """Read a matcher, or the encoder half of a pre-trained BLIP; otherwise as `load_captioner`."""
    return _load(
        source, kind=BlipMatcher, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype
    )


def load_blip(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Blip, Tokenizer]:
    """Read a pre-training model; otherwise as `load_captioner`."""
    return _load(source, kind=Blip, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype)


def load_vqa(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[BlipVqa, Tokenizer]:
    """Read a model that answers questions; otherwise as `load_captioner`."""
    return _load(
        source, kind=BlipVqa, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype
    )


def load_nlvr(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[BlipNlvr, Tokenizer]:
    """Read a model that reads two images; otherwise as `load_captioner`."""
    return _load(
        source, kind=BlipNlvr, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype
    )


def load_grounding(
    source: str | Path,
    *,
    tokenizer: str | Path | None = None,
    image_size_px: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[BlipGrounding, Tokenizer]:
    """Read a model that writes boxes; otherwise as `load_captioner`."""
    return _load(
        source, kind=BlipGrounding, tokenizer=tokenizer, image_size_px=image_size_px, dtype=dtype
    )


def save_model(
    directory: str | Path,
    *,
    model: AnyModel,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model as a directory that the `load_` function of its kind reads.

    transformers reads it too, if it has a class for the kind. The same model gives the same bytes.
    A parameter that two parts of a model share is written once.

    Args:
        directory: made if it does not exist; files of an earlier model in it are replaced, the
            model card too.
        model: on any device.
        tokenizer: the one the model was trained with.
        dtype: of the stored weights; float16 halves the file.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in stored_tensors(model).items()
    }
    # safetensors' own save_file makes files that only their owner may read.
    payload = save(weights, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(payload)
    task, dtype_name = _TASKS[type(model)], str(dtype).removeprefix("torch.")
    architecture = architecture_of(task, config=model.config)
    fields = model.config.to_hf(architecture=architecture) | {"dtype": dtype_name}
    _write_json(folder / "config.json", fields)
    _write_json(folder / "preprocessor_config.json", preprocessor(model.config))
    tokenizer.save(folder)
    words = card(
        model.config,
        task=task,
        num_parameters=sum(weight.numel() for weight in weights.values()),
        dtype=dtype_name,
        architecture=architecture,
    )
    (folder / "README.md").write_text(words, encoding="utf-8")


def _write_json(path: Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _load(
    source: str | Path,
    *,
    kind: type[Model],
    tokenizer: str | Path | None,
    image_size_px: int | None,
    dtype: torch.dtype,
) -> tuple[Model, Tokenizer]:
    found = find(source, task=_TASKS[kind], tokenizer=tokenizer)
    config = found.config.at_image_size(image_size_px) if image_size_px else found.config
    # Built without memory, then filled: no time is spent on random weights.
    try:
        with torch.device("meta"):
            model = kind(config).to(dtype)
    except ValueError as error:
        raise CheckpointError(f"{found.place}: {error}") from error
    model.to_empty(device="cpu")
    weights = _with_fitting_positions(found.weights, config=config, place=found.place)
    _fill(model, weights, place=found.place, name=KINDS[_TASKS[kind]].name)
    return model.eval(), found.tokenizer


def _with_fitting_positions(
    weights: Mapping[str, Tensor], *, config: BlipConfig, place: Path
) -> Mapping[str, Tensor]:
    positions = weights.get(POSITIONS)
    if positions is None or positions.shape[1:2] == (config.vision.num_tokens,):
        return weights
    old_side = grid_side(positions, place=place)
    resized = resize_positions(positions, num_tokens=config.vision.num_tokens)
    new_side = grid_side(resized, place=place)
    logger.info(
        "%s: positions of %d x %d patches are resized to %d x %d for images of %d px",
        *(place, old_side, old_side, new_side, new_side, config.vision.image_size_px),
    )
    return {**weights, POSITIONS: resized}


def _fill(model: nn.Module, weights: Mapping[str, Tensor], *, place: Path, name: str) -> None:
    parameters = stored_tensors(model)
    _refuse(place, f"tensors that a {name} needs are missing", set(parameters) - set(weights))
    _refuse(place, f"tensors that a {name} does not have", set(weights) - set(parameters))
    other = {
        f"{key} {tuple(weights[key].shape)} instead of {tuple(parameter.shape)}"
        for key, parameter in parameters.items()
        if weights[key].shape != parameter.shape
    }
    _refuse(place, "tensors of another shape than the config says", other)
    whole = {f"{key} {t.dtype}" for key, t in weights.items() if not t.is_floating_point()}
    _refuse(place, "tensors of a dtype that is no float", whole)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])
    # Looked at here and not in the file: a number may be too large for the dtype asked for.
    broken = {key for key, parameter in parameters.items() if not parameter.isfinite().all()}
    _refuse(place, "tensors that hold NaN or infinity", broken)


def _refuse(place: Path, what: str, names: set[str]) -> None:
    if names:
        raise CheckpointError(f"{place}: {len(names)} {what}: {some_of(names)}")
