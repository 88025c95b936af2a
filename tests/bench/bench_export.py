"""How fast a recording becomes a data set: two cameras of 640x480 at 30 Hz, and lerobot's own writer beside it.

    .venv/bin/python tests/bench/bench_export.py [--minutes 10] [--codec h264]

lerobot is compared where it is installed: it gets the same pictures, decoded from the same recording, frame by frame.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pictures import SHAPE, as_jpeg, moving_scene

sys.path.insert(0, str(Path(__file__).parents[1]))

from support import recordings
from vigil.record.dataset import frames
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.prepare import Wanted, prepare
from vigil.record.dataset.resample import Grid

FPS, CAMERAS = 30, ("scene", "wrist")
COLUMNS = (*(f"fr3_joint{i}" for i in range(1, 8)), "gripper")
VIEWS = 90  # different pictures per camera, shown to and fro


def make_recording(path: Path, minutes: float) -> Path:
    """A recording as the recorder writes it: 100 Hz joints and arm, 5 Hz verdicts, two cameras."""
    views = {camera: [*map(as_jpeg, moving_scene(i, VIEWS))] for i, camera in enumerate(CAMERAS)}

    def jpeg(camera: str, number: int) -> bytes:
        place = number % (2 * VIEWS)
        return views[camera][min(place, 2 * VIEWS - 1 - place)]

    script = recordings.Script(
        seconds=minutes * 60,
        cameras=dict.fromkeys(CAMERAS, float(FPS)),
        authority=((1e9, "POLICY"),),
        columns=COLUMNS,
    )
    return recordings.record(path, script, jpeg)


def measured(work: Callable[[], int], recorded_s: float) -> dict[str, float]:
    """Wall and processor time of ``work``, which gives a number of frames."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    count = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = time.perf_counter() - wall
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"s": seconds, "cpu_s": cpu, "x_real_time": recorded_s / seconds, "frames": count}


def ours(recording: Path, out: Path, codec: str) -> int:
    """`vigil dataset export`."""
    result = export([recording], out, Wanted(Grid(FPS)), Encoding(codec), ("rnd", "ace"))
    assert not result.skipped, result.skipped
    return result.frames


def theirs(recording: Path, out: Path, codec: str, streaming: bool = False) -> int:
    """lerobot's `add_frame` and `save_episode`, with its own defaults but for the codec.

    ``streaming``: encoding while frames are added, without PNG files in between, where this lerobot can.
    """
    from support.lerobot import dataset_class

    (episode,), _ = prepare(recording, Wanted(Grid(FPS)), ("rnd", "ace"))
    vector = {"dtype": "float32", "shape": (len(COLUMNS),), "names": list(COLUMNS)}
    features = {
        "observation.state": vector,
        "action": vector,
        "intervention": {"dtype": "bool", "shape": (1,), "names": None},
    }
    for name in CAMERAS:
        shape = {"dtype": "video", "shape": (*SHAPE, 3), "names": ["height", "width", "channels"]}
        features[f"observation.images.{name}"] = shape
    dataset = dataset_class().create(
        "local/bench", FPS, features, root=out, use_videos=True, image_writer_threads=4 * len(CAMERAS),
        vcodec={"h264": "h264", "av1": "libsvtav1"}[codec], **({"streaming_encoding": True} if streaming else {}),
    )  # fmt: skip
    pictures = [frames.Pictures(episode.source, None).frames(name, episode.part) for name in CAMERAS]
    for i, views in enumerate(zip(*pictures, strict=True)):
        row = {
            "observation.state": episode.table.state[i],
            "action": episode.table.action[i],
            "task": episode.task,
        }
        row["intervention"] = episode.table.intervention[i : i + 1]
        dataset.add_frame(row | {f"observation.images.{n}": v for n, v in zip(CAMERAS, views, strict=True)})
    dataset.save_episode()
    dataset.finalize()
    return len(dataset)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--codec", default="h264", choices=("h264", "av1"))
    parser.add_argument("--alone", action="store_true", help="without lerobot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recording = make_recording(Path(folder) / "run.mcap", options.minutes)
        size = recording.stat().st_size / 1e6
        print(
            f"recording: {options.minutes:g} min, 2 cameras {SHAPE[1]}x{SHAPE[0]} at {FPS} Hz, {size:.0f} MB"
        )
        writers: dict[str, Callable[[Path, Path, str], int]] = {"vigil": ours}
        if importlib.util.find_spec("lerobot") and not options.alone:
            writers["lerobot"] = theirs
            writers["lerobot, streaming"] = partial(theirs, streaming=True)
        else:
            print("lerobot is not installed here, or not wanted: no comparison")
        results = {}
        for name, writer in writers.items():
            results[name] = result = measured(
                lambda name=name, writer=writer: writer(recording, Path(folder) / name, options.codec),
                options.minutes * 60,
            )
            print(
                f"{name:18} {options.codec}: {result['s']:.1f} s for {result['frames']} frames of two cameras, "
                f"{result['x_real_time']:.1f} times real time, {result['cpu_s']:.1f} s of processor"
            )
        for name in writers.keys() - {"vigil"}:
            print(f"vigil is {results[name]['s'] / results['vigil']['s']:.1f} times as fast as {name}")


if __name__ == "__main__":
    main()
