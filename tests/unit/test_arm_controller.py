"""The whole control step without ROS, against the controllers that the simulated hardware runs."""

import re

import numpy as np
import pytest

from support.arm_world import BEGIN, BROKEN, HORIZON, TICK, Lagging, Slow, World
from vigil.arm.authority import Authority
from vigil.arm.clutch import Mode
from vigil.arm.columns import Refused
from vigil.arm.curves import SECOND
from vigil.kinematics import FRANKA
from vigil.rig import RigConfig, load_rig


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture
def world(rig):
    return World(rig).step(30)


@pytest.fixture
def moving(world):
    """The policy moves the arm."""
    world.engage().step(60)
    assert np.abs(world.commands[-1] - world.commands[-2])[:7].max() > 1e-3
    return world


def assert_held(world, event, *words):
    last = world.arm.machine.last
    assert last.target is Authority.HOLD and last.event == event, last
    for word in words:
        assert word in last.reason
    world.step(60)
    assert world.plans[-1] is None, "at rest nothing is sent"
    assert np.array_equal(world.commands[-1], world.commands[-2])
    world.assert_inside()


def test_a_chunk_moves_the_arm_to_where_it_says(moving):
    moving.step(300)
    assert moving.arm.authority is Authority.POLICY
    assert moving.commands[-1] == pytest.approx(moving.chunks_go_to, abs=0.02)
    assert np.abs(moving.arm.first_step).max() <= 0.01
    moving.assert_inside()


def test_nothing_moves_before_engage(world):
    assert world.arm.authority is Authority.HOLD and set(world.plans) == {None}
    assert world.arm.blocked_by == ""


@pytest.mark.parametrize(
    ("name", "needle"),
    [
        ("joint_states", "joint_states: nothing"),
        ("chunk", "chunk: nothing"),
        ("monitor", "monitor: nothing"),
        ("operator", "operator: nothing"),
        ("wrist", "camera wrist: nothing"),
        ("scene", "camera scene: nothing"),
    ],
)
def test_engage_needs_every_input_and_names_the_missing_one(world, name, needle):
    world.silent.add(name)
    world.step(80)  # longer than the longest limit
    answer = world.arm.engage(world.now)
    assert not answer.granted and needle in answer.message and needle in world.arm.blocked_by
    assert world.arm.authority is Authority.HOLD
    world.silent.clear()
    world.step(30).engage()


@pytest.mark.parametrize(
    ("name", "event", "limit"),
    [
        ("joint_states", "stale_joint_states", 0.15),
        ("chunk", "stale_chunk", 0.6),
        ("monitor", "missing_input", 0.7),
        ("operator", "missing_input", 0.25),
        ("wrist", "missing_input", 0.3),
        ("scene", "missing_input", 0.3),
    ],
)
def test_a_silent_input_holds_the_arm_within_its_limit_and_is_named(moving, name, event, limit):
    moving.step(120)  # the time to begin is over
    moving.chunks_go_to = moving.home
    moving.step(25)
    heard_until = moving.now
    moving.silent.add(name)
    while moving.arm.authority is Authority.POLICY:
        moving.step()
        assert moving.now < heard_until + (limit + 0.05) * SECOND
    assert_held(moving, event, name.replace("wrist", "camera wrist").replace("scene", "camera scene"))
    moving.silent.clear()
    moving.step(30).engage().step(100)
    assert moving.arm.authority is Authority.POLICY, "resumes on request"


def test_verdicts_of_nothing_are_no_verdicts(moving):
    """A monitor that lives but is given nothing to judge says STALE; the arm holds, and names the evidence."""
    moving.step(120)
    moving.verdict = "STALE"
    heard_until = moving.now
    while moving.arm.authority is Authority.POLICY:
        moving.step()
        assert moving.now < heard_until + SECOND
    assert_held(moving, "missing_input", "evidence: nothing for")
    assert "monitor: nothing" not in moving.arm.machine.last.reason


