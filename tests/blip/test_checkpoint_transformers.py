"""Directories go to transformers and come back from it, tensor for tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from capfilt_blip import checkpoint
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise, to_uint8
from capfilt_blip.vqa import BlipVqa

transformers = pytest.importorskip("transformers")

CLASSES = {
    "captioner": "BlipForConditionalGeneration",
    "matcher": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
}
TIED = ("predictions.decoder.weight", "predictions.decoder.bias")


def saved(folder: Path, kind: str, model: Any, tokenizer: Tokenizer) -> Path:
    checkpoint.save_model(folder, model=model, tokenizer=tokenizer)
    return folder


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def without_tied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.endswith(TIED)}


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, kind: str, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Path:
    return saved(tmp_path / "ours", kind, request.getfixturevalue(kind), tokenizer)


def test_ours_to_transformers_and_back_changes_nothing(
    folder: Path, kind: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model, found = getattr(transformers, CLASSES[kind]).from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(found.values()), found  # missing, unexpected, mismatched
    ours = load_file(folder / "model.safetensors")
    assert same(without_tied(model.state_dict()), ours)
    model.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    again, _ = getattr(checkpoint, f"load_{kind}")(tmp_path / "theirs")
    assert same(
        load_file(saved(tmp_path / "again", kind, again, tokenizer) / "model.safetensors"), ours
    )


@pytest.mark.parametrize("max_shard_size", ["50GB", "200KB"])
def test_transformers_to_ours_and_back_changes_nothing(
    kind: str, config: BlipConfig, tmp_path: Path, tokenizer: Tokenizer, max_shard_size: str
) -> None:
    fields = config.to_hf(architecture=CLASSES[kind])
    theirs = getattr(transformers, CLASSES[kind])(transformers.BlipConfig(**fields))
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    tokenizer.save(tmp_path / "theirs")
    is_sharded = (tmp_path / "theirs/model.safetensors.index.json").exists()
    assert is_sharded == (max_shard_size == "200KB")
    model, _ = getattr(checkpoint, f"load_{kind}")(tmp_path / "theirs")
    folder = saved(tmp_path / "ours", kind, model, tokenizer)
    back = getattr(transformers, CLASSES[kind]).from_pretrained(folder)
    assert same(back.state_dict(), theirs.state_dict())


def test_transformers_processor_makes_the_same_pixels_and_ids(
    folder: Path, tokenizer: Tokenizer
) -> None:
    processor = transformers.BlipProcessor.from_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    images, words = [Image.fromarray(noise)], "a small red circle above two blue squares"
    made = processor(images=images, text=[words], return_tensors="pt")
    assert torch.equal(made["input_ids"], tokenizer.encode([words], first="cls", max_tokens=35).ids)
    pixels = normalise(to_uint8(images, side_px=32))
    torch.testing.assert_close(made["pixel_values"], pixels, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_answers_have_the_logits_of_transformers(
    tmp_path: Path, vqa: BlipVqa, tokenizer: Tokenizer
) -> None:
    # Without padding: since 4.54 transformers lets answers attend to the padding of questions.
    theirs = transformers.BlipForQuestionAnswering.from_pretrained(
        saved(tmp_path, "vqa", vqa, tokenizer)
    ).eval()
    pixels, questions = torch.randn(2, 3, 32, 32), torch.randint(5, 60, (2, 7))
    answers, mask = questions[:, :4].flip(1), torch.ones(2, 7, dtype=torch.bool)
    memory = vqa.text_encoder.project_memory(vqa.vision(pixels))
    ours = vqa.lm_logits(answers, mask[:, :4], vqa.read_questions(questions, mask, memory))
    read = theirs.text_encoder(
        input_ids=questions, encoder_hidden_states=theirs.vision_model(pixels).last_hidden_state
    ).last_hidden_state
    expected = theirs.text_decoder(input_ids=answers, encoder_hidden_states=read).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
