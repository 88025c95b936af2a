"""The shipped network in torch beside its graph: the same work. Needs torch (`make test-train`)."""

import pytest

pytest.importorskip("torch", reason="training needs the extra `train`: run `make test-train`")

from support.tiny_bundle import write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy.bundle import load_bundle
from vigil.rig import resolve
from vigil.train.eager import eager_calls


def test_the_shipped_bundle_has_a_counterpart_of_the_same_shapes():
    bundle = load_bundle(resolve("models/franka_pick_place"), "ddim")
    calls = eager_calls(bundle, 1, (1, 4))
    assert list(calls) == ["encoder", "sampler, K = 1", "sampler, K = 4"]
    assert tuple(calls["encoder"]().shape) == (1, bundle.spec.embedding_dim)
    assert tuple(calls["sampler, K = 4"]().shape) == (4, bundle.spec.horizon, len(bundle.spec.action))


def test_a_bundle_of_another_trainer_is_not_compared(tmp_path):
    with pytest.raises(VigilError):
        eager_calls(load_bundle(write_tiny_bundle(tmp_path / "tiny")), 1, (1,))
