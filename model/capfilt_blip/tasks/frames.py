"""Frames of a video file: the first of each of n equal segments, as BLIP samples them.

The one home of PyAV, FFmpeg in Python: `pip install "capfilt[video]"`.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

Source: TypeAlias = str | Path | bytes
"""A video: the path of a file, or the bytes of one."""


class VideoError(ValueError):
    """A video cannot be read; the text is one line: which, what was found."""


def read_frames(source: Source, *, num_frames: int) -> list[Image.Image]:
    """Decode frames spread evenly over a video.

    The whole video is decoded to count its frames, for headers may say nothing or lie, and then
    once more up to the last frame wanted: no more than `num_frames` frames are held at any time.

    Args:
        source: path of a file, or its bytes. Never an address; nothing else is opened for it, not
            even what a playlist names.
        num_frames: how many; BLIP takes 8 for retrieval and 16 for questions. Of a video with
            fewer, some frames are given several times.

    Returns:
        `num_frames` RGB images of the video's size, turned upright where its header says how.

    Raises:
        OSError: there is no such file, or it may not be read.
        VideoError: it holds no video, is damaged or cut off.
        ValueError: `num_frames` is less than 1.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it must be 1 or more")
    num_decoded = sum(1 for _ in _decoded(source))
    if not num_decoded:
        raise VideoError(f"{_name(source)}: no frame can be decoded; it may be cut off")
    wanted = segment_starts(num_decoded, num_segments=num_frames)
    images: dict[int, Image.Image] = {}
    with closing(_decoded(source)) as frames:
        for place, frame in enumerate(frames):
            if place in wanted:
                images[place] = _upright(frame)
            if place == wanted[-1]:
                break
    return [images[place] for place in wanted]


def segment_starts(num_decoded: int, *, num_segments: int) -> list[int]:
    """Cut a video into equal segments and return the first frame of each.

    This is what BLIP's `np.arange(0, length, length / n, dtype=int)` was meant to give; NumPy cuts
    that step to a whole number, so that the end of a video counts less, and of one with fewer than
    n frames only the first is seen.

    Args:
        num_decoded: frames of the video, at least 1.
        num_segments: n.

    Returns:
        n indices, not falling; some come several times where there are fewer frames than segments.
    """
    return [segment * num_decoded // num_segments for segment in range(num_segments)]


def _decoded(source: Source) -> Generator[VideoFrame]:
    """Yield all frames in the order in which they are shown."""
    name = _name(source)
    with _opened(source) as file:
        try:
            yield from _frames(file, name=name)
        # OSError, too: a damaged file can make FFmpeg look for data at places that do not exist.
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{name}: cannot be decoded as a video, or is cut off: {error.strerror}"
            ) from error


def _frames(file: BinaryIO, *, name: str) -> Generator[VideoFrame]:
    # A playlist may name other files and hosts; no protocol is called "none".
    with av.open(file, mode="r", options={"protocol_whitelist": "none"}) as container:
        for place, frame in enumerate(container.decode(_video_stream(container, name=name))):
            if frame.is_corrupt:
                raise VideoError(f"{name}: frame {place} is damaged; the file may be cut off")
            yield frame


def _opened(source: Source) -> BinaryIO:
    # FFmpeg gets a file object, never a name: it reads names such as "http:..." as addresses.
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _video_stream(container: av.container.InputContainer, *, name: str) -> VideoStream:
    if not container.streams.video:
        raise VideoError(f"{name}: holds no video stream")
    stream = container.streams.video[0]
    # Without this, decoding would end the process (PyAV-Org/PyAV#2344).
    if stream.codec_context is None:
        raise VideoError(f"{name}: its codec cannot be told; it may be cut off")
    return stream


def _upright(frame: VideoFrame) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _name(source: Source) -> str:
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)
