"""`vigil policy sweep`: what it writes, what it refuses, and that a stopped sweep goes on."""

import csv
import json

import pytest
from typer.testing import CliRunner

from support.recordings import Script, record
from support.sampler_bundle import write_sampler_bundle
from support.tiny_bundle import COLUMNS
from vigil.errors import VigilError
from vigil.rig import load_rig
from vigil.sweep import commands, sweep

OFFLINE = ("--episodes", "0", "--rounds", "4")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "several"
    return write_sampler_bundle(folder, {"exact": 0.0, "near": 0.01, "off": -5.0}, emitted=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i in range(2):
        demonstrated = ((0.2, "HOLD"), (9, "OPERATOR"))
        record(folder / f"{i}.mcap", Script(seconds=1.2 + 0.4 * i, authority=demonstrated, columns=COLUMNS))
    return folder


def run(*arguments):
    """Exit code and text of the command; errors are raised, as `vigil` itself prints them."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(
        commands.app, ["sweep", *map(str, arguments)], catch_exceptions=False
    )
    return result.exit_code, " ".join(result.output.split())


def test_all_samplers_are_timed_compared_written_and_one_is_recommended(bundle, data, tmp_path):
    code, said = run(bundle, "--data", data, "--out", tmp_path / "out", *OFFLINE)
    assert code == 0, said
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = {row["name"]: row for row in found["samplers"]}
    assert list(rows) == ["exact", "near", "off", "stream"] and found["finished"]
    for row in rows.values():
        assert 0 < row["one_median_ms"] <= row["one_p99_ms"] and 0 < row["all_median_ms"] <= row["all_p99_ms"]
        assert row["inside_budget"] and row["samples"] == load_rig("franka_sim").policy.samples
        assert row["episodes"] == 0 and row["success_rate"] is None and row["success_low"] is None
        assert row["error_low"] <= row["error"] <= row["error_high"] and row["error_episodes"] == 2
    assert rows["stream"]["error_observations"] > 1.5 * rows["exact"]["error_observations"]
    assert len({row["bundle_hash"] for row in rows.values()}) == 4
    said_json = found["recommendation"]
    assert said_json["name"] != "off" and said_json["name"] in said and said_json["why"][:40] in said
    assert "action error alone" in said_json["caveats"][0] and "too few demonstrations: 2" in said
    with (tmp_path / "out" / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == list(rows) and set(lines[0]) == set(rows["exact"])
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000


def test_what_was_compared_before_is_not_compared_again(bundle, data, tmp_path, monkeypatch):
    arguments = (bundle, "--data", data, "--out", tmp_path / "out", *OFFLINE)
    run(*arguments, "--samplers", "exact,off")
    first = json.loads((tmp_path / "out" / "sweep.json").read_text())
    compared = []
    real = sweep.chunk_errors
    monkeypatch.setattr(
        sweep, "chunk_errors", lambda r, *rest: compared.append(r.bundle.sampler_name) or real(r, *rest)
    )
    run(*arguments)
    assert set(compared) == {"near", "stream"}
    again = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert again["samplers"][0]["error"] == first["samplers"][0]["error"]
    compared.clear()
    (tmp_path / "out" / "off" / "actions.json").write_text('{"key": ')  # cut short
    run(*arguments)
    assert set(compared) == {"off"}
    compared.clear()
    run(*arguments, "--seed", "1")
    assert set(compared) == {"exact", "near", "off", "stream"}, "other noise"


def test_a_sweep_that_is_stopped_keeps_what_it_has_and_says_how_it_goes_on(
    bundle, data, tmp_path, monkeypatch
):
    done = []

    def stopped_at_the_second(rig, wanted, console):
        done.append((wanted.settings["sampler"], rig.policy.sampler, rig.policy.period))
        if len(done) == 2:
            raise KeyboardInterrupt
        return {"successes": 3, "n": 4}

    monkeypatch.setattr(sweep, "run_evaluation", stopped_at_the_second)
    arguments = (bundle, "--data", data, "--out", tmp_path / "out", "--episodes", "4", "--rounds", "4")
    code, said = run(*arguments, "--samplers", "exact,stream")
    assert code == 130 and f"--out {tmp_path / 'out'} goes on" in said
    kept = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert not kept["finished"] and kept["recommendation"] is None
    assert [row["successes"] for row in kept["samplers"]] == [3, None]
    code, said = run(*arguments, "--samplers", "exact,stream")
    assert code == 0 and "too few episodes" in said
    # A streaming sampler is asked as often as its final steps last.
    assert done[-2:] == [("exact", "exact", 0.2), ("stream", "stream", pytest.approx(0.1))]
    whole = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert whole["finished"] and [row["episodes"] for row in whole["samplers"]] == [4, 4]


def test_several_bundles_stand_side_by_side(bundle, data, tmp_path):
    other = write_sampler_bundle(tmp_path / "other", {"exact": 0.2})
    run(bundle, other, "--samplers", "exact", "--data", data, "--out", tmp_path / "out", *OFFLINE)
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["samplers"]
    assert [row["name"] for row in rows] == ["several.exact", "other.exact"]
    twin = write_sampler_bundle(tmp_path / "elsewhere" / "other", {"exact": 0.0})
    with pytest.raises(VigilError, match="two bundles are called other: rename"):
        run(twin, other, "--data", data, "--out", tmp_path / "two", *OFFLINE)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--samplers", "exact,fly"), r"no sampler fly in .*: they offer exact, near, off, stream"),
        (("--budget", "0"), "--budget is 0 ms: give a positive number"),
        (("--budget", "0.0001"), r"no sampler is inside 0\.0001 ms: .* comes nearest"),
        (("--data", "/nonexistent/folder"), "/nonexistent/folder does not exist"),
        (("--rig", "franka"), "needs a simulation, and rig franka has no `sim` section"),
    ],
)
def test_bad_input_is_named(bundle, tmp_path, arguments, reason):
    offline = () if "franka" in arguments else OFFLINE
    with pytest.raises(VigilError, match=reason):
        run(bundle, "--out", tmp_path / "out", *offline, *arguments)


def test_a_bundle_that_does_not_fit_the_rig_is_refused(tmp_path):
    foreign = write_sampler_bundle(tmp_path / "foreign", {"exact": 0.0}, task="pour the tea")
    with pytest.raises(
        VigilError, match="does not fit rig franka_sim: it was trained for the task 'pour the tea'"
    ):
        run(foreign, "--out", tmp_path / "out", *OFFLINE)


def test_without_anything_to_judge_by_there_is_a_table_and_no_recommendation(bundle, tmp_path):
    code, said = run(bundle, "--demonstrations", "0", "--out", tmp_path / "out", *OFFLINE)
    assert code == 0 and "no recommendation: neither success nor action error" in said
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["recommendation"] is None


def test_a_broken_bundle_is_refused_before_anything_is_measured(tmp_path):
    folder = write_sampler_bundle(tmp_path / "broken", {"exact": 0.0})
    (folder / "exact.onnx").write_bytes(b"no graph")
    with pytest.raises(VigilError, match="corrupted or was replaced"):
        run(folder, "--out", tmp_path / "out", *OFFLINE)
    assert not (tmp_path / "out").exists()
