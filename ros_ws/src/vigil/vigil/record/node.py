"""The recorder node: writes what the rig says, as serialised by its publishers, into one MCAP file per episode.

    record/start, record/end    services
    record/episode              the recorder's state, once a second and on every change

Messages are fetched in batches from the middleware's queues, not one by one by the executor: at a thousand messages a
second that costs a fifth, and the middleware notes the time of reception anyway.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from vigil_msgs.msg import EpisodeMark, EpisodeState
from vigil_msgs.srv import EndEpisode, MarkEpisode, StartEpisode

from vigil.errors import VigilError
from vigil.node import ERROR, EVENTS, LATCHED, OK, WARN, Health, VigilNode, interfaces, spin_node, to_stamp
from vigil.record.cdr import stamp_of
from vigil.record.definitions import full_definition
from vigil.record.episode import INTERRUPTED, PERTURBATION, check_outcome
from vigil.record.gaps import GapCounter
from vigil.record.recovery import recover_folder
from vigil.record.session import Asked, RecordingSession
from vigil.record.topics import Source, advice_on_buffers, qos_yaml, sources
from vigil.record.writer import Topic
from vigil.rig import resolve

FETCH_PERIOD = 0.02  # s
DISCOVERY, MATCHING = 2.0, 0.5
"""[s] That an episode waits at most for a recorder that was just started to know all publishers, and these to know it."""
QUEUE, IMAGE_QUEUE = 400, 30  # messages that the middleware holds for us between two fetches


class Arrival(NamedTuple):
    """One message as it came. Sorts by time of reception."""

    received: int  # ns, system time
    order: int  # of fetching, no two alike
    topic: str
    sent: int  # ns, system time
    data: bytes


class RecordNode(VigilNode):
    """Records one episode at a time."""

    def __init__(self) -> None:
        super().__init__("record")
        self._session: RecordingSession | None = None
        self._inlet: Node | None = None
        self._inputs: dict[str, Any] = {}
        self._state = EpisodeState()
        self._gaps = GapCounter()
        self._kept: dict[str, Arrival] = {}
        self._held: list[Arrival] = []  # fetched, and to be passed on
        self._owed: list[Arrival] = []  # to be put before the episode's first message
        self._fetched = 0
        self._newest = 0  # stamp heard, ns

    # Life cycle -----------------------------------------------------------------------------------------------

    def setup(self) -> None:
        self._sources = {self._absolute(source.name): source for source in sources(self.rig)}
        self._topics = [
            Topic(name, source.type_name, full_definition(source.type_name), qos_yaml(source))
            for name, source in self._sources.items()
        ]
        self._control_topic = self._absolute("arm/state")
        # Its subscriptions are not spun by the executor: `_fetch` empties their queues.
        self._inlet = Node(
            f"{self.get_name()}_inlet",
            namespace=self.get_namespace(),
            context=self.context,
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        for name, source in self._sources.items():
            if not source.image:
                self._take_in(name, source)
        self._state_publisher = self.advertise(EpisodeState, "record/episode", LATCHED)
        # A group of its own: while it waits, every other callback goes on.
        alone = MutuallyExclusiveCallbackGroup()
        self.serve(StartEpisode, "record/start", self._on_start, callback_group=alone)
        self.serve(EndEpisode, "record/end", self._on_end)
        # Whoever stands beside the robot may also publish marks; all come in by the topic.
        self._marks = self.advertise(EpisodeMark, "record/marks", EVENTS)
        self.serve(MarkEpisode, "record/mark", self._on_mark)
        raw = any(s.image and s.type_name == "sensor_msgs/msg/Image" for s in self._sources.values())
        if raw and (advice := advice_on_buffers()):
            self.get_logger().warning(advice)
        folder = resolve(self.rig.record.directory)
        threading.Thread(
            target=recover_folder, args=(folder, self.get_logger().warning), name="recover", daemon=True
        ).start()

    def start(self) -> None:
        self._ready, self._wait_until = Future(executor=self.executor), time.monotonic() + DISCOVERY
        self._unheard = set(self._inputs)
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._beats = [
            self.create_timer(FETCH_PERIOD, self._fetch, clock=clock),
            self.create_timer(1.0, self._publish, clock=clock),
        ]
        self._publish()

    def stop(self) -> None:
        for timer in self._beats:
            self.destroy_timer(timer)
        self._ready.set_result(None)
        if self._session is not None:
            self._fetch(all_of_it=True)
            session = self._close()
            try:
                path = session.interrupt(self._instant(), self._gaps.lost)
                self.get_logger().warning(f"the recorder ends while an episode is open: kept as {path.name}")
                self._state.path, self._state.termination_reason = str(path), INTERRUPTED
            except VigilError as error:
                self.get_logger().error(str(error))
        self._publish()

    def teardown(self) -> None:
        self._inputs.clear()
        self._kept.clear()
        self._held.clear()
        if self._inlet is not None:
            self._inlet.destroy_node()
            self._inlet = None

    def diagnose(self) -> Iterable[Health]:
        session = self._session
        if session is None:
            yield Health("recording", OK, "no episode is open")
            return
        dropped = session.counts.dropped.total() + self._gaps.lost.total()
        odd = [f"{dropped} messages dropped"] if dropped else []
        odd += session.labels(self._instant())
        yield Health(
            "recording",
            ERROR if session.stopped else WARN if odd else OK,
            session.stopped or "; ".join(odd) or "ok",
            {
                "episode": session.record.episode_id,
                "written": session.counts.written.total(),
                "dropped": dropped,
                "path": session.path,
            },
        )

    # Services -------------------------------------------------------------------------------------------------

    async def _on_start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> Any:
        try:
            self._require_active()
            await self._ready
            self._require_active()
            if self._session is not None:
                raise VigilError(
                    f"episode {self._session.record.episode_id} is open: end it first (record/end)"
                )
            self._fetch(all_of_it=True)  # what came before belongs to no episode
            self._session = RecordingSession(
                self.rig,
                self._topics,
                Asked(request.episode_id, request.task, request.operator_id),
                clock="simulated" if self.lockstep else "system",
                now=self._instant(),
                control_topic=self._control_topic,
                mark_topic=self._absolute("record/marks"),
                streams={name: source.stream for name, source in self._sources.items()},
            )
        except VigilError as error:
            response.message = str(error)
            return response
        record = self._session.record
        self._gaps.restart()
        self._owed = list(self._kept.values())
        for name, source in self._sources.items():
            if source.image:
                self._take_in(name, source)
        self._state = EpisodeState(
            recording=True,
            episode_id=record.episode_id,
            path=str(self._session.path),
            task=record.task,
            operator_id=record.operator_id,
        )
        self._publish()
        self.get_logger().info(f"episode {record.episode_id} begins")
        response.success, response.episode_id, response.path = True, record.episode_id, self._state.path
        return response

    def _on_end(self, request: EndEpisode.Request, response: EndEpisode.Response) -> Any:
        try:
            self._require_active()
            if self._session is None:
                raise VigilError("no episode is open: start one first (record/start)")
            check_outcome(request.outcome)
        except VigilError as error:
            response.message = str(error)
            return response
        self._fetch(all_of_it=True)
        session = self._close()
        try:
            path = session.end(request.outcome, request.termination_reason, self._instant(), self._gaps.lost)
        except VigilError as error:
            self.get_logger().error(str(error))
            response.message = str(error)
        else:
            response.success, response.path = True, str(path)
            response.message = "; ".join(filter(None, (session.record.recording_stopped, session.warning)))
            self._state.path = str(path)
        self._count(session)
        self._state.outcome = request.outcome
        self._state.termination_reason = request.termination_reason
        self._publish()
        self.get_logger().info(f"episode {session.record.episode_id} ends: {request.outcome}")
        return response

    def _on_mark(self, request: MarkEpisode.Request, response: MarkEpisode.Response) -> Any:
        try:
            self._require_active()
            if self._session is None:
                raise VigilError("no episode is open: there is nothing to mark")
        except VigilError as error:
            response.message = str(error)
            return response
        mark = EpisodeMark(label=request.label or PERTURBATION)
        mark.header.stamp = to_stamp(self._instant())
        self._marks.publish(mark)
        response.success, response.message = True, f"marked: {mark.label}"
        return response

    def _require_active(self) -> None:
        if not self.active:
            raise VigilError("the recorder is not active")

    def _close(self) -> RecordingSession:
        self._put_owed(self._session.record.start_ns)
        session, self._session = self._session, None
        for name, source in self._sources.items():
            if source.image:
                self._inlet.destroy_subscription(self._inputs.pop(name))
                self._gaps.forget(name)
        self._state.recording = False
        return session

    # State ----------------------------------------------------------------------------------------------------

    def _count(self, session: RecordingSession) -> None:
        self._state.messages = session.counts.written.total()
        self._state.dropped = session.counts.dropped.total() + self._gaps.lost.total()
        self._state.duration = max(self._instant() - session.record.start_ns, 0) / 1e9
        self._state.marks = [f"{mark.label} at {mark.at_s:.1f} s" for mark in session.record.marks]

    def _publish(self) -> None:
        if self._session is not None:
            self._count(self._session)
        self._state.header.stamp = to_stamp(self._instant())
        self._state_publisher.publish(self._state)

    def _instant(self) -> int:
        """Now [ns]; in lock step the newest stamp heard, which this node's clock may be behind."""
        return max(self._newest, self.now()) if self.lockstep else self.now()

    # Messages -------------------------------------------------------------------------------------------------

    def _absolute(self, name: str) -> str:
        return name if name.startswith("/") else f"{self.get_namespace().rstrip('/')}/{name}"

    def _take_in(self, name: str, source: Source) -> None:
        profile = QoSProfile(
            depth=IMAGE_QUEUE if source.image else QUEUE,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.BEST_EFFORT
            if source.delivery == "sensor"
            else ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL
            if source.delivery == "latched"
            else DurabilityPolicy.VOLATILE,
        )
        self._inputs[name] = self._inlet.create_subscription(
            _message_class(source.type_name), name, lambda _: None, profile, raw=True
        )

    def _fetch(self, *, all_of_it: bool = False) -> None:
        """Pass on what has come, in the order of its reception.

        A message may be received before one that is fetched earlier. So the newest are held back until the next fetch,
        unless ``all_of_it`` is asked for.
        """
        last = self._held[-1] if self._held else None
        arrivals, self._held = self._held, []
        for topic, subscription in self._inputs.items():
            with subscription.handle:
                for _ in range(QUEUE):
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                    if taken is None:
                        break
                    data, info = taken
                    if not self._sources[topic].shared:
                        self._gaps.note(topic, info["publication_sequence_number"])
                    sent, received = info["source_timestamp"], info["received_timestamp"]
                    self._fetched += 1
                    arrivals.append(Arrival(received, self._fetched, topic, sent, data))
        if not self._ready.done():
            self._look_for_publishers({arrival.topic for arrival in arrivals})
        arrivals.sort()
        if not all_of_it:
            ready = bisect_right(arrivals, last) if last else 0
            arrivals, self._held = arrivals[:ready], arrivals[ready:]
        for arrival in arrivals:
            if self._sources[arrival.topic].keep:
                self._kept[arrival.topic] = arrival
            if self.lockstep:
                arrival = self._in_simulated_time(arrival)
            if self._session is not None:
                self._put_owed(arrival.received)
                self._session.put(arrival.topic, arrival.data, arrival.received, arrival.sent)
        if self._session is not None and self._session.stopped and self._state.recording:
            self.get_logger().error(f"recording stopped, the robot goes on: {self._session.stopped}")
            self._state.recording = False
            self._state.termination_reason = f"recording stopped: {self._session.stopped}"
            self._publish()

    def _look_for_publishers(self, heard: set[str]) -> None:
        """What is published before publisher and recorder know each other is lost: no episode begins before that."""
        now = time.monotonic()
        self._unheard -= heard
        if all(self.count_publishers(topic) for topic in self._unheard):
            self._wait_until = min(self._wait_until, now + MATCHING)
        if not self._unheard or now > self._wait_until:
            self._ready.set_result(None)

    def _put_owed(self, received: int) -> None:
        """What was published once and for ever, before the first message: log times never decrease."""
        for arrival in self._owed:
            self._session.put(arrival.topic, arrival.data, received, self._session.record.start_ns)
        self._owed = []

    def _in_simulated_time(self, arrival: Arrival) -> Arrival:
        stamp = self._newest
        if self._sources[arrival.topic].stamped:
            stamp = stamp_of(arrival.data)
            self._newest = max(self._newest, stamp)
        return arrival._replace(received=self._newest, sent=stamp)


def _message_class(type_name: str) -> type:
    package, kind, name = type_name.split("/")
    return getattr(interfaces(package, kind, f"recording {type_name}"), name)


main = partial(spin_node, RecordNode)

if __name__ == "__main__":
    main()
