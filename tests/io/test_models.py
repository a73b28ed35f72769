from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import capfilt.io.models
from capfilt.errors import CheckpointError
from capfilt.io.models import local_model, model_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_directory_is_its_own_local_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert local_model(str(model)) == model
    assert local_model(f"file://{model}") == model
    assert local_model("model") == Path("model")


def test_a_model_on_a_store_is_copied_here(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").put(str(model), "/models/", recursive=True)
    copied = local_model("memory://models/model")
    assert copied.is_relative_to(tmp_path)
    assert model_digest(copied) == model_digest(model)


@pytest.mark.parametrize("name", ["/no/such/model", "./none", "memory://none"])
def test_a_model_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}: no "):
        local_model(name)


def test_a_hub_that_does_not_answer_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError("no network\nand no cache")

    monkeypatch.setattr(capfilt.io.models, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError) as error:
        local_model("someone/some-model")
    assert str(error.value) == (
        "someone/some-model: neither a directory here nor a model the hub gives out "
        "(LocalEntryNotFoundError: no network)"
    )


def test_the_digest_of_a_model_changes_with_a_file_the_model_is_made_of(model: Path) -> None:
    before = model_digest(model)
    (model / "README.md").write_text("words")
    assert model_digest(model) == before
    (model / "vocab.txt").write_text("[PAD]")
    with_vocab = model_digest(model)
    (model / "model.safetensors").write_bytes(b"weightz")
    assert len({before, with_vocab, model_digest(model)}) == 3


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json; not a model directory"):
        model_digest(tmp_path)
