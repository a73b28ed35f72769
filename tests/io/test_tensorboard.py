"""Event files are read back by the record format's own description, and by TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.errors import MissingDependencyError
from capfilt.io import tensorboard
from capfilt.io.tensorboard import EventFile


def written(folder: Path) -> Path:
    events = EventFile(folder)
    events.write(step=0, values={"loss": 12.5, "held_out/itm_text_r1": 0.25}, texts={})
    events.write(step=10, values={"loss": 3.0}, texts={"captions": ["a *red* star", "# a moon"]})
    events.close()
    [path] = folder.iterdir()
    return path


def crc32c(payload: bytes) -> int:
    """Bit by bit, by the reversed polynomial of RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in payload:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """TFRecord: length, its check sum, payload, its check sum."""
    left = path.read_bytes()
    while left:
        length, check = struct.unpack("<QI", left[:12])
        payload, (check_payload,) = (
            left[12 : 12 + length],
            struct.unpack_from("<I", left, 12 + length),
        )
        assert check == masked(crc32c(left[:8]))
        assert check_payload == masked(crc32c(payload))
        yield payload
        left = left[16 + length :]


def test_what_was_written_is_read_back(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    event = tensorboard.Event
    first, *events = [event.FromString(payload) for payload in records(written(tmp_path / "new"))]
    assert first.file_version == "brain.Event:2"
    values = [(one.step, value) for one in events for value in one.summary.value]
    assert [(step, value.tag, value.simple_value) for step, value in values[:3]] == [
        (0, "loss", 12.5), (0, "held_out/itm_text_r1", 0.25), (10, "loss", 3.0),
    ]  # fmt: skip
    [(step, text)] = values[3:]
    assert (step, text.tag) == (10, "captions/text_summary")
    assert text.metadata.plugin_data.plugin_name == "text"
    assert list(text.tensor.string_val) == [b"    a *red* star\n    # a moon"]
    assert all(one.wall_time > 1.7e9 for one in events)


def test_tensorboard_reads_it(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(written(tmp_path / "new").parent))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(0, 12.5), (10, 3.0)]
    [captions] = found.Tensors("captions/text_summary")
    assert captions.tensor_proto.string_val == [b"    a *red* star\n    # a moon"]


def test_two_writers_in_one_second_have_a_file_each(tmp_path: Path):
    pytest.importorskip("tensorboardX")
    for _ in range(2):
        EventFile(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tensorboard, "RecordWriter", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'capfilt\[tensorboard\]'") as no:
        EventFile(tmp_path / "new")
    assert "\n" not in str(no.value)
    assert not (tmp_path / "new").exists()
