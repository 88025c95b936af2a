"""A tick's results as messages: the chunk, the evidence, and where the samples lead, drawn into the cameras' pictures."""

from __future__ import annotations

from array import array

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from vigil_msgs.msg import ActionChunk, PolicyEvidence
from visualization_msgs.msg import ImageMarker

from vigil.camera.calibration import load_calibration, optical_frame
from vigil.errors import VigilError
from vigil.node import SENSOR, VigilNode, to_stamp
from vigil.policy.bundle import Bundle
from vigil.policy.foresight import View
from vigil.policy.observation import Observation
from vigil.policy.spec import BundleSpec
from vigil.policy.ticker import Tick
from vigil.rig import RigConfig

ALL, CHOSEN = ColorRGBA(r=0.2, g=0.6, b=1.0, a=0.4), ColorRGBA(r=1.0, g=0.6, b=0.0, a=1.0)


def chunk_message(spec: BundleSpec, tick: Tick, number: int, taken: float) -> ActionChunk:
    """``number`` of the tick; ``taken`` [s] since the observation was complete."""
    chunk = ActionChunk(
        tick=number,
        bundle=spec.name,
        names=list(spec.action_names),
        step_dt=spec.step_dt,
        horizon=spec.horizon,
        positions=array("d", tick.chunk.astype(np.float64).tobytes()),
        inference_time=taken,
    )
    chunk.header.stamp = to_stamp(tick.stamp)
    return chunk


def evidence_message(bundle: Bundle, tick: Tick, number: int, samples: np.ndarray) -> PolicyEvidence:
    """``samples`` [K, H, D]."""
    spec = bundle.spec
    evidence = PolicyEvidence(
        tick=number,
        bundle_hash=bundle.content_hash,
        sampler=bundle.sampler_name,
        sampler_steps=bundle.sampler.steps,
        names=list(spec.action_names),
        step_dt=spec.step_dt,
        embedding=array("f", tick.encoded.embedding.tobytes()),
        k=len(samples),
        horizon=spec.horizon,
        samples=array("f", samples.tobytes()),
        chosen=len(samples) if tick.chosen is None else tick.chosen,
    )
    evidence.header.stamp = to_stamp(tick.stamp)
    return evidence


class Overlay:
    """Publishes ``<cam>/foresight``: the tool's ways along all K samples (id 0) and along the chunk (id 1), as lines in pixels.

    Only for cameras that somebody listens to.

    Attributes:
        refused: why a camera has none, by what diagnostics call it.
    """

    def __init__(self, node: VigilNode, rig: RigConfig) -> None:
        self._views, self.refused = {}, {}
        for camera in rig.cameras:
            try:
                view = View(rig, load_calibration(rig.calibration_path(camera), camera))
            except VigilError as error:
                self.refused[f"no_foresight_{camera.name}"] = str(error)
                continue
            topic = node.advertise(ImageMarker, f"{camera.name}/foresight", SENSOR)
            self._views[camera.name] = (view, topic)

    def publish(self, spec: BundleSpec, observation: Observation, tick: Tick, samples: np.ndarray) -> None:
        """``samples`` [K, H, D]."""
        for name, (view, topic) in self._views.items():
            if not topic.get_subscription_count():
                continue
            if lacking := [column for column in view.moves_with if column not in spec.state_names]:
                self.refused[f"no_foresight_{name}"] = f"the policy does not read {lacking}, which move it"
                continue
            now = observation.state if observation.state.ndim == 1 else observation.state[-1]
            joints = now[[spec.state_names.index(column) for column in view.moves_with]]
            for number, (chunks, colour) in enumerate(((samples, ALL), (tick.chunk[None], CHOSEN))):
                paths = np.concatenate(list(view.foresee(chunks, spec.action_names, joints).values()))
                topic.publish(_lines(paths, name, tick.stamp, number, colour))


def _lines(paths: np.ndarray, camera: str, stamp: int, number: int, colour: ColorRGBA) -> ImageMarker:
    """Paths [P, H, 2] px as one list of lines; what has no pixel is left out."""
    ends = np.stack([paths[:, :-1], paths[:, 1:]], axis=2).reshape(-1, 2, 2)
    ends = ends[np.isfinite(ends).all(axis=(1, 2))].reshape(-1, 2)
    marker = ImageMarker(
        ns="foresight", id=number, type=ImageMarker.LINE_LIST, action=ImageMarker.ADD, scale=2.0
    )
    marker.header.stamp, marker.header.frame_id = to_stamp(stamp), optical_frame(camera)
    marker.outline_color = colour
    marker.points = [Point(x=x, y=y) for x, y in ends.tolist()]
    return marker
