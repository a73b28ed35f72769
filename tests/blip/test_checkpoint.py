from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import (
    CheckpointError,
    load_blip,
    load_captioner,
    load_matcher,
    save_blip,
    save_captioner,
    save_matcher,
)
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer) -> Path:
    save_captioner(tmp_path / "captioner", model=captioner, tokenizer=tokenizer)
    return tmp_path / "captioner"


def same_parameters(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    return all(a == b and torch.equal(p, q) for (a, p), (b, q) in pairs)


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def message(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_captioner(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_captioner_comes_back_as_it_was(folder: Path, captioner: BlipCaptioner) -> None:
    model, _ = load_captioner(folder)
    assert same_parameters(model, captioner)
    assert model.config == captioner.config
    assert not model.training


def test_a_matcher_comes_back_as_it_was(
    tmp_path: Path, matcher: BlipMatcher, tokenizer: Tokenizer
) -> None:
    save_matcher(tmp_path, model=matcher, tokenizer=tokenizer)
    assert same_parameters(load_matcher(tmp_path)[0], matcher)


def test_a_pre_training_model_comes_back_with_its_sharing(
    tmp_path: Path, blip: Blip, tokenizer: Tokenizer
) -> None:
    save_blip(tmp_path, model=blip, tokenizer=tokenizer)
    model, _ = load_blip(tmp_path)
    assert same_parameters(model, blip)
    assert model.text_encoder.embeddings is model.text_decoder.embeddings
    stored = sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(p.numel() for p in blip.parameters())


def test_the_same_model_gives_the_same_bytes(
    folder: Path, tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer
) -> None:
    save_captioner(tmp_path / "again", model=captioner, tokenizer=tokenizer)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_half_precision_on_disk_is_loaded_as_asked_for(
    folder: Path, tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer
) -> None:
    half = tmp_path / "half"
    save_captioner(half, model=captioner, tokenizer=tokenizer, dtype=torch.float16)
    full_bytes, half_bytes = ((f / "model.safetensors").stat().st_size for f in (folder, half))
    assert half_bytes < 0.6 * full_bytes
    model, _ = load_captioner(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_captioner(half, dtype=torch.bfloat16)[0].lm_head.bias.dtype == torch.bfloat16
    torch.testing.assert_close(model.lm_head.bias, captioner.lm_head.bias, rtol=1e-3, atol=1e-6)


def test_a_pickled_file_is_read_without_running_it(folder: Path, captioner: BlipCaptioner) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same_parameters(load_captioner(folder)[0], captioner)
    torch.save({"bias": Exploit()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in message(folder)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the pickle ran",)


def test_tied_tensors_may_be_there_twice_or_under_their_second_name(
    folder: Path, captioner: BlipCaptioner
) -> None:
    head = "text_decoder.cls.predictions"

    def rename(weights: dict[str, Tensor]) -> None:
        weights[f"{head}.decoder.bias"] = weights.pop(f"{head}.bias")
        words = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
        weights[f"{head}.decoder.weight"] = words.clone()
        weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(64)[None]

    change_weights(folder, rename)
    assert same_parameters(load_captioner(folder)[0], captioner)


def test_a_truncated_file_is_refused_at_any_length(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path}: {length:,} bytes that are no whole weights file" in message(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert message(folder) == f"{folder}: no model.safetensors and no pytorch_model.bin"
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    assert message(folder) == f"{folder}: no tokenizer.json and no vocab.txt"
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'}: no such file" in message(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: w.pop("vision_model.post_layernorm.bias"),
            "1 tensors that a captioner needs are missing: vision_model.post_layernorm.bias",
        ),
        (
            lambda w: w.update(extra=torch.ones(1)),
            "1 tensors that a captioner does not have: extra",
        ),
        (
            lambda w: w.update({"vision_model.post_layernorm.bias": torch.ones(9)}),
            "vision_model.post_layernorm.bias (9,) instead of (64,)",
        ),
        (
            lambda w: w["vision_model.post_layernorm.bias"].fill_(torch.nan),
            "1 tensors that hold NaN or infinity: vision_model.post_layernorm.bias",
        ),
    ],
)
def test_a_wrong_tensor_is_named(
    folder: Path, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    change_weights(folder, change)
    assert words in message(folder)


def test_many_wrong_tensors_are_counted_and_some_named(folder: Path) -> None:
    change_weights(folder, lambda w: [w.pop(k) for k in list(w) if k.startswith("vision_model")])
    assert "30 tensors that a captioner needs are missing: vision_model.embeddings." in message(
        folder
    )
    assert message(folder).endswith(", ...")


def test_a_matcher_is_no_captioner(
    tmp_path: Path, matcher: BlipMatcher, tokenizer: Tokenizer
) -> None:
    save_matcher(tmp_path, model=matcher, tokenizer=tokenizer)
    assert message(tmp_path) == (
        f"{tmp_path}/config.json: architectures is ['BlipForImageTextRetrieval']; "
        "a captioner is 'BlipForConditionalGeneration'"
    )


def test_a_file_that_is_no_blip_config_is_refused(folder: Path) -> None:
    change_config(folder, model_type="bert")
    assert "not a BLIP config: model_type is 'bert'" in message(folder)
    (folder / "config.json").write_text("{")
    assert "not a BLIP config" in message(folder)
    (folder / "config.json").write_text("[]")
    assert "not a BLIP config" in message(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    Tokenizer.train(["some other words here and there and more"], vocab_size=300).save(folder)
    assert "in the tokenizer and" in message(folder)


def test_a_source_that_is_neither_directory_nor_hub_id_is_refused(tmp_path: Path) -> None:
    assert "no such directory, and no hub id" in message(tmp_path / "nothing")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    found = message("Salesforce/blip-image-captioning-base")
    assert "Salesforce/blip-image-captioning-base: no such directory, and the hub does not" in found


def test_a_hub_id_is_downloaded_at_its_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str | None]] = []

    def download(hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((hub_id, revision))
        assert not any(pattern.endswith((".bin", ".h5", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Captioner.from_pretrained("owner/name@0123abc").image_size_px == 32
    assert calls == [("owner/name", "0123abc")]
