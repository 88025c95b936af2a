"""The page about a data set, and the figures on it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from support.recordings import Script, record, silent
from vigil.cli import build_app
from vigil.errors import VigilError
from vigil.record.dataset import quality
from vigil.record.dataset.compact import mark
from vigil.record.dataset.export import Encoding, export
from vigil.record.dataset.prepare import Wanted
from vigil.record.dataset.quality import EpisodeData, Run, coverage, fastest, judge, runs
from vigil.record.dataset.reader import DatasetReader
from vigil.record.dataset.report import write_report
from vigil.record.dataset.resample import Grid

FPS = 30.0


def episode(number: int, path: np.ndarray, **flags) -> EpisodeData:
    """An arm that goes where it is told, a frame later."""
    state = np.concatenate([path[:1], path[:-1]])
    none = np.zeros(len(path), bool)
    given = {name: flags.get(name, none) for name in ("intervention", "alarm", "gap")}
    return EpisodeData(number, state, path, **given)


def line(seconds: float, to: float = 1.0, wait: float = 0.0) -> np.ndarray:
    """One column from 0 to ``to``, and another that stays; waits at the start."""
    t = np.arange(round(seconds * FPS)) / FPS
    ramp = np.clip((t - wait) / (seconds - wait), 0, 1) * to
    return np.stack([ramp, np.zeros(len(t))], 1)


def test_stops_are_found_and_short_ones_are_not():
    assert runs(np.array([1, 1, 0, 1, 1, 1], bool), 3) == [Run(3, 6)]
    waiting, brief = judge([episode(0, line(4.0, wait=2.0)), episode(1, line(4.0, wait=0.3))], FPS)
    assert waiting.idle_share == pytest.approx(0.5, abs=0.03)
    (stop,) = waiting.idle
    assert (stop.start, stop.stop) == pytest.approx((0, 60), abs=2)
    assert brief.idle == ()


def test_speed_is_in_ranges_per_second_and_the_operators_is_apart():
    path = line(2.0)
    fast = np.concatenate([path, path[-1] - (path[:30] * 2)])  # back at twice the speed
    operator = np.arange(len(fast)) >= len(path)
    (found,) = judge([episode(0, fast, intervention=operator)], FPS)
    assert found.operator_speed == pytest.approx(1.0, rel=0.1)
    assert found.speed == pytest.approx(0.5, rel=0.1)
    assert fastest(line(2.0), np.array([2.0, 1.0]), FPS)[20] == pytest.approx(0.25)


def test_divergence_is_where_actions_part_and_nought_where_they_agree():
    same = [episode(i, line(4.0)) for i in range(4)]
    assert max(found.divergence for found in judge(same, FPS)) < 0.02
    there, back = line(4.0), line(4.0)[::-1].copy()
    parted = [episode(0, there), episode(1, there), episode(2, back), episode(3, back)]
    assert min(found.divergence for found in judge(parted, FPS)) > 0.1
    assert min(found.diversity for found in judge(parted, FPS)) > 0.1
    (alone,) = judge([episode(0, there)], FPS)
    assert (alone.divergence, alone.diversity) == (None, None)


def test_states_and_actions_may_have_other_columns():
    """As in data sets of others: a pose commanded, joints measured."""
    path = line(4.0)
    three = [replace(episode(i, path), state=np.repeat(path[:, :1], 3, 1)) for i in range(2)]
    found = judge(three, FPS)
    assert found[0].speed == pytest.approx(0.25, rel=0.1)
    assert max(q.divergence for q in found) < 0.02


def test_alarms_are_counted_where_they_begin():
    alarm = np.isin(np.arange(120), [*range(10, 20), *range(50, 120)])
    (found,) = judge([episode(0, line(4.0), alarm=alarm)], FPS)
    assert found.alarms == (10, 50)


def test_coverage_says_where_the_frames_are():
    found = coverage([episode(0, line(4.0))], ("moves", "stays"))
    assert found.shares.shape == (2, quality.CELLS)
    assert found.shares.sum(1) == pytest.approx([1, 1])
    assert found.shares[0] == pytest.approx(np.full(quality.CELLS, 0.1), abs=0.03)
    assert found.shares[1].max() == 1.0
    assert (found.low[0], found.high[0]) == pytest.approx((0.0, 1.0), abs=0.03)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    takeover = ((0.2, "HOLD"), (1.5, "POLICY"), (9, "OPERATOR"))
    scripts = [
        Script(authority=takeover, alarm_at=1.4, outcome="intervened_success", operator="<b>anna</b>"),
        Script(faults={"wrist": silent(1.0, 2.0)}),
        Script(outcome="failure", reason="timeout"),
    ]
    recordings = [record(folder / f"{i}.mcap", script) for i, script in enumerate(scripts)]
    export(recordings, folder / "set", Wanted(Grid(30)), Encoding(), ("rnd", "ace"))
    return folder / "set"


def test_the_page_tells_of_every_episode(root, tmp_path):
    page = write_report(root, tmp_path / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", re.sub(r"data:image[^\"]+", "", page))
    for said in ("saved by operator", "failure", "camera wrist: silent for 1.0", "30 Hz", "Episode 0, 1.2 s"):
        assert said in text, said
    assert len(re.findall(r" (?:29\.99|30\.00)\d ", text)) == 3
    assert "&lt;b&gt;anna" in page  # what was recorded is text, never markup
    assert page.count("data:image/png") == 5
    assert page.count("data:image/jpeg") >= 3 * 5 + 3
    # Self-contained: it loads nothing.
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page


def test_deleted_episodes_are_left_out_and_said(root, tmp_path):
    mark(root, [2])
    try:
        page = write_report(root, tmp_path / "report.html").read_text()
        assert "marked as deleted, and left out <b>2</b>" in page
        assert "timeout" not in page
        mark(root, [0, 1])
        with pytest.raises(VigilError, match="no episodes to report on"):
            write_report(root, tmp_path / "report.html")
    finally:
        mark(root, [0, 1, 2], undo=True)
    assert DatasetReader(root).episodes == [0, 1, 2]


def test_the_commands(root):
    app = build_app("dataset")
    result = CliRunner().invoke(app, ["dataset", "report", str(root)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert (root / "report.html").exists()
    result = CliRunner().invoke(app, ["dataset", "delete", str(root), "1", "--why", "blurred"])
    assert "marked as deleted: 1" in result.output
    result = CliRunner().invoke(app, ["dataset", "delete", str(root), "1", "--undo"])
    assert "marked as deleted: none" in result.output
    result = CliRunner().invoke(app, ["dataset", "compact", str(root)])
    assert "nothing is marked as deleted" in result.output
