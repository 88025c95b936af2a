"""Frames to MP4 and back. Frame k lies at exactly k / fps, which is how readers of the data set find it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vigil.errors import VigilError

# The AV1 encoder tells thirty lines about itself for every video; errors are still said.
os.environ.setdefault("SVT_LOG", "1")

GOP = 2  # a reader that wants one frame decodes at most two
# Name for people: encoder, its options, quality by default (constant rate factor).
CODECS: dict[str, tuple[str, dict[str, str], int]] = {
    "h264": ("libx264", {"preset": "veryfast"}, 23),
    "av1": ("libsvtav1", {"preset": "12"}, 30),
}
PIXELS = "yuv420p"


def check_codec(codec: str) -> None:
    """VigilError unless ``codec`` is known and PyAV has its encoder."""
    if codec not in CODECS:
        raise VigilError(f"codec {codec!r} is unknown: choose one of {', '.join(CODECS)}")
    if CODECS[codec][0] not in av.codecs_available:
        raise VigilError(f"this PyAV has no encoder {CODECS[codec][0]}: choose another --codec")


def encode(path: Path, frames: Iterable[np.ndarray], fps: int, codec: str, crf: int | None = None) -> int:
    """Write frames (uint8 [height, width, 3], red first, all of one size) to ``path``; gives their number.

    Raises:
        VigilError: no frames, an odd width or height (colours are stored at half resolution), or a frame of another
            size.
        OSError: the disk refuses.
    """
    try:
        return _encode(path, frames, fps, codec, crf)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise  # a full disk
        raise VigilError(f"{path.name} cannot be encoded: {error}") from None


def _encode(path: Path, frames: Iterable[np.ndarray], fps: int, codec: str, crf: int | None) -> int:
    encoder, options, usual = CODECS[codec]
    count, shape = 0, (0, 0)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for rgb in frames:
            if stream is None:
                shape = rgb.shape[:2]
                stream = _add_stream(container, encoder, shape, fps)
                quality = usual if crf is None else crf
                stream.options = {**options, "g": str(GOP), "crf": str(quality), **_one_thread(encoder)}
            if rgb.shape[:2] != shape:
                raise VigilError(
                    f"a picture of {rgb.shape[1]}x{rgb.shape[0]} among others of {shape[1]}x{shape[0]}"
                )
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(frame))
            count += 1
        if stream is None:
            raise VigilError("there are no frames to encode")
        container.mux(stream.encode())
    return count


def _add_stream(container: Any, encoder: str, shape: tuple[int, int], fps: int) -> Any:
    height, width = shape
    if height % 2 or width % 2:
        raise VigilError(f"pictures of {width}x{height} cannot be encoded: width and height must be even")
    stream = container.add_stream(encoder, rate=fps)
    stream.width, stream.height, stream.pix_fmt = width, height, PIXELS
    stream.codec_context.time_base = Fraction(1, fps)
    stream.codec_context.thread_count = 1  # cameras are encoded side by side
    return stream


def _one_thread(encoder: str) -> dict[str, str]:
    return {"svtav1-params": "lp=1"} if encoder == "libsvtav1" else {}


def decode(path: Path, start_s: float = 0.0, count: int | None = None) -> Iterator[np.ndarray]:
    """Frames of a video from ``start_s`` on, uint8 [height, width, 3], red first; ``count`` of them, or all.

    Raises:
        VigilError: no video, or it ends before ``count`` frames.
    """
    given = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            half = 0.5 / float(stream.average_rate)
            if start_s > 0:
                container.seek(int(start_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time < start_s - half:
                    continue
                if count is not None and given == count:
                    return
                given += 1
                yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError, OSError) as error:
        raise VigilError(f"{path} cannot be read as a video: {error}") from None
    if count is not None and given < count:
        raise VigilError(f"{path} holds {given} frames from {start_s:.3f} s on, {count} are declared")


def describe(codec: str, shape: tuple[int, int, int], fps: int, crf: int | None) -> dict[str, Any]:
    """The ``info`` of a video feature; ``shape`` is height, width, channels."""
    encoder, options, usual = CODECS[codec]
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": codec,
        "video.pix_fmt": PIXELS,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": shape[2],
        "has_audio": False,
        "video.g": GOP,
        "video.crf": usual if crf is None else crf,
        "video.preset": options["preset"],
        "video.encoder": encoder,
        "is_depth_map": False,
    }
