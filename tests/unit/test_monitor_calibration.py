"""From roll-outs to a calibration in the bundle, through the commands; and every way in which it is refused."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import yaml

from support.monitor_rollouts import for_policy, make_rollout, make_rollouts
from support.tiny_bundle import write_tiny_bundle
from vigil.errors import VigilError
from vigil.monitor import calibrate_command as command
from vigil.monitor.calibration import (
    ARRAYS,
    FILE,
    REPORT,
    Binding,
    binding_of,
    calibration_folder,
    camera_calibration_hash,
    check_arm,
    check_binding,
    check_level,
    load_calibration,
    load_detector,
)
from vigil.monitor.compare import DEFAULT_METHOD, METHODS
from vigil.monitor.evaluate_command import evaluate
from vigil.monitor.inputs import only_segment
from vigil.policy.bundle import load_bundle
from vigil.record.rollout import HOLD, save_rollout
from vigil.rig import load_rig


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(write_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def successes(tmp_path_factory, bundle):
    root = tmp_path_factory.mktemp("rollouts")
    for i, rollout in enumerate(make_rollouts(30, seed=1)):
        save_rollout(root / f"episode_{i:04d}", for_policy(rollout, bundle))
    failed = make_rollout(np.random.default_rng(9), failing=True)
    save_rollout(root / "episode_0030", for_policy(failed, bundle))
    return root


@pytest.fixture(scope="module")
def calibrated(bundle, successes):
    command.calibrate([successes], bundle.path, delta=0.1, method="fiper")
    return bundle.monitor_path


def test_calibrate_writes_a_bound_calibration_and_a_page(calibrated, bundle, capsys):
    calibration = load_calibration(calibrated)
    assert calibration.binding.bundle_hash == bundle.content_hash
    assert (calibration.binding.k, calibration.binding.sampler_steps) == (32, 10)
    assert calibration.data.successes == 30, "the failed roll-out is left out"
    data = calibration.data
    assert (data.fit, data.fitted + data.scaled + data.calibrated) == ("split", 30)
    assert load_bundle(bundle.path).content_hash == bundle.content_hash, (
        "calibrating does not change the policy"
    )
    page = (calibrated / REPORT).read_text()
    assert page.count("<svg") == 2
    assert not re.search(r"(src|href)=|@import|url\(", page), "self-contained"
    assert "at most 10%" in page
    assert sorted(p.name for p in calibrated.iterdir()) == sorted([ARRAYS, FILE, REPORT, "rnd.onnx"])


def test_the_stored_detector_judges_as_the_fitted_one(calibrated, bundle, tmp_path, capsys):
    tests = make_rollouts(12, seed=5) + make_rollouts(12, seed=6, failing=True)
    for i, rollout in enumerate(tests):
        save_rollout(tmp_path / f"episode_{i:04d}", for_policy(rollout, bundle))
    evaluate([tmp_path], bundle=bundle.path, out=tmp_path / "out")
    rows = [line.split(",") for line in (tmp_path / "out" / "monitor.csv").read_text().splitlines()]
    shipped = dict(zip(rows[0], rows[1], strict=True))
    assert float(shipped["tpr"]) >= 0.8
    assert float(shipped["tnr"]) >= 0.7
    assert [row[1] for row in rows[-2:]] == ["always", "never"]
    assert "object_swapped" in capsys.readouterr().out


def test_methods_are_compared_on_one_calibration_set(successes, bundle, tmp_path, capsys):
    for i, rollout in enumerate(make_rollouts(3, seed=5) + make_rollouts(3, seed=6, failing=True)):
        save_rollout(tmp_path / f"episode_{i:04d}", for_policy(rollout, bundle))
    evaluate(
        [tmp_path], calibration=[successes], methods="fiper,kernel,clock", delta=0.2, out=tmp_path / "out"
    )
    out = capsys.readouterr().out
    drawn = {path.name for path in (tmp_path / "out").iterdir()}
    assert drawn == {"monitor.csv", "accuracy_vs_time.png", "score_order.png", "calibration_size.png"}
    assert all(name in out for name in ("fiper", "kernel", "clock", "always", "never"))
    assert "delta + 2" in out and " of 3" in out, "the default's bound is checked"
    with pytest.raises(VigilError, match="unknown method 'fibber'"):
        evaluate([tmp_path], calibration=[successes], methods="fibber")


def test_fiper_is_calibrated_beside_the_default_and_selectable_by_level(bundle, successes, tmp_path, capsys):
    policy = load_bundle(shutil.copytree(bundle.path, tmp_path / "tiny", dirs_exist_ok=True))
    command.calibrate([successes], policy.path, delta=0.1)
    own = load_calibration(calibration_folder(policy, "calibrated"))
    beside = load_calibration(calibration_folder(policy, "fiper"))
    assert (own.clauses, beside.clauses) == (METHODS[DEFAULT_METHOD].clauses, METHODS["fiper"].clauses)
    assert load_detector(calibration_folder(policy, "fiper")).names == ("rnd", "ace")
    check_level(beside, "fiper")
    with pytest.raises(VigilError, match=r"monitor\.level is fiper"):
        check_level(own, "fiper")
    capsys.readouterr()
    few = tmp_path / "few"
    for i, rollout in enumerate(make_rollouts(12, seed=1)):
        save_rollout(few / f"episode_{i:04d}", for_policy(rollout, bundle))
    command.calibrate([few], policy.path, delta=0.1, fiper=False)
    assert calibration_folder(policy, "fiper") == policy.monitor_path, "that of another calibration is gone"
    command.calibrate([few], policy.path, delta=0.1)
    assert "FIPER was not calibrated" in capsys.readouterr().out
    assert load_calibration(policy.monitor_path).data.calibrated == 12


OTHERS = {
    "bundle_hash": "0" * 64,
    "sampler": "ddpm",
    "sampler_steps": 8,
    "k": 16,
    "horizon": 8,
    "step_dt": 0.1,
    "names": ("a", "b"),
    "embedding_dim": 7,
    "camera_calibration_hash": "f" * 64,
}


@pytest.mark.parametrize("field", Binding.model_fields)
def test_any_difference_is_refused_with_both_values(calibrated, bundle, field):
    calibration = load_calibration(calibrated)
    found = binding_of(bundle, load_rig("franka_sim"))
    check_binding(calibration, found, calibrated)
    with pytest.raises(VigilError) as error:
        check_binding(calibration, {**found, field: OTHERS[field]}, calibrated)
    said = str(error.value)
    mine, other = getattr(calibration.binding, field), OTHERS[field]
    for value in (mine, other):
        shown = value[:12] if isinstance(value, str) else value[0] if isinstance(value, tuple) else str(value)
        assert shown in said, f"{shown} is not in: {said}"


def test_another_tool_is_refused(calibrated):
    rig = load_rig("franka_sim")
    check_arm(load_calibration(calibrated), rig)
    longer = rig.model_copy(update={"arms": (rig.arm.model_copy(update={"tool_offset": (0.0, 0.0, 0.2)}),)})
    with pytest.raises(VigilError, match=r"tool_offset.*0\.1488.*0\.2"):
        check_arm(load_calibration(calibrated), longer)


def test_a_moved_camera_changes_the_hash(tmp_path, monkeypatch):
    rig = load_rig("franka_sim")
    cameras = tuple(camera.name for camera in rig.cameras)
    before = camera_calibration_hash(rig, cameras)
    folder = tmp_path / "calibration" / rig.name
    folder.mkdir(parents=True)
    for camera in rig.cameras:
        (folder / camera.calibration).write_bytes(rig.calibration_path(camera).read_bytes() + b"\n# moved\n")
    monkeypatch.setenv("VIGIL_ROOT", str(tmp_path))
    assert camera_calibration_hash(rig, cameras) != before
    (folder / rig.cameras[0].calibration).unlink()
    with pytest.raises(VigilError, match="calibration of camera wrist"):
        camera_calibration_hash(rig, cameras)


@pytest.fixture
def copied(calibrated, tmp_path):
    for path in calibrated.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_broken_files_are_refused(copied):
    load_detector(copied)
    whole = (copied / ARRAYS).read_bytes()
    (copied / ARRAYS).write_bytes(whole[:-100])
    with pytest.raises(VigilError, match=r"is not what calibration\.yaml describes"):
        load_detector(copied)
    for name in (ARRAYS, "rnd.onnx"):
        kept = (copied / name).read_bytes()
        (copied / name).unlink()
        with pytest.raises(VigilError, match=f"no {name}"):
            load_detector(copied)
        (copied / name).write_bytes(kept)
    text = yaml.safe_load((copied / FILE).read_text())
    for change, said in (
        ({"delta": 2}, "delta"),
        ({"format": 9}, "format"),
        ({"clauses": [["rnd", "nonsense"]]}, "nonsense"),
        ({"surprise": 1}, "surprise"),
    ):
        (copied / FILE).write_text(yaml.safe_dump({**text, **change}))
        with pytest.raises(VigilError, match=said):
            load_calibration(copied)
    (copied / FILE).unlink()
    with pytest.raises(VigilError, match="vigil calibrate"):
        load_calibration(copied)


def test_roll_outs_of_another_policy_are_refused(bundle, successes, tmp_path):
    other = load_bundle(write_tiny_bundle(tmp_path / "other", name="other"))
    with pytest.raises(VigilError, match=r"another policy.*policy bundle"):
        command.calibrate([successes], other.path, delta=0.1)
    assert not other.monitor_path.exists()


def test_too_few_and_interrupted_roll_outs_are_refused(bundle, tmp_path):
    rollouts = [for_policy(r, bundle) for r in make_rollouts(5, seed=1)]
    for i, rollout in enumerate(rollouts):
        save_rollout(tmp_path / f"episode_{i:04d}", rollout)
    with pytest.raises(VigilError, match="4 more"):
        command.calibrate([tmp_path], bundle.path, delta=0.1)
    rollouts[0].authority[5:7] = HOLD
    with pytest.raises(VigilError, match="interrupted 1 times"):
        only_segment(rollouts[0], load_detector(bundle.monitor_path).kinematics)


def test_bad_words_are_answered(bundle, successes):
    for wrong in (
        {"method": "fibber"},
        {"mode": "loose"},
        {"style": "wavy"},
        {"preset": "big"},
        {"delta": 0.0},
    ):
        with pytest.raises(VigilError):
            command.calibrate([successes], bundle.path, **wrong)
