"""What users of comparable stacks complain about most, as far as it is the arm's: each must be impossible here."""

import numpy as np
import pytest
from pydantic import ValidationError

from support.arm_world import TICK, Lagging, World
from vigil.arm.authority import Authority
from vigil.arm.clutch import Mode
from vigil.arm.curves import SECOND
from vigil.rig import ArmConfig, load_rig


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


@pytest.fixture
def world(rig):
    return World(rig).step(30)


@pytest.fixture
def moving(world):
    return world.engage().step(60)


@pytest.mark.parametrize("seam", ["blend", "switch", "ensemble"])
def test_complaint_2_no_jump_at_the_seam_of_two_chunks(rig, seam):
    """Chunks that lie 0.06 rad apart follow each other; neither position nor velocity jumps, whatever joins them."""
    world = World(rig.model_copy(update={"policy": rig.policy.model_copy(update={"seam": seam})})).step(30)
    ordinary = world.chunk
    flip = [1.0]

    def disagreeing(**changes):
        flip[0] = -flip[0]
        chunk = ordinary()
        apart = np.tile(0.03 * flip[0] * (np.arange(8) < 7), 16)
        return ordinary(positions=chunk.positions + apart, **changes)

    world.engage().step(60)
    world.chunk = disagreeing
    since = len(world.commands)
    world.step(300)
    assert world.arm.authority is Authority.POLICY, world.arm.machine.last.reason
    world.assert_inside()
    assert np.abs(np.diff(world.commands[since:], axis=0))[:, :7].max() < 0.02


