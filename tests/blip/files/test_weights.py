"""Files of weights: what is whole is read, what is not is one readable line."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from capfilt_blip.files.weights import CheckpointError, read_directory, read_file

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.bias": torch.ones(4)}


def message(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_directory(path) if path.is_dir() else read_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(found: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


def sharded(folder: Path, *, suffix: str = "safetensors") -> Path:
    """Two shards of one tensor each, and their index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items(), start=1):
        shards[name] = f"{stem}-0000{number}-of-00002.{suffix}"
        write = save_file if suffix == "safetensors" else torch.save
        write({name: tensor}, folder / shards[name])
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": shards}))
    return index


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "optimizer": {"state": {}}, "config": {"lr": 1e-5}, "epoch": 3},
        {"meta": {"time": "now"}, "state_dict": WEIGHTS},
        {"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
    ],
)
@pytest.mark.parametrize("is_new_format", [True, False])
def test_a_state_dict_is_found_in_what_training_saves(
    tmp_path: Path, content: dict[str, Any], is_new_format: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_new_format)
    assert same(read_file(path))


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "anything.safetensors")
    assert same(read_file(tmp_path / "anything.safetensors"))


def test_names_keep_a_module_prefix_that_not_all_have(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(1), "b": torch.ones(2)}
    torch.save(weights, tmp_path / "model.pth")
    assert same(read_file(tmp_path / "model.pth"), weights)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_index(tmp_path: Path, suffix: str) -> None:
    index = sharded(tmp_path, suffix=suffix)
    place, weights = read_directory(tmp_path)
    assert place == index and same(weights)


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    sharded(tmp_path)
    assert same(read_directory(tmp_path)[1])


def test_a_pickle_with_code_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": WEIGHTS, "extra": Exploit(tmp_path / "made")}, path)
    assert message(path) == (
        f"{path}: a pickle that wants to run '{os.name}.mkdir', which was not done; "
        "only tensors are read: save the state dict alone"
    )
    assert not (tmp_path / "made").exists()
    torch.save(torch.nn.Linear(2, 2), path)
    assert "wants to run 'torch.nn.modules.linear.Linear'" in message(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "model.pth: an empty file; copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
            "model.pth: a git-lfs pointer, not the weights; run `git lfs pull` where it came from",
        ),
        (
            b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
            "model.pth: a web page, not weights: it starts with '<!DOCTYPE html><html'; "
            "check the address it was downloaded from",
        ),
        (
            b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
            "model.pth: a web page, not weights: it starts with",
        ),
        (b"\x00" * 100, "model.pth: 100 bytes that are no whole weights file ("),
        (pickle.dumps([1, 2], 2), "model.pth: 12 bytes that are no whole weights file ("),
    ],
)
def test_what_is_no_weights_file_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert words in message(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list; a dict of tensors is due"),
        (torch.ones(1), "holds a Tensor; a dict of tensors is due"),
        ({}, "holds no tensors; its keys are: "),
        ({"epoch": 3, "model": {"lr": 0.1}}, "holds no tensors; its keys are: lr"),
        ({"a": torch.ones(1), "epoch": 3}, "holds entries that are no tensors: epoch"),
    ],
)
def test_a_file_without_a_dict_of_tensors_says_what_it_holds(
    tmp_path: Path, content: Any, words: str
) -> None:
    torch.save(content, tmp_path / "model.pth")
    assert words in message(tmp_path / "model.pth")


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    assert message(tmp_path / "none.pth").endswith("cannot be read (No such file or directory)")


@pytest.mark.parametrize("is_new_format", [True, False])
def test_a_damaged_pickle_is_one_line_whatever_is_damaged(
    tmp_path: Path, is_new_format: bool
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=is_new_format)
    whole = path.read_bytes()
    rng = random.Random(0)
    for length in range(0, len(whole), 40):
        path.write_bytes(whole[:length])
        message(path)
    for _ in range(60):
        path.write_bytes(b"\x80\x02" + rng.randbytes(rng.randrange(1, 200)))
        message(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert message(tmp_path) == (
        f"{index}: 1 of its 2 shards are missing: model-00002-of-00002.safetensors; download them"
    )


def test_a_shard_that_holds_something_else_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    save_file({"c.bias": torch.ones(4)}, shard)
    assert message(tmp_path) == (
        f"{shard}: holds 1 tensors and model.safetensors.index.json says 1; "
        "they differ in: b.bias, c.bias"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not an index of shards (JSONDecodeError"),
        ("[]", "not an index of shards (TypeError"),
        ('{"metadata": {}}', "not an index of shards (KeyError: 'weight_map')"),
        ('{"weight_map": {}}', "names no files; files beside it are due"),
        ('{"weight_map": {"a": "../b.bin"}}', "names ../b.bin; files beside it are due"),
        ('{"weight_map": {"a": 3}}', "not an index of shards (TypeError"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert words in message(tmp_path)


def test_shards_without_an_index_are_not_guessed(tmp_path: Path) -> None:
    sharded(tmp_path).unlink()
    assert message(tmp_path) == (
        f"{tmp_path}: no model.safetensors and no pytorch_model.bin; "
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors need their index, "
        "a file *.index.json: download it"
    )


@pytest.mark.parametrize("place", [".", ".cache/huggingface/download", "../../blobs"])
def test_a_download_that_did_not_finish_is_noticed(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "snapshots" / "0123abc"
    (folder / place).mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / place / "4d7a.incomplete").write_bytes(b"half")
    assert message(folder) == (
        f"{folder}: no model.safetensors and no pytorch_model.bin; "
        "a download did not finish (4d7a.incomplete): repeat it"
    )


def test_a_link_into_an_emptied_cache_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "4d7a")
    assert message(tmp_path).endswith(
        "model.safetensors: a link to a file that is not there; the download did not finish: "
        "repeat it"
    )
