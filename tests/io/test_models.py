from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import capfilt.io.models
from capfilt.errors import CheckpointError
from capfilt.io.models import local_model, model_digest, model_type_of


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


def test_a_model_on_a_store_is_copied_once_for_as_long_as_it_stays_the_same(model: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(model), "/once/", recursive=True)
    copied = local_model("memory://once/model")
    assert local_model("memory://once/model") == copied
    store.pipe_file("/once/model/model.safetensors", b"other weights")
    again = local_model("memory://once/model")
    assert (again / "model.safetensors").read_bytes() == b"other weights"


def test_the_copy_of_a_model_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import fsspec; from capfilt.io.models import local_model\n"
        "fsspec.filesystem('memory').pipe_file('/m/config.json', b'{}')\n"
        "assert (local_model('memory://m') / 'config.json').exists()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere://models/blip", "s3://models/blip"])
def test_a_store_that_cannot_be_asked_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # not installed
    with pytest.raises(CheckpointError, match=f"^{name}: cannot be read: .*(nowhere|s3fs)"):
        local_model(name)


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


def test_the_digest_of_a_model_changes_with_the_name_of_a_file(model: Path) -> None:
    before = model_digest(model)
    (model / "model.safetensors").rename(model / "other.safetensors")
    assert model_digest(model) != before


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.model", "merges.txt"])
def test_a_tokenizer_or_a_chat_template_is_part_of_the_model(model: Path, name: str) -> None:
    before = model_digest(model)
    (model / name).write_text("a")
    assert model_digest(model) != before


@pytest.mark.parametrize(
    ("config", "model_type"), [('{"model_type": "clip"}', "clip"), ("{}", None), ("[]", None)]
)
def test_the_config_says_of_what_type_a_model_is(
    model: Path, config: str, model_type: str | None
) -> None:
    (model / "config.json").write_text(config)
    assert model_type_of(model) == model_type


def test_a_config_that_is_not_json_is_named(model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON: "):
        model_type_of(model)


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json; not a model directory"):
        model_digest(tmp_path)
