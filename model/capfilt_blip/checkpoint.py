"""Models on disk, in the layout of transformers: config.json, model.safetensors, tokenizer.

    captioner   BlipForConditionalGeneration   read and written, loads in transformers
    matcher     BlipForImageTextRetrieval      read and written, loads in transformers
    blip        CapfiltBlip                    pre-training: transformers has no class for it

A load accounts for every tensor: one that is missing, unknown, of another shape or not finite is
an error that names it, for weights that stay random do their damage unseen.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import CHANNEL_MEAN, CHANNEL_STD

Model = TypeVar("Model", Blip, BlipCaptioner, BlipMatcher)


class CheckpointError(ValueError):
    """A model cannot be read; the text is one line: where, what was found, what is needed."""


def load_captioner(
    source: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[BlipCaptioner, Tokenizer]:
    """Read a captioner.

    Args:
        source: a directory in transformers' layout, or a hub id such as
            "Salesforce/blip-image-captioning-base", with "@" and a commit behind it if wanted.
        dtype: of the parameters in memory, whatever the file holds.

    Returns:
        The model in eval mode on the CPU, and its tokenizer.

    Raises:
        CheckpointError: the source cannot be read, or is something else.
    """
    return _load(source, kind=BlipCaptioner, dtype=dtype)


def load_matcher(
    source: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[BlipMatcher, Tokenizer]:
    """Read a matcher; otherwise as `load_captioner`."""
    return _load(source, kind=BlipMatcher, dtype=dtype)


def load_blip(source: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Blip, Tokenizer]:
    """Read a pre-training model; otherwise as `load_captioner`."""
    return _load(source, kind=Blip, dtype=dtype)


def save_captioner(
    directory: str | Path,
    *,
    model: BlipCaptioner,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a captioner as a directory that `load_captioner` and transformers read.

    The same model gives the same bytes.

    Args:
        directory: made if it does not exist; files of an earlier model in it are replaced.
        model: on any device.
        tokenizer: the one the model was trained with.
        dtype: of the stored weights; float16 halves the file.
    """
    _save(directory, model=model, tokenizer=tokenizer, dtype=dtype)


def save_matcher(
    directory: str | Path,
    *,
    model: BlipMatcher,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a matcher; otherwise as `save_captioner`."""
    _save(directory, model=model, tokenizer=tokenizer, dtype=dtype)


def save_blip(
    directory: str | Path,
    *,
    model: Blip,
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a pre-training model, each shared parameter once; otherwise as `save_captioner`."""
    _save(directory, model=model, tokenizer=tokenizer, dtype=dtype)


# What a class of model is called here and in `architectures` of config.json.
_NAMES: dict[type, tuple[str, str]] = {
    BlipCaptioner: ("captioner", "BlipForConditionalGeneration"),
    BlipMatcher: ("matcher", "BlipForImageTextRetrieval"),
    Blip: ("pre-training model", "CapfiltBlip"),
}

# Our parameter names to those of transformers, applied in this order. There is no way back: a load
# asks for the name of each parameter it needs.
_VISION_NAMES = (
    (r"^vision\.class_token", "vision_model.embeddings.class_embedding"),
    (r"^vision\.positions", "vision_model.embeddings.position_embedding"),
    (r"^vision\.patches", "vision_model.embeddings.patch_embedding"),
    (r"^vision\.norm", "vision_model.post_layernorm"),
    (r"^vision\.layers", "vision_model.encoder.layers"),
    (r"\.norm(\d)", r".layer_norm\1"),
    (r"\.attention\.out", ".self_attn.projection"),
    (r"\.attention\.qkv", ".self_attn.qkv"),
    (r"\.mlp\.up", ".mlp.fc1"),
    (r"\.mlp\.down", ".mlp.fc2"),
)
_TEXT_NAMES = (
    (r"^text_decoder\.", "text_decoder.bert."),
    (r"^lm_head\.bias", "text_decoder.cls.predictions.bias"),
    (r"^lm_head\.dense", "text_decoder.cls.predictions.transform.dense"),
    (r"^lm_head\.norm", "text_decoder.cls.predictions.transform.LayerNorm"),
    (r"\.embeddings\.words", ".embeddings.word_embeddings"),
    (r"\.embeddings\.positions", ".embeddings.position_embeddings"),
    (r"\.embeddings\.norm", ".embeddings.LayerNorm"),
    (r"\.layers\.", ".encoder.layer."),
    (r"\.self_attention\.heads\.(query|key|value)", r".attention.self.\1"),
    (r"\.self_attention\.heads\.out", ".attention.output.dense"),
    (r"\.self_attention\.norm", ".attention.output.LayerNorm"),
    (r"\.cross_attention\.heads\.(query|key|value)", r".crossattention.self.\1"),
    (r"\.cross_attention\.heads\.out", ".crossattention.output.dense"),
    (r"\.cross_attention\.norm", ".crossattention.output.LayerNorm"),
    (r"\.feed_forward\.up", ".intermediate.dense"),
    (r"\.feed_forward\.down", ".output.dense"),
    (r"\.feed_forward\.norm", ".output.LayerNorm"),
)
# Second names of tied tensors, which some files hold beside the first or in place of it.
_LM_HEAD = "text_decoder.cls.predictions"
_TIED = {
    f"{_LM_HEAD}.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    f"{_LM_HEAD}.decoder.bias": f"{_LM_HEAD}.bias",
}


def _hf_name(name: str) -> str:
    for pattern, replacement in _VISION_NAMES if name.startswith("vision.") else _TEXT_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _save(
    directory: str | Path,
    *,
    model: Blip | BlipCaptioner | BlipMatcher,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
) -> None:
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # named_parameters gives a shared parameter once, which is also what safetensors asks for.
    weights = {
        _hf_name(name): parameter.detach().to("cpu", dtype).contiguous()
        for name, parameter in model.named_parameters()
    }
    # safetensors' own save_file makes files that only their owner may read.
    payload = save(weights, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(payload)
    _, architecture = _NAMES[type(model)]
    fields = model.config.to_hf(architecture=architecture)
    fields["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", fields)
    _write_json(folder / "preprocessor_config.json", _preprocessor(model.config))
    tokenizer.save(folder)


def _preprocessor(config: BlipConfig) -> dict[str, Any]:
    side = config.vision.image_size_px
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CHANNEL_MEAN),
        "image_std": list(CHANNEL_STD),
    }


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _load(source: str | Path, *, kind: type[Model], dtype: torch.dtype) -> tuple[Model, Tokenizer]:
    folder = _folder(source)
    config = _read_config(folder / "config.json", kind=kind)
    tokenizer = _read_tokenizer(folder, config=config)
    path, weights = _read_weights(folder)
    # Built without memory, then filled: no time is spent on random weights.
    with torch.device("meta"):
        model = kind(config).to(dtype)
    model.to_empty(device="cpu")
    _fill(model, _untied(weights), path=path)
    return model.eval(), tokenizer


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    hub_id, _, revision = str(source).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", hub_id):
        raise CheckpointError(f"{source}: no such directory, and no hub id, which is 'owner/name'")
    try:
        folder = _download(hub_id, revision=revision or None, weights="model.safetensors")
        if not (folder / "model.safetensors").exists():
            folder = _download(hub_id, revision=revision or None, weights="pytorch_model.bin")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: no such directory, and the hub does not give it "
            f"({type(error).__name__}); check the name and the network, or name a directory"
        ) from error
    return folder


