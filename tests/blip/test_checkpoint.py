from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from capfilt_blip import checkpoint
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import (
    CheckpointError,
    load_blip,
    load_captioner,
    load_matcher,
    load_vqa,
    save_model,
)
from capfilt_blip.config import BlipConfig
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vision import resize_positions
from capfilt_blip.vqa import BlipVqa
from tests.blip import original_files
from tests.blip.original_files import filled


@pytest.fixture
def folder(tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "captioner", model=captioner, tokenizer=tokenizer)
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
    save_model(tmp_path, model=matcher, tokenizer=tokenizer)
    assert same_parameters(load_matcher(tmp_path)[0], matcher)


@pytest.mark.parametrize("kind", ["vqa", "nlvr", "grounding"])
def test_a_model_of_another_task_comes_back_as_it_was(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    words = request.getfixturevalue("box_tokenizer" if kind == "grounding" else "tokenizer")
    save_model(tmp_path, model=model, tokenizer=words)
    loaded, tokenizer = getattr(checkpoint, f"load_{kind}")(tmp_path)
    assert same_parameters(loaded, model) and not loaded.training
    assert loaded.config == model.config
    assert tokenizer.vocab_size == words.vocab_size


def test_a_vqa_model_too_wide_for_transformers_says_so_and_comes_back(
    tmp_path: Path, config: BlipConfig, tokenizer: Tokenizer
) -> None:
    vision = dataclasses.replace(config.vision, width=96, num_heads=3)
    text = dataclasses.replace(config.text, image_width=96)
    model = BlipVqa(dataclasses.replace(config, vision=vision, text=text))
    save_model(tmp_path, model=model, tokenizer=tokenizer)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["architectures"] == ["CapfiltBlipForQuestionAnswering"]
    assert same_parameters(load_vqa(tmp_path)[0], model)


def test_a_pre_training_model_comes_back_with_its_sharing(
    tmp_path: Path, blip: Blip, tokenizer: Tokenizer
) -> None:
    save_model(tmp_path, model=blip, tokenizer=tokenizer)
    model, _ = load_blip(tmp_path)
    assert same_parameters(model, blip)
    assert model.text_encoder.embeddings is model.text_decoder.embeddings
    stored = sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(p.numel() for p in blip.parameters())


def test_the_same_model_gives_the_same_bytes(
    folder: Path, tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer
) -> None:
    save_model(tmp_path / "again", model=captioner, tokenizer=tokenizer)
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_half_precision_on_disk_is_loaded_as_asked_for(
    folder: Path, tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer
) -> None:
    half = tmp_path / "half"
    save_model(half, model=captioner, tokenizer=tokenizer, dtype=torch.float16)
    full_bytes, half_bytes = ((f / "model.safetensors").stat().st_size for f in (folder, half))
    assert half_bytes < 0.6 * full_bytes
    model, _ = load_captioner(half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_captioner(half, dtype=torch.bfloat16)[0].lm_head.bias.dtype == torch.bfloat16
    torch.testing.assert_close(model.lm_head.bias, captioner.lm_head.bias, rtol=1e-3, atol=1e-6)


def test_a_pickled_file_is_read(folder: Path, captioner: BlipCaptioner) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same_parameters(load_captioner(folder)[0], captioner)


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
    for length in (7, 100, len(whole) // 2, len(whole) - 1):
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
    save_model(tmp_path, model=matcher, tokenizer=tokenizer)
    assert message(tmp_path) == (
        f"{tmp_path}/config.json: architectures is ['BlipForImageTextRetrieval'], a matcher, "
        "which load_matcher reads; a captioner is 'BlipForConditionalGeneration'"
    )


def test_an_architecture_nobody_reads_is_named(folder: Path) -> None:
    change_config(folder, architectures=["BlipModel"])
    assert message(folder) == (
        f"{folder}/config.json: architectures is ['BlipModel']; "
        "a captioner is 'BlipForConditionalGeneration'"
    )
    change_config(folder, architectures=None)
    load_captioner(folder)  # then the weights decide


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
    assert "no such directory or file, and no hub id" in message(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["weights/model_base.pth", "models/none.safetensors"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name: str) -> None:
    assert message(name).startswith(f"{name}: no such directory or file")


def test_an_address_is_refused_with_what_to_do() -> None:
    url = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base.pth"
    assert message(url) == f"{url}: an address; download the file and name it by its path"


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


def test_one_file_of_a_directory_is_read_with_the_config_beside_it(
    folder: Path, captioner: BlipCaptioner
) -> None:
    assert same_parameters(load_captioner(folder / "model.safetensors")[0], captioner)
    (folder / "config.json").unlink()
    assert f"{folder}/config.json: no such file" in message(folder / "model.safetensors")


def test_a_tokenizer_given_by_name_replaces_the_one_beside_the_weights(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tokenizer.save(other)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    for place in (other, other / "vocab.txt", other / "tokenizer.json"):
        assert load_captioner(folder, tokenizer=place)[1].vocab_size == tokenizer.vocab_size
    with pytest.raises(CheckpointError, match=r"none\.txt: no such file or directory"):
        load_captioner(folder, tokenizer=tmp_path / "none.txt")


def test_positions_are_resized_on_request(folder: Path, captioner: BlipCaptioner) -> None:
    model, _ = load_captioner(folder, image_size_px=48)
    assert model.config.vision.image_size_px == model.vision.config.image_size_px == 48
    expected = resize_positions(captioner.vision.positions, num_tokens=37)  # 6 x 6 and the class
    assert torch.equal(model.vision.positions, expected)
    assert torch.equal(model.vision.norm.bias, captioner.vision.norm.bias)


def test_positions_that_do_not_fit_the_config_are_resized_and_it_is_said(
    folder: Path, captioner: BlipCaptioner, caplog: pytest.LogCaptureFixture
) -> None:
    fields = json.loads((folder / "config.json").read_text())
    change_config(folder, vision_config=fields["vision_config"] | {"image_size": 64})
    with caplog.at_level(logging.INFO, logger="capfilt_blip.checkpoint"):
        model, _ = load_captioner(folder)
    expected = resize_positions(captioner.vision.positions, num_tokens=65)
    assert torch.equal(model.vision.positions, expected)
    assert caplog.messages == [
        f"{folder}/model.safetensors: positions of 4 x 4 patches are resized to 8 x 8 for images "
        "of 64 px"
    ]


def test_positions_that_are_no_square_are_not_resized(folder: Path) -> None:
    name = "vision_model.embeddings.position_embedding"
    change_weights(folder, lambda w: w.update({name: torch.ones(1, 13, 64)}))
    assert f"{name} is (1, 13, 64); the class token and a square of patches are due" in message(
        folder
    )


def test_numbers_too_large_for_the_dtype_asked_for_are_refused(folder: Path) -> None:
    change_weights(folder, lambda w: w["vision_model.post_layernorm.bias"].fill_(1e6))
    load_captioner(folder)
    with pytest.raises(CheckpointError, match="1 tensors that hold NaN or infinity: vision_model"):
        load_captioner(folder, dtype=torch.float16)


def test_integers_are_no_weights(folder: Path) -> None:
    name = "vision_model.post_layernorm.bias"
    change_weights(folder, lambda w: w.update({name: torch.ones(64, dtype=torch.int8)}))
    assert f"1 tensors of a dtype that is no float: {name} torch.int8" in message(folder)


def test_shards_are_one_model(folder: Path, captioner: BlipCaptioner) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({n: t for n, t in weights.items() if shards[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same_parameters(load_captioner(folder)[0], captioner)


def test_the_tokenizer_of_an_original_is_that_of_bert_on_the_hub(
    tmp_path: Path, captioner: BlipCaptioner, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = original_files.tiny(vocab_size=tokenizer.vocab_size)
    torch.save({"model": filled(original_files.caption(size))}, tmp_path / "model.pth")
    (tmp_path / "cache").mkdir()
    tokenizer.save(tmp_path / "cache")

    def download(hub_id: str, name: str) -> str:
        assert (hub_id, name) == ("bert-base-uncased", "vocab.txt")
        return str(tmp_path / "cache/vocab.txt")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_captioner(tmp_path / "model.pth")[1].vocab_size == tokenizer.vocab_size

    def unreachable(*_: object) -> str:
        raise LocalEntryNotFoundError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    assert message(tmp_path / "model.pth") == (
        f"{tmp_path}/model.pth: no vocab.txt beside it, and the hub does not give that of "
        "bert-base-uncased (LocalEntryNotFoundError); name one by tokenizer="
    )


def test_the_tokenizer_of_an_original_must_have_its_number_of_tokens(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    size = original_files.tiny(vocab_size=tokenizer.vocab_size + 3)
    torch.save({"model": filled(original_files.caption(size))}, tmp_path / "model.pth")
    tokenizer.save(tmp_path)
    assert message(tmp_path / "model.pth") == (
        f"{tmp_path}/model.pth: words for {tokenizer.vocab_size + 3} tokens, and the tokenizer has "
        f"{tokenizer.vocab_size}; give the one it was trained with"
    )


def test_pickles_are_downloaded_only_where_there_are_no_safetensors(
    folder: Path, captioner: BlipCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    asked: list[str] = []

    def download(hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(" ".join(allow_patterns[3:]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same_parameters(load_captioner("owner/name")[0], captioner)
    assert asked == [
        "model.safetensors model.safetensors.index.json model-*.safetensors",
        "pytorch_model.bin pytorch_model.bin.index.json pytorch_model-*.bin",
    ]
