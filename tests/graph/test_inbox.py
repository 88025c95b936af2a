"""`vigil.inbox.node.Inbox` over real DDS: read on demand, or attended by a thread of its own."""

from __future__ import annotations

import threading
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import Int32, String

from support.live_node import Graph, graph, wait_for
from vigil.inbox.node import Inbox
from vigil.node import EVENTS


@pytest.fixture
def live():
    with graph("inbox_test") as test:
        yield test


def publisher(test: Graph, topic: str, kind: type = Int32):
    made = test.node.create_publisher(kind, topic, EVENTS)
    wait_for(lambda: made.get_subscription_count() == 1, what="discovery")
    return made


def publish_five(test: Graph) -> None:
    """Numbers 0 to 4; another subscription has heard them."""
    told, seen = publisher(test, "numbers"), test.collect(Int32, "numbers", EVENTS)
    wait_for(lambda: told.get_subscription_count() == 2, what="discovery of the witness")
    for number in range(5):
        told.publish(Int32(data=number))
    wait_for(lambda: len(seen) == 5, what="messages of the witness")


def content() -> bool:
    """Nothing else is awaited."""
    return False


def test_messages_wait_until_they_are_fetched_and_come_in_order(live):
    inbox, got = Inbox(live.node), []
    inbox.listen(Int32, "numbers", lambda message: got.append(message.data), EVENTS)
    publish_five(live)
    assert got == []
    wait_for(lambda: inbox.fetch() or len(got) == 5, what="five messages")
    assert got == [0, 1, 2, 3, 4]
    inbox.close()


def test_an_attended_inbox_hands_over_in_its_own_thread(live):
    inbox, got = Inbox(live.node), []
    inbox.listen(Int32, "numbers", lambda m: got.append((m.data, threading.current_thread().name)), EVENTS)
    inbox.attend(content)
    told = publisher(live, "numbers")
    for number in range(3):
        told.publish(Int32(data=number))
    wait_for(lambda: len(got) == 3, what="three messages")
    assert got == [(number, "inbox") for number in range(3)]
    inbox.close()
    assert not any(thread.name == "inbox" for thread in threading.enumerate())


def test_an_attended_inbox_wakes_for_another_one_only_while_that_is_awaited(live):
    inbox, beside, got, wakes = Inbox(live.node), Inbox(live.node), [], []

    def on_wake() -> bool:
        beside.fetch()
        wakes.append(list(got))
        return got[-1] == "begin"

    inbox.listen(String, "asked", lambda message: got.append(message.data), EVENTS)
    beside.listen(Int32, "numbers", lambda message: got.append(message.data), EVENTS)
    inbox.attend(on_wake, beside)
    told, numbers = publisher(live, "asked", String), publisher(live, "numbers")
    told.publish(String(data="begin"))
    wait_for(lambda: wakes == [["begin"]], what="the first wake")
    numbers.publish(Int32(data=1))
    wait_for(lambda: wakes[1:] == [["begin", 1]], what="the wake by the other inbox")
    witness = live.collect(Int32, "numbers", EVENTS)
    wait_for(lambda: numbers.get_subscription_count() == 2, what="discovery of the witness")
    numbers.publish(Int32(data=2))
    wait_for(lambda: len(witness) == 1, what="the message of which nobody is woken")
    told.publish(String(data="end"))
    wait_for(lambda: len(wakes) == 3, what="the last wake")
    assert wakes[2] == ["begin", 1, "end", 2]
    inbox.close()
    beside.close()


def test_what_came_together_is_handed_over_before_anybody_is_told(live):
    inbox, got, seen = Inbox(live.node), [], []
    inbox.listen(Int32, "numbers", lambda message: got.append(message.data), EVENTS)
    publish_five(live)
    inbox.attend(lambda: bool(seen.append(len(got))))
    wait_for(lambda: got == [0, 1, 2, 3, 4] and seen, what="five messages")
    assert (
        len(seen) <= 2
    )  # the middleware may hand the last of them to one node a little later than to the other
    inbox.close()


def test_what_fails_while_a_message_is_read_ends_the_node_and_not_the_thread_alone(live):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("fails", namespace="inbox_test", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    inbox = Inbox(node)

    def fail(message: Int32) -> None:
        raise RuntimeError(f"cannot read {message.data}")

    inbox.listen(Int32, "numbers", fail, EVENTS)
    inbox.attend(content)
    publisher(live, "numbers").publish(Int32(data=7))
    with pytest.raises(RuntimeError, match="cannot read 7"):
        wait_for(lambda: executor.spin_once(timeout_sec=0.1), timeout=10.0, what="the error")
    inbox.close()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_callback_of_two_parameters_is_told_when_the_middleware_received_the_message(live):
    inbox, got = Inbox(live.node), []
    inbox.listen(Int32, "numbers", lambda message, info: got.append((message.data, info)), EVENTS)
    told, before = publisher(live, "numbers"), time.time_ns()
    told.publish(Int32(data=3))
    witness = live.collect(Int32, "numbers", EVENTS)
    wait_for(lambda: told.get_subscription_count() == 2, what="discovery of the witness")
    told.publish(Int32(data=4))
    wait_for(lambda: len(witness) == 1, what="the second message")
    between = time.time_ns()
    inbox.fetch()
    received = [info["received_timestamp"] for _, info in got]
    assert [number for number, _ in got] == [3, 4]
    assert before < received[0] < received[1] < between, "not when it was read"
    inbox.close()
