"""Bundles: what is accepted, and one clear error for everything else."""

import onnx
import pytest
import yaml

from support.tiny_bundle import COLUMNS, write_tiny_bundle
from vigil.errors import VigilError
from vigil.policy import bundle as b
from vigil.policy import spec as s
from vigil.rig import load_rig


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture(scope="module")
def rig():
    return load_rig("franka_sim")


def edit(folder, **changes):
    path = folder / s.SPEC_FILE
    data = yaml.safe_load(path.read_text())
    data.update(changes)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def test_a_good_bundle_loads_and_fits_the_rig(folder, rig):
    bundle = b.load_bundle(folder)
    bundle.check_rig(rig)
    assert bundle.spec.action_names == COLUMNS and len(bundle.content_hash) == 64


def test_writing_and_reading_agree(folder):
    spec = b.load_bundle(folder).spec
    b.write_bundle_yaml(spec, folder)
    assert b.load_bundle(folder).spec == spec


def test_identity_follows_the_graphs_and_not_the_descriptions(tmp_path, folder):
    identity = b.load_bundle(folder).content_hash
    (folder / "monitor").mkdir()
    (folder / "monitor" / "thresholds.yaml").write_text("x")
    (folder / "README.md").write_text("card")
    edit(folder, training={"success_rate": 0.9})
    assert b.load_bundle(folder).content_hash == identity
    other = write_tiny_bundle(tmp_path / "other", gain=0.02)
    assert b.load_bundle(other).content_hash != identity
    edit(folder, executed=4)
    assert b.load_bundle(folder).content_hash != identity


def test_a_missing_folder_names_what_exists(folder):
    with pytest.raises(VigilError, match=r"nothing does not exist; .* has tiny: name one of them"):
        b.load_bundle(folder.parent / "nothing")


def test_a_folder_without_spec_is_no_bundle(tmp_path):
    with pytest.raises(VigilError, match=r"no policy bundle: it has no bundle\.yaml"):
        b.load_bundle(tmp_path)


@pytest.mark.parametrize("name", [s.ENCODER_FILE, s.LOOP_FILE])
def test_a_missing_graph_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(VigilError, match=f"lacks {name}"):
        b.load_bundle(folder)


@pytest.mark.parametrize("name", [s.ENCODER_FILE, s.LOOP_FILE])
@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_graph_is_refused(folder, name, damage):
    path = folder / name
    data = bytearray(path.read_bytes())
    if damage == "altered":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[:-20], "altered": data, "empty": b""}[damage])
    with pytest.raises(VigilError, match=f"{name} is corrupted or was replaced"):
        b.load_bundle(folder)


def replace_graph(folder, name, data):
    (folder / name).write_bytes(data)
    hashes = yaml.safe_load((folder / s.SPEC_FILE).read_text())["hashes"]
    edit(folder, hashes={**hashes, name: b.file_hash(folder / name)})


def test_what_onnx_runtime_cannot_load_is_one_error(folder):
    replace_graph(folder, s.LOOP_FILE, b"not a graph")
    with pytest.raises(VigilError, match="ONNX Runtime cannot load") as error:
        b.load_bundle(folder)
    assert "\n" not in str(error.value)


def test_an_unknown_operator_is_named(folder):
    model = onnx.load(folder / s.LOOP_FILE)
    model.graph.node[1].op_type = "Frobnicate"
    replace_graph(folder, s.LOOP_FILE, model.SerializeToString())
    with pytest.raises(VigilError, match="Frobnicate"):
        b.load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_size": 64}, r"image_wrist is .*96, 96.* calls for .*64, 64"),
        ({"embedding_dim": 11}, "embedding"),
        ({"horizon": 8}, "noise"),
        ({"cameras": ["wrist"]}, "inputs are"),
    ],
)
def test_graphs_of_other_shape_than_the_spec_are_refused(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(VigilError, match=reason):
        b.load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"horizon": -1}, r"bundle\.yaml:\d+: horizon"),
        ({"step_dt": float("nan")}, "step_dt"),
        ({"action_std": [1.0]}, "action_std has 1 values for 8"),
        ({"executed": 99}, r"executed \(99\) is more than the horizon"),
        ({"hashes": {}}, "every graph needs its sha256"),
        ({"cameras": ["wrist", "wrist"]}, "repeat"),
        ({"unknown": 1}, "unknown is not a setting"),
        ({"samplers": {"ddim": {"file": "../../etc/passwd", "steps": 1}}}, "samplers.ddim.file"),
        ({"parity": {"encoder": 0.0, "chunks": 0.5}}, r"differ from the trained network by 0\.5"),
    ],
)
def test_a_broken_spec_names_file_line_and_fix(folder, changes, reason):
    edit(folder, **changes)
    with pytest.raises(VigilError, match=reason):
        b.load_bundle(folder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"cameras": ("wrist", "front")},
            r"looks through cameras \['front'\], the rig has \['wrist', 'scene'\]",
        ),
        (
            {"names": tuple(f"panda_joint{i}" for i in range(8))},
            "it commands .*panda_joint0.*, the rig has .*fr3_joint1",
        ),
        ({"task": "fold the towel"}, "trained for the task 'fold the towel', the rig's is"),
    ],
)
def test_a_bundle_for_another_rig_is_refused(tmp_path, rig, options, reason):
    bundle = b.load_bundle(write_tiny_bundle(tmp_path / "other", **options))
    with pytest.raises(VigilError, match=reason):
        bundle.check_rig(rig)


def test_samplers_are_chosen_by_name(folder):
    spec = b.load_bundle(folder).spec
    assert spec.default_sampler == "ddim" and spec.sampler("ddim").steps == 10
    with pytest.raises(VigilError, match=r"no sampler 'magic'; it offers \['ddim'\]"):
        spec.sampler("magic")
