"""A lifecycle node that does nothing, or refuses to be configured: stands where tests of bring-up need any node."""

import time

from vigil.errors import VigilError
from vigil.node import VigilNode, spin_node


class PlainNode(VigilNode):
    def __init__(self) -> None:
        super().__init__("plain")
        self.declare_parameter("refusal", "")
        self.declare_parameter("setup_duration", 0.0)

    def setup(self) -> None:
        if refusal := self.get_parameter("refusal").value:
            raise VigilError(refusal)
        time.sleep(self.get_parameter("setup_duration").value)

    def start(self) -> None:
        self.get_logger().info("active")


if __name__ == "__main__":
    spin_node(PlainNode)
