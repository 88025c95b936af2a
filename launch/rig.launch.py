"""`ros2 launch launch/rig.launch.py rig:=franka_sim`: the nodes that `vigil up` runs, from the same specs.

Processes are started and restarted by launch; `LifecycleManager` configures and activates their nodes in the order of
the specs, as it does for `vigil up`. A node that refuses at the start ends the launch with its reason.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart, OnShutdown
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from vigil.bringup import NodeSpec, Options, dds_environment, environment, node_specs
from vigil.rig import RigConfig, load_rig
from vigil.run.node import LifecycleManager

RESPAWN_DELAY = 1.0  # [s]
PATIENCE = "10"  # [s] for a node to close in order (a recording to be ended) before it is told again


class BringUp:
    """The actions of one launch, and what their processes have come to."""

    def __init__(self, context: LaunchContext, rig: RigConfig, options: Options) -> None:
        self._context = context
        self._local = rig.sim is not None
        specs = node_specs(rig, options)
        self._specs = specs
        self._starts = dict.fromkeys((spec.name for spec in specs), 0)
        self._running: set[str] = set()
        self._manager = LifecycleManager(specs, self._generation, self._on_refusal)

    def actions(self) -> list:
        """Handlers first: they must not miss the start of a process."""
        nodes = {spec.name: self._node(spec) for spec in self._specs}
        handlers = [OnShutdown(on_shutdown=lambda event, context: self.close())]
        for name, node in nodes.items():
            handlers.append(
                OnProcessStart(target_action=node, on_start=lambda _, __, n=name: self._on_start(n))
            )
            handlers.append(OnProcessExit(target_action=node, on_exit=lambda _, __, n=name: self._on_exit(n)))
        self._manager.__enter__()
        return [*(RegisterEventHandler(handler) for handler in handlers), *nodes.values()]

    def _node(self, spec: NodeSpec) -> LifecycleNode:
        return LifecycleNode(
            package=spec.package,
            executable=spec.executable,
            name=spec.name,
            namespace=spec.namespace,
            parameters=[dict(spec.parameters)],
            additional_env=dds_environment(os.environ, local=self._local, room=spec.room),
            output="both",
            respawn=spec.respawn,
            respawn_delay=RESPAWN_DELAY,
            sigterm_timeout=PATIENCE,
        )

    def _generation(self, name: str) -> int:
        return self._starts[name] if name in self._running else 0

    def _on_start(self, name: str) -> None:
        self._starts[name] += 1
        self._running.add(name)

    def _on_exit(self, name: str) -> None:
        self._running.discard(name)

    def _on_refusal(self, name: str) -> None:
        """Called in a thread of the manager. A node that was restarted is left to try again."""
        if self._starts[name] == 1:
            event = Shutdown(reason=f"{name} refused to {self._manager.refusal(name)}: its reason is above")
            self._context.asyncio_loop.call_soon_threadsafe(self._context.emit_event_sync, event)

    def close(self) -> None:
        """Let the nodes be; launch ends their processes."""
        self._manager.__exit__()


def bring_up(context: LaunchContext) -> list:
    """Read the rig and make its actions; an error in the rig ends the launch with that error."""
    rig = load_rig(LaunchConfiguration("rig").perform(context))
    options = Options(
        lockstep=LaunchConfiguration("lockstep").perform(context) == "true",
        record=LaunchConfiguration("record").perform(context) == "true",
    )
    # Of this process too, before it opens DDS: its domain must be that of the nodes.
    os.environ.update(environment(rig, os.environ))
    return BringUp(context, rig, options).actions()


def generate_launch_description() -> LaunchDescription:
    """Arguments ``rig`` (name or file), ``lockstep`` and ``record`` (true or false)."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("rig", description="a rig's name (launch/rigs/NAME.yaml) or a rig file"),
            DeclareLaunchArgument("lockstep", default_value="false", choices=["true", "false"]),
            DeclareLaunchArgument("record", default_value="true", choices=["true", "false"]),
            OpaqueFunction(function=bring_up),
        ]
    )
