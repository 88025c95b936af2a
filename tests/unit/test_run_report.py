"""The report page and its data, from made-up episodes."""

import json
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest

from vigil.run import charts, report
from vigil.run.story import Event, Frame, ScoreSeries, Span, Story

ABOUT = {
    "title": "Vigil <demo>",
    "rig": "franka_sim",
    "task": "put the cube on the tray",
    "policy": "franka_pick_place",
    "made": "2026-01-01 12:00",
    "notes": ["A note."],
}


def jpeg(value):
    ok, data = cv2.imencode(".jpg", np.full((12, 16, 3), value, np.uint8))
    assert ok
    return data.tobytes()


def story(name="failing", problems=(), outcome="intervened_success"):
    t = np.arange(0, 9, 0.2)
    scores = tuple(
        ScoreSeries(label, kind, t, np.exp(np.sin(t + shift)), np.full_like(t, 1.5))
        for label, kind, shift in (("rnd", "observation", 0.0), ("ace", "action", 0.4))
    )
    facts = {
        "name": name,
        "perturbation": "object_moved",
        "seed": 7,
        "outcome": outcome,
        "termination_reason": "task_success",
        "alarms": 1,
        "first_alarm_s": 3.4,
        "alarm_to_hold_ms": 1.23,
        "hold_to_operator_s": 0.4,
        "takeover_to_command_ms": 0.6,
        "takeover_joint_step_rad": 0.0021,
        "handed_back": True,
        "duration_s": 8.8,
        "chunk_rate_hz": 5.0,
        "control_period_p99_ms": 10.4,
        "recording": "episodes/failing.mcap",
    }
    spans = (
        Span(0, 3.4, "POLICY", "engaged"),
        Span(3.4, 3.8, "HOLD", "alarm"),
        Span(3.8, 8.8, "OPERATOR", "takes over"),
    )
    events = (
        Event(3.4, "alarm", "alarm"),
        Event(3.401, "hold", "hold"),
        Event(3.8, "operator", "operator <takes> over"),
    )
    films = {"wrist": tuple(Frame(i, jpeg(20 * i)) for i in range(8))}
    return Story(
        facts, "A <failing> episode", "Expected.", 8.8, spans, events, scores, films, tuple(problems)
    )


def test_page_is_self_contained_and_escapes_what_it_is_told():
    page = report.render([story(), story("other", ["no alarm came"], "failure")], ABOUT)
    assert "data:image/jpeg;base64," in page
    assert "http" not in page and 'src="/' not in page, "nothing may be loaded from elsewhere"
    assert "<takes>" not in page and "A <failing>" not in page and "Vigil <demo>" not in page
    assert "no alarm came" in page and "Not every episode" in page


def test_page_says_when_everything_went_as_told():
    assert "Every episode went as its story says" in report.render([story()], ABOUT)


def test_json_carries_the_asked_keys(tmp_path):
    data, page = report.write(tmp_path, [story()], ABOUT)
    document = json.loads(data.read_text())
    asked = {"name", "perturbation", "outcome", "alarms", "first_alarm_s", "alarm_to_hold_ms"}
    asked |= {"takeover_joint_step_rad", "handed_back"}
    assert asked <= set(document["episodes"][0])
    assert document["told"] is True and document["episodes"][0]["as_told"] is True
    assert page.read_text().startswith("<!doctype html>")
    assert not list(tmp_path.glob("*.tmp"))


def test_json_refuses_values_that_are_not_json(tmp_path):
    bad = story()
    bad.facts["first_alarm_s"] = float("nan")
    with pytest.raises(ValueError):
        report.write(tmp_path, [bad], ABOUT)


def test_chart_is_well_formed_svg_and_clips_extremes():
    t = np.arange(5.0)
    scores = [ScoreSeries("rnd", "observation", t, np.array([1, np.nan, 1e9, 0.0, 2.0]), np.ones(5))]
    svg = charts.timeline([Span(0, 4, "POLICY", "a & b")], [Event(2.0, "alarm", "a < b")], scores, 4.0)
    tree = ElementTree.fromstring(svg)
    height = float(tree.attrib["viewBox"].split()[3])
    for circle in tree.iter("circle"):
        assert 0 <= float(circle.attrib["cy"]) <= height
    assert len([e for e in tree.iter("polyline") if "score" in e.attrib["class"]]) == 2, (
        "a gap breaks the line"
    )


def test_uncalibrated_scores_are_not_drawn_as_if_they_had_a_threshold():
    t = np.arange(3.0)
    svg = charts.timeline([], [], [ScoreSeries("rnd", "observation", t, t, np.full(3, np.inf))], 2.0)
    assert "polyline" not in svg and "no calibrated scores" in svg


def test_labels_of_events_that_happen_together_do_not_overlap():
    placed = charts.stack(
        [Event(1.0 + i * 1e-3, "alarm", "a long label of an event") for i in range(4)], 10.0
    )
    assert [label.row for label in placed] == [0, 1, 2, 3]
    far = charts.stack([Event(0.0, "alarm", "one"), Event(9.0, "hold", "two")], 10.0)
    assert [label.row for label in far] == [0, 0]


def test_labels_near_the_end_stand_left_of_their_mark():
    (label,) = charts.stack([Event(9.9, "policy", "handed to the policy")], 10.0)
    assert label.leftwards and label.x == pytest.approx(990)


@pytest.mark.parametrize(
    "value, words",
    [(None, "–"), (True, "yes"), (3.14159, "3.14 s"), (0.0, "0.00 s"), (0.0004, "< 0.01 s"), (7, "7 s")],
)
def test_facts_for_a_person(value, words):
    assert report.shown(value, "" if value in (None, True) else "s") == words


@pytest.mark.parametrize("duration", [0.0, 0.3, 5.2, 15.0, 240.0])
def test_time_ticks_are_round_and_within(duration):
    ticks = charts.time_ticks(duration)
    assert ticks[0] == 0 and ticks[-1] <= duration + 1e-9 and len(ticks) <= 12
