from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from capfilt_blip.tasks.frames import VideoError, read_frames, segment_starts


def _write(path: Path, *, num_frames: int, codec: str = "mpeg4", rotation: int = 0) -> Path:
    """A video whose frame i has the level 20 * i in red and, below the middle, in green, too."""
    with av.open(str(path), "w", options=_options(path)) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for place in range(num_frames):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[..., 0] = pixels[24:, :, 1] = 20 * place % 256
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def _options(path: Path) -> dict[str, str]:
    # The index before the frames: what is cut off can still be opened.
    return {"movflags": "faststart"} if path.suffix == ".mp4" else {}


def _levels(images: list[Image.Image]) -> list[int]:
    """Which frame each image is."""
    return [round(np.asarray(image)[:, :, 0].mean() / 20) for image in images]


@pytest.mark.parametrize(
    ("num_decoded", "num_segments", "expected"),
    [
        (10, 4, [0, 2, 5, 7]),  # starts at 0, 2.5, 5 and 7.5
        (300, 8, [0, 37, 75, 112, 150, 187, 225, 262]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 8, [0, 0, 0, 1, 1, 1, 2, 2]),
        (1, 2, [0, 0]),
        (9, 1, [0]),
    ],
)
def test_segments_are_equal(num_decoded: int, num_segments: int, expected: list[int]) -> None:
    assert segment_starts(num_decoded, num_segments=num_segments) == expected


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])  # of these .mp4 alone says how many
@pytest.mark.parametrize(("num_frames", "expected"), [(4, [0, 2, 5, 7]), (1, [0]), (10, range(10))])
def test_the_first_frame_of_each_segment_is_read(
    tmp_path: Path, name: str, num_frames: int, expected: list[int]
) -> None:
    path = _write(tmp_path / name, num_frames=10, codec="mpeg2video" if "ts" in name else "mpeg4")
    frames = read_frames(path, num_frames=num_frames)
    assert _levels(frames) == list(expected)
    assert {frame.size for frame in frames} == {(64, 48)}
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_short_video_gives_frames_several_times(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", num_frames=3)
    assert _levels(read_frames(path, num_frames=8)) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_frames_come_in_the_order_in_which_they_are_shown(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", num_frames=12, codec="libx264")  # stored in another one
    assert _levels(read_frames(path, num_frames=12)) == list(range(12))


def test_bytes_are_read_like_their_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", num_frames=5)
    assert read_frames(path.read_bytes(), num_frames=3) == read_frames(str(path), num_frames=3)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, 63)), (-90, (47, 0)), (180, (63, 47))])
def test_a_turned_video_is_turned_back(
    tmp_path: Path, rotation: int, corner: tuple[int, int]
) -> None:
    path = _write(tmp_path / "a.mp4", num_frames=6, rotation=rotation)
    frame = read_frames(path, num_frames=6)[5]
    assert frame.size == ((64, 48) if rotation == 180 else (48, 64))
    red, green, _ = np.asarray(frame, dtype=int)[
        corner[1], corner[0]
    ]  # where the upper left corner went
    assert red == pytest.approx(100, abs=9)
    assert green == pytest.approx(0, abs=9)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.5, 0.7, 0.95])
def test_a_cut_off_file_says_so(tmp_path: Path, codec: str, kept: float) -> None:
    path = _write(tmp_path / "a.mp4", num_frames=10, codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(VideoError, match=r"a\.mp4: .*cut off"):
        read_frames(path, num_frames=2)


def test_a_cut_that_leaves_no_codec_does_not_end_the_process(tmp_path: Path) -> None:
    data = _write(tmp_path / "a.mp4", num_frames=30, codec="libx264").read_bytes()
    with pytest.raises(VideoError, match="video of 406 bytes: its codec cannot be told"):
        read_frames(data[:406], num_frames=2)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = np.zeros((1, 800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"a\.wav: holds no video stream"):
        read_frames(path, num_frames=2)


def test_a_text_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a star")
    with pytest.raises(VideoError, match=r"a\.txt: cannot be decoded as a video.*Invalid data"):
        read_frames(path, num_frames=2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.mp4"):
        read_frames(tmp_path / "no.mp4", num_frames=2)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    secret = _write(tmp_path / "a.ts", num_frames=5, codec="mpeg2video")
    playlist = tmp_path / "a.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"a\.m3u8"):
        read_frames(playlist, num_frames=2)


def test_at_least_one_frame_must_be_wanted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_frames is 0; it must be 1 or more"):
        read_frames(tmp_path, num_frames=0)