def test_a_latched_estop_outlives_every_other_node(moving):
    moving.arm.estop(moving.now)
    for name in ("policy", "monitor", "teleop", "record", "camera_wrist"):
        moving.arm.on_node(name, alive=True, left=False, now=moving.now)
        moving.arm.on_node(name, alive=False, left=False, now=moving.now)
        moving.step(3)
        moving.arm.on_node(name, alive=True, left=False, now=moving.now)
        moving.deadman = not moving.deadman
        moving.step(20)
        assert not moving.arm.engage(moving.now).granted
        assert moving.arm.authority is Authority.ESTOP
    assert np.ptp(moving.commands[-20:], axis=0).max() == 0.0


@pytest.mark.parametrize(("lead", "late"), [(0.0, True), ("measured", False)])
def test_a_robot_that_is_late_is_sent_ahead_if_so_set(rig, lead, late):
    """Chunks of poses to be reached: the measured pose is where they say when they say it, once the latency is known."""
    policy = rig.policy.model_copy(update={"command_lead": lead})
    world = Slow(rig.model_copy(update={"policy": policy})).step(30)

    def due(instant):
        return world.home + 0.3 * np.sin(2.0 * (instant - BEGIN) / SECOND)[:, None] * (np.arange(8) == 0)

    usual = world.chunk

    def chunk():
        stamp = world.now - SECOND // 50
        return usual(positions=due(stamp + np.arange(HORIZON) * SECOND // 20).ravel(), stamp=stamp)

    world.chunk = chunk
    world.engage().step(400)
    gaps = []
    for _ in range(300):
        world.step()
        gaps.append(abs(world.measured[0] - due(np.array([world.now]))[0, 0]))
    assert world.arm.authority is Authority.POLICY, world.arm.machine.last.reason
    assert world.arm.latency.seconds == pytest.approx(0.08, abs=0.02)
    assert max(gaps) > 0.035 if late else max(gaps) < 0.01
    world.assert_inside()


def test_a_node_that_dies_holds_the_arm_at_once(moving):
    for name in ("record", "teleop"):
        moving.arm.on_node(name, alive=True, left=False, now=moving.now)
    assert moving.arm.on_node("record", alive=False, left=False, now=moving.now)
    assert_held(moving, "missing_input", "record: the node died")
    assert "record: the node died" in moving.arm.engage(moving.now).message
    moving.arm.on_node("record", alive=True, left=False, now=moving.now)
    moving.step(30).engage()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_chunk_never_moves_the_arm_and_holds_it(moving, kind):
    moving.chunks_go_to = moving.arm.commanded
    assert moving.arm.on_chunk(moving.chunk(**BROKEN[kind]), moving.now)
    assert moving.arm.counts["chunk"] == 1
    assert_held(moving, "bad_chunk", "bad chunk")


@pytest.mark.parametrize("kind", BROKEN)
def test_with_only_broken_chunks_engage_is_refused_with_the_reason(world, kind):
    world.silent.add("chunk")
    world.step(60)
    world.arm.on_chunk(world.chunk(**BROKEN[kind]), world.now)
    answer = world.arm.engage(world.now)
    assert not answer.granted and "last refused: " in answer.message
    before = world.commands[-1]
    assert np.array_equal(world.step(20).commands[-1], before)


def test_a_chunk_observed_before_engage_does_not_move_the_arm(world):
    world.silent.add("chunk")
    world.engage()
    world.arm.on_chunk(world.chunk(stamp=world.now - 1), world.now)
    world.step(20)
    assert world.arm.authority is Authority.POLICY and set(world.plans) == {None}
    assert world.arm.counts["late_chunk"] == 1


def test_policy_that_never_answers_after_engage_is_given_up(world):
    world.silent.add("chunk")
    world.engage().step(160)
    assert_held(world, "stale_chunk", "chunk: nothing")


@pytest.mark.parametrize(("verdict", "alarm"), [("ALARM", True), ("ALARM", False), ("OUT_OF_RANGE", False)])
def test_an_alarm_holds_before_the_next_tick(moving, verdict, alarm):
    arm = moving.arm
    assert arm.on_monitor(moving.now - SECOND // 10, verdict, alarm, "rnd and ace", moving.now)
    assert arm.authority is Authority.HOLD and arm.machine.last.event_stamp == moving.now
    stop = arm.respond(moving.now)
    assert stop is not None and not stop.velocities[-1].any()
    assert stop.positions[0] == pytest.approx(moving.plans[-1].positions[0])
    assert arm.first_command == moving.now, "the stop begins at once"
    assert_held(moving, "alarm", verdict, "rnd and ace")


@pytest.mark.parametrize("verdict", ["NOMINAL", "BENIGN_OOD", "UNCERTAIN", "UNCALIBRATED"])
def test_other_verdicts_do_not_hold(moving, verdict):
    moving.verdict = verdict
    moving.step(60)
    assert moving.arm.authority is Authority.POLICY


def test_a_verdict_on_what_was_seen_before_engage_does_not_hold(world):
    world.alarm = True
    world.step(20).engage()
    assert not world.arm.on_monitor(world.now - 1, "ALARM", True, "", world.now)
    assert world.arm.authority is Authority.POLICY


def test_without_a_monitor_none_is_needed(rig):
    world = World(RigConfig.model_validate({**rig.model_dump(), "monitor": {"level": "none"}}))
    world.silent.add("monitor")
    world.step(30).engage().step(200)
    assert world.arm.authority is Authority.POLICY


@pytest.mark.parametrize("mode", Mode)
def test_takeover_in_motion_does_not_jump(moving, mode):
    """Complaint 3: a takeover jumps."""
    moving.mode, moving.device = mode, moving.home + 0.2 * (np.arange(8) < 7)
    moving.take_over().step()
    assert moving.arm.authority is Authority.OPERATOR and moving.arm.first_command == moving.now - TICK
    assert np.abs(moving.arm.first_step)[:7].max() <= 0.01
    moving.step(400)
    moving.assert_inside()
    if mode is Mode.ABSOLUTE:
        assert moving.commands[-1][:7] == pytest.approx(moving.device[:7], abs=1e-3)


def test_takeover_of_a_lagging_arm_is_answered_at_once_and_goes_on_from_the_setpoint(moving):
    moving.offset = -0.03 * (np.arange(8) < 7)
    moving.step()
    moving.now += 7 * TICK // 10  # amid a period
    last = moving.arm.commanded.copy()
    moving.take_over()
    assert moving.arm.authority is Authority.OPERATOR and moving.arm.first_command == moving.now
    assert np.abs(moving.arm.commanded - last).max() == 0.0, "no step of the command"
    moving.now += 3 * TICK // 10
    moving.step(60)
    assert moving.arm.authority is Authority.OPERATOR
    moving.assert_inside()


def test_takeover_from_hold_starts_at_the_measured_pose(moving):
    moving.arm.hold(moving.now)
    moving.step(60)
    moving.offset = 0.05 * (np.arange(8) < 7)  # somebody leans on the arm
    moving.step(5)
    moving.take_over()
    before = moving.measured
    moving.step()
    assert np.abs(moving.plans[-1].positions[0] - before)[:7].max() <= 0.01
    assert moving.arm.first_command == moving.now - TICK, "within one period"


def test_releasing_the_deadman_holds(moving):
    moving.take_over().step(50)
    moving.deadman = False
    moving.step(5)
    assert_held(moving, "release", "released the deadman")


def test_a_lost_operator_holds_and_may_resume(moving):
    moving.take_over().step(50)
    moving.silent.add("operator")
    moving.step(27)
    assert_held(moving, "release", "operator: nothing for")
    moving.silent.clear()
    moving.step(6)
    assert moving.arm.authority is Authority.OPERATOR


def test_old_or_future_commands_are_no_sign_of_life(moving):
    for stamp in (moving.now - SECOND, moving.now + SECOND):
        assert not moving.arm.on_operator(moving.operator(stamp=stamp, deadman=True), moving.now)
    assert moving.arm.authority is Authority.POLICY and moving.arm.counts["teleop"] == 2


@pytest.mark.parametrize("changes", [{"positions": np.full(8, np.nan)}, {"names": ("x",) * 8}, {"mode": 9}])
def test_a_broken_command_holds_until_the_deadman_is_pressed_anew(moving, changes):
    moving.take_over().step(20)
    moving.arm.on_operator(moving.operator(**changes), moving.now)
    assert_held(moving, "bad_command")
    assert moving.arm.authority is Authority.HOLD, "still pressed: not taken over again"
    moving.deadman = False
    moving.step(5)
    moving.deadman = True
    moving.step(5)
    assert moving.arm.authority is Authority.OPERATOR


def test_a_broken_command_does_not_take_over(moving):
    moving.arm.on_operator(moving.operator(deadman=True, positions=np.full(8, np.nan)), moving.now)
    assert moving.arm.authority is Authority.POLICY


@pytest.mark.parametrize("way", ["button", "service"])
def test_hand_back_flushes_and_waits_for_a_new_observation(moving, way):
    moving.take_over().step(50)
    if way == "button":
        moving.hand_back = True
        moving.arm.on_operator(moving.operator(), moving.now)
    else:
        assert moving.arm.hand_back(moving.now).granted
    handed = moving.now
    assert moving.arm.authority is Authority.POLICY
    moving.arm.on_chunk(moving.chunk(stamp=handed), moving.now)
    assert moving.arm.counts["late_chunk"] >= 1, "observed before this instant"
    moving.step(100)
    assert moving.arm.authority is Authority.POLICY, "the deadman that is still held does not take it back"
    assert moving.arm.first_command >= handed
    moving.assert_inside()
    moving.deadman = moving.hand_back = False
    moving.step(5)
    moving.take_over()
    assert moving.arm.authority is Authority.OPERATOR


def test_hand_back_is_refused_while_something_is_missing(moving):
    moving.take_over().step(20)
    moving.silent.add("chunk")
    moving.step(60)
    answer = moving.arm.hand_back(moving.now)
    assert not answer.granted and "chunk: nothing" in answer.message
    assert moving.arm.authority is Authority.OPERATOR


def test_estop_stops_inside_the_limits_and_latches(moving):
    assert moving.arm.estop(moving.now).granted
    moving.step(60)
    assert moving.plans[-1] is None
    moving.assert_inside()
    for request in ("engage", "hand_back", "hold"):
        answer = getattr(moving.arm, request)(moving.now)
        assert not answer.granted and "arm/reset" in answer.message
    moving.take_over()
    assert moving.arm.authority is Authority.ESTOP and "arm/reset" in moving.arm.blocked_by
    assert moving.arm.estop(moving.now).granted
    assert moving.arm.reset(moving.now).granted and moving.arm.authority is Authority.HOLD


def test_requests_that_change_nothing_are_answered_clearly(world):
    assert world.arm.hold(world.now).granted
    answer = world.arm.reset(world.now)
    assert not answer.granted and "allowed from ESTOP" in answer.message
    world.engage()
    assert "POLICY has control" in world.arm.engage(world.now).message


def test_a_jump_of_the_joints_holds_and_sends_nothing(moving):
    moving.hardware.hold(moving.home - 0.3 * (np.arange(8) < 7))  # the simulation was reset
    moving.chunks_go_to = moving.home
    moving.step()
    assert moving.arm.authority is Authority.HOLD and "jumped" in moving.arm.machine.last.reason
    assert moving.plans[-1] is None
    moving.step(50)
    assert set(moving.plans[-50:]) == {None}
    moving.commands.clear()
    moving.engage().step(100)
    assert np.abs(moving.arm.first_step).max() <= 0.01, "anchored anew at the measured pose"
    moving.assert_inside()


def test_the_gripper_goes_on_from_its_last_command(moving):
    """It holds an object: measured width and command differ by what it squeezes with."""
    moving.chunks_go_to = moving.home * (np.arange(8) < 7)
    moving.step(300)
    assert moving.commands[-1][-1] == pytest.approx(0.0, abs=0.002)
    closed = moving.commands[-1][-1]
    moving.arm.hold(moving.now)
    moving.step(30)
    moving.offset[-1] = 0.025
    moving.step(20)
    moving.device = moving.home * (np.arange(8) < 7)
    moving.take_over().step(5)
    assert moving.plans[-1].positions[0][-1] == pytest.approx(closed, abs=0.003)


def test_a_joint_outside_its_limits_blocks_engage(world):
    world.hardware.hold(world.home * (np.arange(8) != 3))
    world.step(5)
    assert "fr3_joint4 is at 0.000, outside" in world.arm.engage(world.now).message


def test_two_sources_in_one_tick_leave_one_in_control(moving):
    moving.arm.on_monitor(moving.now, "ALARM", True, "", moving.now)
    moving.take_over()
    moving.step(50)
    assert moving.arm.authority is Authority.OPERATOR
    moving.assert_inside()


def test_in_lock_step_silence_of_wall_time_is_no_fault(rig):
    world = World(rig, lockstep=True)
    world.silent |= {"operator", "wrist", "scene"}
    world.step(30).engage().step(200)
    assert world.arm.authority is Authority.POLICY
    world.silent.add("chunk")
    world.step(60)
    assert world.arm.machine.last.event == "stale_chunk"


@pytest.mark.parametrize(("seed", "takeover"), [(3, "full"), (11, "blended"), (12, "blended")])
def test_fuzz_over_all_sources_stays_inside_the_limits(rig, seed, takeover):
    """Random inputs, requests and faults, valid and broken; what reaches the hardware stays inside the envelope."""
    rng = np.random.default_rng(seed)
    teleop = rig.teleop.model_copy(update={"takeover": takeover, "gain": 1.7})
    world = World(rig.model_copy(update={"teleop": teleop})).step(30)
    span = world.arm.columns.upper - world.arm.columns.lower
    authorities = set()
    for _ in range(250):
        arm, now = world.arm, world.now
        match rng.integers(15):
            case 0 | 1 | 2:
                arm.engage(now)
            case 3:
                arm.hold(now)
            case 4:
                world.deadman = bool(rng.integers(2))
                world.mode = Mode(rng.integers(2))
            case 5:
                world.device = rng.uniform(arm.columns.lower - span, arm.columns.upper + span)
            case 6 | 7:
                world.chunks_go_to = rng.uniform(arm.columns.lower, arm.columns.upper)
            case 8:
                arm.on_chunk(world.chunk(**BROKEN[rng.choice(list(BROKEN))]), now)
            case 9:
                arm.on_operator(
                    world.operator(positions=np.full(8, rng.choice([np.nan, np.inf, 1e300]))), now
                )
            case 10:
                arm.on_monitor(now, "ALARM", True, "", now)
            case 11:
                arm.estop(now) if rng.random() < 0.3 else arm.reset(now)
            case 12:
                world.hand_back = bool(rng.integers(2))
                arm.on_joint_states(now, world.names, np.full(8, np.nan), now)
            case 13:
                world.silent = {
                    str(rng.choice(["chunk", "monitor", "operator", "wrist", "joint_states", ""]))
                }
            case 14:
                world.deadman, world.silent = False, set()
                world.step(25)
                arm.engage(world.now)
                world.step(30)
                world.deadman = True
        world.step(int(rng.integers(1, 25)))
        authorities.add(world.arm.authority)
    unused = {Authority.BLENDED} if takeover == "full" else set()
    assert authorities == set(Authority) - unused
    world.assert_inside()


def test_the_policy_may_not_begin_where_its_tool_may_not_be_but_an_operator_may_bring_it_back(world):
    below = world.home.copy()
    below[1], below[3] = 0.9, -1.6
    world.hardware.hold(below)
    world.step(5)
    answer = world.arm.engage(world.now)
    assert not answer.granted and "outside its workspace" in answer.message
    world.device = world.home
    world.mode = Mode.ABSOLUTE
    world.take_over().step(600)
    assert world.arm.authority is Authority.OPERATOR
    assert world.arm.envelope.workspace.outside(world.measured) == ""


def test_a_chunk_that_leads_through_the_table_is_not_followed_there(world):
    world.chunks_go_to = world.home + np.array([0, 1.2, 0, 0.4, 0, 0, 0, 0])
    world.step(5).engage().step(800)
    heights = FRANKA.positions(np.array(world.commands)[:, :7], load_rig("franka_sim").arm.tool_offset)[:, 2]
    assert heights.min() >= 0.0 and heights[-1] < 0.05
    world.assert_inside()


@pytest.fixture
def with_button(rig):
    return World(rig.model_copy(update={"watchdogs": rig.watchdogs.model_copy(update={"estop": 0.1})}))


def press(world, released=False):
    return world.arm.on_estop_button(released, world.now)


def with_released_button(world, ticks):
    for _ in range(ticks):
        press(world, released=True)
        world.step()
    return world


def test_nobody_gets_control_before_the_estop_button_was_heard(with_button):
    world = with_button.step(30)
    assert world.arm.authority is Authority.HOLD
    assert "estop: nothing heard yet" in world.arm.engage(world.now).message
    world.take_over().step()
    assert world.arm.authority is Authority.HOLD and "release the e-stop button" in world.arm.last_refusal
    with_released_button(world, 6)
    assert world.arm.authority is Authority.OPERATOR


@pytest.mark.parametrize("how", ["pressed", "silent"])
def test_an_estop_button_that_is_pressed_or_silent_stops_and_latches(with_button, how):
    world = with_released_button(with_button, 30).engage()
    with_released_button(world, 60)
    assert np.abs(world.commands[-1] - world.commands[-2])[:7].max() > 1e-3
    if how == "pressed":
        assert press(world)
        world.step(10)
    else:
        world.step(12)
    assert world.arm.authority is Authority.ESTOP
    assert ("pressed" if how == "pressed" else "estop: nothing for 0.11 s") in world.arm.machine.last.reason
    world.step(60)
    world.assert_inside()
    assert np.ptp(world.commands[-10:], axis=0).max() == 0.0
    answer = world.arm.reset(world.now)
    assert not answer.granted and "release the e-stop button" in answer.message
    press(world, released=True)
    assert world.arm.reset(world.now).granted and world.arm.authority is Authority.HOLD


def test_a_moving_arm_may_be_slowed_down_but_not_sped_up(moving):
    def speed(commands):
        return np.abs(np.diff(commands, axis=0))[:, :7].max() * 100

    assert speed(moving.commands[-20:]) > 0.25
    moving.arm.envelope.slow_down(0.1)
    moving.step(20).commands.clear()
    moving.step(100)
    assert 0.1 < speed(moving.commands) <= 0.1 * moving.arm.columns.velocity[:7].max()
    moving.assert_inside()
    for share in (0.5, 0.0, -1.0, float("nan")):
        with pytest.raises(Refused, match="may be lowered"):
            moving.arm.envelope.slow_down(share)
    assert moving.arm.envelope.speed == 0.1


@pytest.mark.parametrize("source", ["policy", "operator"])
def test_a_robot_that_stops_by_itself_is_noticed_and_goes_on_by_request(rig, source):
    """As after a reflex of the robot, or when its controller was stopped."""
    watchdogs = rig.watchdogs.model_copy(update={"following_error": 0.3})
    world = World(rig.model_copy(update={"watchdogs": watchdogs})).step(30)
    world.chunks_go_to = world.device = world.home + 0.9 * (np.arange(8) == 0)
    world.mode = Mode.ABSOLUTE
    world.step(5)
    world.engage() if source == "policy" else world.take_over()
    world.step(60)
    stopped = world.measured
    world.send = lambda plan: None
    world.hardware.hold(stopped)
    for _ in range(300):
        world.step()
        if world.arm.authority is Authority.HOLD:
            break
    assert world.arm.machine.last.event == "not_following"
    assert re.match(r"fr3_joint1 is 0\.[3-6]\d rad from its command.*reflex", world.arm.machine.last.reason)
    assert world.plans[-1] is None and world.arm.commanded == pytest.approx(world.measured)
    del world.send
    world.deadman = False
    world.step(100)
    assert world.measured == pytest.approx(stopped), "nothing moves by itself when the robot is back"
    world.commands.clear()
    world.engage().step(100)
    assert np.abs(world.arm.first_step)[:7].max() <= 0.01
    world.assert_inside()


@pytest.mark.parametrize("fast", [0.4, 0.8, 1.2])
def test_a_takeover_from_fast_motion_is_answered_at_once_without_a_step(rig, fast):
    """Complaint 3: the command goes on from where it was, however far the arm is behind it."""
    world = Lagging(rig).step(30)
    world.chunks_go_to = world.home + fast * (np.arange(8) == 0)
    world.engage().step(60)
    world.mode, world.device = Mode.RELATIVE, np.zeros(8)
    ordinary = np.abs(np.diff(world.commands[30:], axis=0)).max()
    assert ordinary > 0.003, "it moves"
    world.take_over()
    assert world.arm.authority is Authority.OPERATOR and world.arm.first_command == world.now
    before = len(world.commands)
    world.step(50)
    assert np.abs(np.diff(world.commands[before - 1 :], axis=0)).max() <= ordinary * 1.01
    assert np.ptp(world.commands[-5:], axis=0).max() < 1e-4, (
        "the operator's device rests, and so does the arm"
    )
    world.assert_inside()
