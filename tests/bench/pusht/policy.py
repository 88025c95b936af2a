"""The trained policy, run by onnxruntime on one thread."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

HORIZON = 16  # targets of the agent in one sample
EXECUTED = 8  # of them, before the policy samples again
SAMPLES = 256  # per tick
EMBEDDING_SIZE = 64
SAMPLER_STEPS = 8  # of DDIM

FOLDER = Path(__file__).parent / "policy"
GRAPH_FILE, META_FILE = "policy.onnx", "policy.json"


class Policy:
    def __init__(self, folder: Path = FOLDER):
        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = InferenceSession(folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"])
        digest = hashlib.sha256()
        for name in (GRAPH_FILE, META_FILE):
            digest.update((folder / name).read_bytes())
        self.hash = digest.hexdigest()

    def sample(self, states: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the last two states [2, 5] and standard normal noise [K, HORIZON, 2]: the embedding [E] and samples
        [K, HORIZON, 2], target positions of the agent in px."""
        inputs = {"states": states[None].astype(np.float32), "noise": noise.astype(np.float32)}
        embedding, samples = self._session.run(None, inputs)
        return embedding[0], samples