def test_complaint_2_a_slow_first_inference_is_not_taken_for_a_steady_delay(rig):
    """Steps are due by their stamps alone: after one chunk that came late the next ones are followed as ever."""

    def drive(first_delay):
        world = World(rig).step(30)
        goal, start = world.chunks_go_to.copy(), world.home.copy()

        def schedule(instant):  # where the policy wants the arm, as a function of time alone
            share = np.clip((instant - began) / (2 * SECOND), 0, 1)
            return start + (goal - start) * share

        def chunk(delay):
            stamp = world.now - delay
            steps = [schedule(stamp + i * SECOND // 20) for i in range(16)]
            return {"stamp": stamp, "positions": np.concatenate(steps)}

        world.silent.add("chunk")
        world.arm.on_chunk(world.chunk(), world.now)
        began = world.now
        world.engage()
        world.step(first_delay // TICK + 1)
        for number in range(10):
            world.arm.on_chunk(world.chunk(**chunk(first_delay if number == 0 else SECOND // 50)), world.now)
            world.step(20)
        assert world.arm.authority is Authority.POLICY, world.arm.machine.last.reason
        return world.commands[-1], schedule(world.now)

    for delay in (SECOND // 50, SECOND // 2):
        reached, wanted = drive(delay)
        assert reached[:7] == pytest.approx(wanted[:7], abs=0.005)


@pytest.mark.parametrize("far", [0.05, 0.5, 2.0])
def test_complaint_3_the_first_command_does_not_jump_to_where_the_policy_begins(world, far):
    """The first frame of an episode may be anywhere: the arm goes there inside its limits, from where it is."""
    there = np.clip(world.home + far, world.arm.columns.lower, world.arm.columns.upper)
    world.chunk = lambda chunk=world.chunk, **changes: chunk(positions=np.tile(there, 16), **changes)
    world.engage().step(3)
    assert np.abs(world.arm.first_step)[:7].max() <= 0.01
    world.step(100)
    assert np.abs(world.commands[-1] - world.commands[30])[:7].max() > 0.03, "it goes there"
    world.assert_inside()


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("hardware", [World, Lagging])
def test_complaint_3_neither_takeover_nor_hand_back_jumps(rig, hardware, mode):
    """From motion, with a device that stands elsewhere; at once, and no faster than the arm moves anyway."""
    world = hardware(rig).step(30).engage().step(60)
    ordinary = np.abs(np.diff(world.commands, axis=0))[:, :7].max()
    world.mode, world.device = mode, world.home - 0.3
    since = len(world.commands) - 1
    world.take_over()
    assert world.arm.authority is Authority.OPERATOR and world.arm.first_command == world.now
    world.step(40)
    assert np.abs(np.diff(world.commands[since:], axis=0))[:, :7].max() <= ordinary * 1.01
    assert world.arm.hand_back(world.now).granted
    world.deadman = False
    world.step(60)
    assert world.arm.authority is Authority.POLICY
    world.assert_inside()


def test_complaint_6_no_discontinuity_of_velocity_or_acceleration_reaches_the_robot(moving):
    """A robot that gets none has no cause for a reflex: through hold, takeover, e-stop and reset."""
    moving.arm.hold(moving.now)
    moving.respond()
    moving.step(10)
    moving.take_over().step(30)
    moving.device = moving.home + 0.4 * (np.arange(8) < 7)
    moving.step(7)
    moving.arm.estop(moving.now)
    moving.respond()
    moving.step(60)
    assert moving.arm.reset(moving.now).granted
    moving.deadman = False
    moving.step(10)
    moving.engage().step(60)
    assert moving.arm.authority is Authority.POLICY
    moving.assert_inside()


def test_complaint_7_limits_are_not_optional(rig):
    """There is no arm without limits, and none of them can be left out."""
    data = rig.arm.model_dump()
    for joint in rig.arm.joints:
        for limit in ("lower", "upper", "velocity", "acceleration", "jerk"):
            without = {k: v for k, v in data["joints"][joint].items() if k != limit}
            with pytest.raises(ValidationError, match=limit):
                ArmConfig.model_validate({**data, "joints": {**data["joints"], joint: without}})
    with pytest.raises(ValidationError, match="workspace"):
        ArmConfig.model_validate({k: v for k, v in data.items() if k != "workspace"})


@pytest.mark.parametrize("how", ["hold", "estop"])
def test_complaint_7_a_stop_neither_drops_the_arm_nor_lies(moving, how):
    """The commands end at rest where the arm is held; the answer says so only if it is so."""
    fast = np.abs(moving.commands[-1] - moving.commands[-2])[:7].max()
    answer = getattr(moving.arm, how)(moving.now)
    moving.respond()
    assert answer.granted
    assert moving.arm.authority is (Authority.ESTOP if how == "estop" else Authority.HOLD)
    since = len(moving.commands)
    moving.step(60)
    assert fast > 1e-3 and np.ptp(moving.commands[-20:], axis=0).max() == 0.0, "it stands"
    travelled = np.abs(np.asarray(moving.commands[since:]) - moving.commands[since - 1])[:, :7].max()
    assert travelled < 0.2, "it stopped near where it was"
    assert np.array_equal(moving.commands[-1], moving.hardware.sample(moving.now + 10 * SECOND)[0])
    moving.assert_inside()


# Blended authority ---------------------------------------------------------------------------------------------------


@pytest.fixture
def blended(rig):
    teleop = rig.teleop.model_copy(update={"takeover": "blended", "gain": 0.5})
    world = World(rig.model_copy(update={"teleop": teleop})).step(30)
    world.chunk = lambda chunk=world.chunk, **changes: chunk(positions=np.tile(world.home, 16), **changes)
    return world.engage().step(60)


@pytest.mark.parametrize("mode", Mode)
def test_a_correction_is_added_to_the_policy_s_command(blended, mode):
    blended.mode, blended.device = mode, blended.home + 0.2
    blended.take_over()
    blended.step(20)
    assert blended.arm.authority is Authority.BLENDED and blended.arm.machine.last.event == "correct"
    assert blended.commands[-1] == pytest.approx(blended.home, abs=1e-3), (
        "where the device stands is its zero"
    )
    blended.device = blended.device + 0.1 * (np.arange(8) == 0)
    blended.step(60)
    assert blended.commands[-1] == pytest.approx(blended.home + 0.05 * (np.arange(8) == 0), abs=2e-3)
    blended.deadman = False
    blended.step(100)
    assert blended.arm.authority is Authority.POLICY and blended.arm.machine.last.event == "release"
    assert blended.commands[-1] == pytest.approx(blended.home, abs=2e-3), "it fades out"
    blended.assert_inside()


def test_a_second_correction_begins_where_the_first_one_is_fading(blended):
    blended.take_over().step(10)
    blended.device = blended.device + 0.2 * (np.arange(8) == 0)
    blended.step(60)
    blended.deadman = False
    blended.step(15)
    fading = blended.commands[-1][0] - blended.home[0]
    assert 0.02 < fading < 0.1
    blended.take_over().step(60)
    assert blended.commands[-1][0] - blended.home[0] == pytest.approx(fading, abs=0.04)
    blended.assert_inside()


def test_a_corrected_policy_is_held_by_an_alarm_and_the_deadman_then_takes_the_arm(blended):
    blended.take_over().step(10)
    blended.arm.on_monitor(blended.now, "ALARM", True, "", blended.now)
    assert blended.arm.authority is Authority.HOLD and blended.arm.machine.last.event == "alarm"
    blended.step(20)
    assert blended.arm.authority is Authority.HOLD, "a deadman held through the alarm does not count"
    blended.deadman = False
    blended.step(10)
    blended.take_over()
    assert blended.arm.authority is Authority.OPERATOR, "there is no policy to correct"


@pytest.mark.parametrize("squeeze", [None, 0.004])
def test_a_position_driven_gripper_squeezes_no_harder_than_it_may(rig, squeeze):
    gripper = rig.arm.gripper.model_copy(update={"squeeze": squeeze})
    world = World(rig.model_copy(update={"arms": (rig.arm.model_copy(update={"gripper": gripper}),)})).step(
        30
    )
    world.chunks_go_to = world.home * (np.arange(8) < 7)  # closed
    blocked = 0.05

    original = World.measured.fget
    held = np.arange(8) == 7
    measure = property(lambda self: np.where(held, np.maximum(original(self), blocked), original(self)))
    world.__class__ = type("Held", (World,), {"measured": measure})
    world.engage().step(200)
    tightest = world.arm.commanded[7]
    assert tightest == pytest.approx(0.0 if squeeze is None else blocked - squeeze, abs=2e-3)
