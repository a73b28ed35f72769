from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from capfilt_blip.train.errors import StateError
from capfilt_blip.train.progress import (
    keep_last,
    load_state,
    newest_sound,
    save_state,
    state_path,
)

STATE = {
    "model.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    "queue.ids": torch.empty(0, dtype=torch.int64),
    "steps": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
META = {"recipe": "0123", "note": "ä line\nand another"}


def saved(folder: Path, *steps: int) -> list[Path]:
    paths = [state_path(folder, step=step) for step in steps]
    for path in paths:
        save_state(path, STATE, META)
    return paths


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    [path] = saved(tmp_path / "new" / "folder", 3)
    state, meta = load_state(path)
    assert meta == META and state.keys() == STATE.keys()
    assert all(same(state[name], STATE[name]) for name in STATE)


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


def test_a_bit_flipped_anywhere_is_noticed(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 1)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(flipped(content, position))
        with pytest.raises(StateError):
            load_state(path)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_a_file_cut_short_anywhere_is_noticed(tmp_path: Path) -> None:
    [path] = saved(tmp_path, 1)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(StateError):
            load_state(path)


def test_the_newest_state_that_can_be_read_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = saved(tmp_path, 900, 1000, 12000)
    assert newest_sound(tmp_path) == third
    third.write_bytes(third.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert newest_sound(tmp_path) == second
    assert str(third) in caplog.text
    second.write_bytes(b"")
    assert newest_sound(tmp_path) == first


def test_an_empty_or_missing_folder_has_no_state(tmp_path: Path) -> None:
    assert newest_sound(tmp_path) is None and newest_sound(tmp_path / "none") is None


def test_the_last_states_are_kept_and_nothing_half_written(tmp_path: Path) -> None:
    _, second, third = saved(tmp_path, 1, 2, 3)
    (tmp_path / ".step-00000004.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of somebody else")
    keep_last(tmp_path, 2)
    assert {*tmp_path.iterdir()} == {second, third, tmp_path / "notes.txt"}


def test_a_writer_killed_midway_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = saved(tmp_path, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("capfilt_blip.train.progress._flush", killed)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"other": torch.zeros(1)}, {})
    assert load_state(path)[0].keys() == STATE.keys() and newest_sound(tmp_path) == path


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(StateError, match="has no digest"):
        load_state(tmp_path / "model.safetensors")
