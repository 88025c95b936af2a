"""Recordings to one HDF5 file in the layout of robomimic.

::

    data                  attributes total (frames), env_args, and vigil_settings
      demo_0              attributes num_samples, task, columns, and every x_... that an episode of a data set has
        actions           float32 [T, N]
        rewards, dones    float32 and int64 [T]: 1 at the last frame of an episode that ended well; at the last frame
        obs               joint_positions float32 [T, N]; NAME_image uint8 [T, height, width, 3] for every camera
        vigil             intervention, control_source, reward (of RLIF), alarm, verdict, scores, windowed, thresholds, gap, skew
    mask                  all, and the names of the demonstrations by outcome

An HDF5 file that is being written cannot be read if its writer dies. So every episode is first a file of its own, in a
folder beside the target; the target is put together from them at the end, and replaced as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vigil.errors import VigilError
from vigil.record.dataset.export import Outcome
from vigil.record.dataset.files import owned, publish
from vigil.record.dataset.frames import Table
from vigil.record.dataset.prepare import Prepared, Wanted, prepare, summary
from vigil.record.episode import GOOD

Tell = Callable[[str, int], None]
SETTINGS = "vigil_settings"
_APART = ("state", "action")  # columns of a `Table` that have a place of their own


def export_hdf5(
    recordings: Sequence[Path],
    out: Path,
    wanted: Wanted,
    score_names: Sequence[str],
    tell: Tell = lambda what, frames: None,
) -> Outcome:
    """Add recordings to the file ``out``, or begin it. Those that are in it already are left alone.

    Raises:
        VigilError: ``out`` is no such file, or of other settings, or the disk refuses.
    """
    settings = {**asdict(wanted.grid), "size": wanted.size, "draw": wanted.draw, "scores": list(score_names)}
    parts = out.with_name(f".{out.name}.parts")
    skipped: dict[str, str] = {}
    added: list[dict[str, Any]] = []
    present = 0
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with owned(parts):
            before = _settled(out, parts, settings)
            done, shape = _contents([out, *before])
            for path in recordings:
                tell(path.name, 0)
                try:
                    episodes, ready = prepare(path, wanted, score_names, done)
                    for episode in episodes:
                        shape = _write_part(episode, parts, settings, shape, tell)
                        added.append(summary(episode.facts, len(episode.part)))
                    present += bool(ready) and not episodes
                except VigilError as error:
                    skipped[str(path)] = str(error)
            count, frames = _assemble(out, sorted(parts.glob("*.hdf5")), settings)
            shutil.rmtree(parts)
    except OSError as error:
        raise VigilError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # not empty: what it holds is gone on with
            parts.rmdir()
    return Outcome(added, present, skipped, count, frames)


def _settled(out: Path, parts: Path, settings: dict[str, Any]) -> list[Path]:
    """Whole episodes that an interrupted export left; what is half written is removed."""
    for half in [*parts.glob("*.partial"), out.with_name(out.name + ".partial")]:
        half.unlink(missing_ok=True)
    left = sorted(parts.glob("*.hdf5"))
    for path in [out, *left]:
        if not path.exists():
            continue
        try:
            with h5py.File(path, "r") as file:
                kept = json.loads(file["data"].attrs[SETTINGS])
        except (OSError, KeyError, ValueError):
            raise VigilError(f"{path} is no HDF5 file of `vigil dataset export`: name another file") from None
        if kept != settings:
            differing = next(name for name in settings if kept.get(name) != settings[name])
            raise VigilError(
                f"{path} was exported with {differing} {kept.get(differing)!r} (now {settings[differing]!r}): "
                "give the same, or name another file"
            )
    return left


def _contents(paths: Sequence[Path]) -> tuple[set[tuple[str, int]], dict[str, Any] | None]:
    """(recording, part) of every episode in the files, and what all of them have in common."""
    done, shape = set(), None
    for path in paths:
        if path.exists():
            with h5py.File(path, "r") as file:
                for demo in file["data"].values():
                    done.add((demo.attrs["x_recording"], int(demo.attrs["x_part"])))
                    shape = _shape(demo)
    return done, shape


def _shape(demo: h5py.Group) -> dict[str, Any]:
    observed = {name: list(values.shape[1:]) for name, values in demo["obs"].items()}
    return {"columns": json.loads(demo.attrs["columns"]), "observations": observed}


def _write_part(
    episode: Prepared, parts: Path, settings: dict[str, Any], shape: dict[str, Any] | None, tell: Tell
) -> dict[str, Any]:
    name = hashlib.sha256(f"{episode.source.identity}/{episode.part.number}".encode()).hexdigest()[:16]
    # Numbered as well: the file is put together in the order in which the recordings were given.
    number = max((int(path.name.split("-")[0]) for path in parts.glob("*.hdf5")), default=-1) + 1
    target = parts / f"{number:06d}-{name}.hdf5"
    partial = target.with_name(target.name + ".partial")
    try:
        with h5py.File(partial, "w") as file:
            data = file.create_group("data")
            data.attrs[SETTINGS] = json.dumps(settings)
            demo = data.create_group("demo")
            _write_demo(demo, episode, tell)
            found = _shape(demo)
            if shape is not None and found != shape:
                raise VigilError(f"does not fit the file: it has {found}, the file {shape}")
    except VigilError:
        partial.unlink()
        raise
    publish(partial, target)
    return found


def _write_demo(demo: h5py.Group, episode: Prepared, tell: Tell) -> None:
    table, length = episode.table, len(episode.part)
    demo.attrs["num_samples"] = length
    demo.attrs["task"] = episode.task
    demo.attrs["columns"] = json.dumps(list(episode.source.columns))
    for name, value in episode.facts.items():
        demo.attrs[name] = json.dumps(value) if isinstance(value, list) else value
    demo["actions"] = table.action
    dones = np.zeros(length, np.int64)
    dones[-1] = 1
    demo["dones"] = dones
    demo["rewards"] = (dones * (episode.facts["x_outcome"] in GOOD)).astype(np.float32)
    demo["obs/joint_positions"] = table.state
    ours = demo.create_group("vigil")
    for name in (field.name for field in fields(Table) if field.name not in _APART):
        values = getattr(table, name)
        ours.create_dataset(
            name, data=values, dtype=h5py.string_dtype() if values.dtype == object else values.dtype
        )
    for i, camera in enumerate(episode.pictures.cameras):
        _write_pictures(
            demo["obs"], f"{camera}_image", _counted(episode, camera, tell if i == 0 else None), length
        )


def _counted(episode: Prepared, camera: str, tell: Tell | None) -> Iterator[np.ndarray]:
    for rgb in episode.pictures.frames(camera, episode.part):
        yield rgb
        if tell is not None:
            tell(episode.name, 1)


def _write_pictures(group: h5py.Group, name: str, pictures: Iterator[np.ndarray], length: int) -> None:
    dataset = None
    for i, rgb in enumerate(pictures):
        if dataset is None:
            # A frame at a time is what training reads.
            dataset = group.create_dataset(
                name,
                (length, *rgb.shape),
                np.uint8,
                chunks=(1, *rgb.shape),
                compression="gzip",
                compression_opts=1,
            )
        if rgb.shape != dataset.shape[1:]:
            raise VigilError(
                f"a picture of {rgb.shape[1]}x{rgb.shape[0]} among others of {dataset.shape[2]}x{dataset.shape[1]}"
            )
        dataset[i] = rgb


def _assemble(out: Path, parts: Sequence[Path], settings: dict[str, Any]) -> tuple[int, int]:
    """Put the parts behind what ``out`` holds; gives the number of episodes and of frames."""
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        shutil.copyfile(out, partial)
    with h5py.File(partial, "a") as file:
        data = file.require_group("data")
        for path in parts:
            with h5py.File(path, "r") as one:
                one.copy(one["data/demo"], data, f"demo_{len(data)}")
        demos = [data[f"demo_{i}"] for i in range(len(data))]
        frames = int(sum(demo.attrs["num_samples"] for demo in demos))
        data.attrs["total"] = frames
        data.attrs[SETTINGS] = json.dumps(settings)
        rigs = sorted({demo.attrs["x_rig"] for demo in demos})
        data.attrs["env_args"] = json.dumps({"env_name": ", ".join(rigs), "type": 0, "env_kwargs": {}})
        if "mask" in file:
            del file["mask"]
        names = {"all": [demo.name.split("/")[-1] for demo in demos]}
        for demo in demos:
            names.setdefault(demo.attrs["x_outcome"] or "open", []).append(demo.name.split("/")[-1])
        for mask, members in names.items():
            file[f"mask/{mask}"] = np.array(members, "S")
    if frames:
        publish(partial, out)
    else:
        partial.unlink()
    return len(demos), frames