def _download(hub_id: str, *, revision: str | None, weights: str) -> Path:
    patterns = ["config.json", "tokenizer.json", "vocab.txt", weights]
    folder = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
    return Path(folder)


def _read_config(path: Path, *, kind: type[Model]) -> BlipConfig:
    name, architecture = _NAMES[kind]
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        config = BlipConfig.from_hf(fields)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; a model directory needs one") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a BLIP config: {error}") from error
    found = fields.get("architectures") or [architecture]
    if found != [architecture]:
        raise CheckpointError(f"{path}: architectures is {found}; a {name} is {architecture!r}")
    return config


def _read_tokenizer(folder: Path, *, config: BlipConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_dir(folder)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error
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
                f"{folder}: {name} is {in_tokenizer} in the tokenizer and {in_config} in "
                "config.json; they must agree"
            )
    return tokenizer


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    path = folder / "model.safetensors"
    if not path.exists():
        path = folder / "pytorch_model.bin"
    try:
        if path.suffix == ".bin":
            return path, torch.load(path, map_location="cpu", weights_only=True)
        return path, load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no model.safetensors and no pytorch_model.bin") from error
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes that are no whole weights file "
            f"({_first_line(error)}); copy or download it again"
        ) from error


def _fill(model: Model, weights: Mapping[str, Tensor], *, path: Path) -> None:
    parameters = {_hf_name(name): parameter for name, parameter in model.named_parameters()}
    name, _ = _NAMES[type(model)]
    _refuse(path, f"tensors that a {name} needs are missing", set(parameters) - set(weights))
    _refuse(path, f"tensors that a {name} does not have", set(weights) - set(parameters))
    other = {
        f"{key} {tuple(weights[key].shape)} instead of {tuple(parameter.shape)}"
        for key, parameter in parameters.items()
        if weights[key].shape != parameter.shape
    }
    _refuse(path, "tensors of another shape than config.json says", other)
    broken = {key for key in parameters if not weights[key].isfinite().all()}
    _refuse(path, "tensors that hold NaN or infinity", broken)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])


def _refuse(path: Path, what: str, names: set[str]) -> None:
    if names:
        shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
        raise CheckpointError(f"{path}: {len(names)} {what}: {shown}")


def _untied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tied tensors their first name, and leave out what is no weight."""
    kept = {key: value for key, value in weights.items() if not key.endswith(".position_ids")}
    for second, first in _TIED.items():
        if second in kept:
            kept.setdefault(first, kept[second])
            del kept[second]
    return kept


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
