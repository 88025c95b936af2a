"""Reading pickles as data: they arrive as they were, and nothing in a file is ever executed."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
from collections import OrderedDict

import numpy as np
import pytest

from vigil.errors import VigilError
from vigil.monitor import fiper_pickle
from vigil.monitor.fiper_pickle import as_array, read_pickle


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


# ---------------------------------------------------------------- nothing is executed


class Calls:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class Evil(np.ndarray):
    """An array whose pickle calls something else."""

    def __reduce__(self):
        return os.system, (self.command,)


def hostile(marker):
    """Files that would write ``marker`` if anything in them were executed, by name."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    evil = np.zeros(3).view(Evil)
    evil.command = command
    text = command.encode()
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x16ndarray.__class__.mro\x93)R."
    return {
        "os.system": pickle.dumps(Calls(os.system, command)),
        "inside a roll-out": pickle.dumps([{"obs_embedding": Calls(os.system, command)}]),
        "old protocol": pickle.dumps(Calls(os.system, command), protocol=0),
        "eval": pickle.dumps(Calls(builtins.eval, code)),
        "exec": pickle.dumps(Calls(builtins.exec, code), protocol=2),
        "subprocess": pickle.dumps(Calls(subprocess.Popen, ["touch", str(marker)])),
        "nested reduce": pickle.dumps(Calls(list, [Calls(os.system, command)])),
        "getattr chain": b"\x80\x04cbuiltins\ngetattr\n(cbuiltins\n__import__\n(\x8c\x02ostR\x8c\x06systemtR(\x8c"
        + bytes([len(text)])
        + text
        + b"tR.",
        "array": pickle.dumps({"obs_embedding": evil}),
        "dotted": dotted,
        "inst": b"(S'" + text + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + text + b"'\no.",
        "newobj": b"\x80\x02csubprocess\nPopen\n(X" + struct.pack("<I", len(text)) + text + b"t\x81.",
        "numpy's own": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(X"
        + struct.pack("<I", len(code))
        + code.encode()
        + b"}tR.",
        "numpy.load": b"\x80\x02cnumpy\nload\n(X\x01\x00\x00\x00xtR.",
        "memory map": b"\x80\x02cnumpy\nmemmap\n(X\x01\x00\x00\x00xtR.",
        "object in allowed array": pickle.dumps(np.array([Calls(os.system, command)], dtype=object)),
        "codec": pickle.dumps(Calls(__import__("_codecs").decode, b"x", "zip")),
        "import of an encoding": pickle.dumps(Calls(__import__("importlib").import_module, "this")),
        "persistent id": b"\x80\x02X\x01\x00\x00\x00xQ.",
        "persistent id as text": b"Pxyz\n.",
        "extension": b"\x80\x02\x82\x01.",
        "bytes of any size": b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        "call of a call": b"\x80\x02cnumpy\ndtype\n)R)R.",
        "call of text": b"\x80\x02X\x02\x00\x00\x00os)R.",
        "state of a container": b"\x80\x02}}b.",
        "state of a name": b"\x80\x02cnumpy\nndarray\n}b.",
        "out-of-band buffer": b"\x80\x05\x97.",
    }


@pytest.mark.parametrize("name", hostile("marker"))
def test_a_hostile_file_is_refused_and_nothing_is_executed(name, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "episode_s_1.pkl"
    path.write_bytes(hostile(marker)[name])
    with pytest.raises(VigilError, match="Nothing was executed") as error:
        read_pickle(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["os.system", "old protocol", "eval", "getattr chain", "array", "inst", "numpy's own"]
)
def test_the_hostile_files_would_work_elsewhere(name, tmp_path):
    """Otherwise the test above shows nothing."""
    marker = tmp_path / "marker"
    pickle.loads(hostile(marker)[name])
    assert marker.exists()


def test_the_refused_global_is_named(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(
        VigilError, match=r"a\.pkl is refused: it calls for (posix|nt)\.system; only numpy arrays"
    ):
        read_pickle(path)


def test_tensors_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02]ctorch._utils\n_rebuild_tensor_v2\n(tRa.")
    with pytest.raises(VigilError, match=r"torch\._utils\._rebuild_tensor_v2.*\.cpu\(\)\.numpy\(\)"):
        read_pickle(path)


def test_an_array_type_that_lies_about_its_content_is_no_array(tmp_path):
    """numpy would take these bytes for object pointers: the state says that the type holds none."""
    state = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R" + state
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85"
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x03" + array + dtype + b"\x89C\x08AAAAAAAAtb.")
    with pytest.raises(ValueError, match="must hold numbers"):
        as_array(read_pickle(path))


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [("f4", (3,), b"12345678"), ("f4", (10**12,), b"1234"), ("f4", (-1,), b"1234"), ("U0", (5,), b""),
     ("V8", (1,), b"12345678"), ("f3", (1,), b"123"), ("M8", (1,), b"12345678"), ("f4", "x", b"1234")],
)  # fmt: skip
def test_arrays_that_do_not_fit_their_bytes(dtype, shape, data):
    call = fiper_pickle.Call("buffer", (data, fiper_pickle.Call("dtype", (dtype,)), shape, "C"))
    with pytest.raises((ValueError, TypeError)):
        as_array(call)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(24.0).reshape(4, 6)[::2, ::3],
        np.array([True, False]),
        np.array([1.5], ">f8"),
        np.array(["ab", "c"]),
        np.float32(0.25),
        np.int64(-3),
        np.bool_(True),
        np.str_("ood"),
        np.empty((0, 3)),
    ],
    ids=lambda array: f"{np.asarray(array).dtype}{list(np.shape(array))}",
)
def test_arrays_arrive_as_they_were(array, protocol, tmp_path):
    path = write(tmp_path / "a.pkl", {"value": array, "again": [array]}, protocol)
    content = read_pickle(path)
    for value in (content["value"], content["again"][0]):
        result = as_array(value)
        assert result.shape == np.shape(array)
        np.testing.assert_array_equal(result, array)


def test_arrays_of_older_numpy_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    data = pickle.dumps(np.arange(3.0), protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    path.write_bytes(data)
    np.testing.assert_array_equal(as_array(read_pickle(path)), np.arange(3.0))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_arrive_as_they_were(protocol, tmp_path):
    shared = [1, 2.5]
    content = {"a": [None, True, False, "é", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": shared, 3: shared,
               "c": {"d": -5, "e": 2**70, "f": {}}, "g": (1,) * 300, "h": 1e300}  # fmt: skip
    result = read_pickle(write(tmp_path / "a.pkl", content, protocol))
    assert result == content
    assert result["b"] is result[3]


def test_ordered_dictionaries_sets_and_bytes(tmp_path):
    content = {"o": OrderedDict(a=1, b=[2]), "s": {1}, "f": frozenset({2}), "b": b"xy", "y": bytearray(b"z")}
    result = read_pickle(write(tmp_path / "a.pkl", content, 5))
    assert result == {"o": {"a": 1, "b": [2]}, "s": [1], "f": (2,), "b": b"xy", "y": b"z"}


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(keep, tmp_path):
    path = write(tmp_path / "a_s_1.pkl", [{"action_pred": np.zeros((9, 9))}] * 9)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(VigilError, match=r"a_s_1\.pkl: damaged, cut short or no pickle.*copy it again"):
        read_pickle(path)


@pytest.mark.parametrize(
    "data",
    [b"hello", b"\x80\x04.", b"\x80\x04K\x01.rest", b"\x80\x04h\x05.", b"\x80\x02(a.", b"\x80\x02t.",
     b"\x80\x02](K\x01su.", b"\x80\x02}((K\x01tK\x01s.", b"\x80\x05\x8e" + b"\xff" * 8, b"\x80\x02K\x01K\x02a."],
)  # fmt: skip
def test_rubbish_is_named(data, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(VigilError, match="cannot read"):
        read_pickle(path)


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02K\x01r\xff\xff\xff\xff.")  # a memo index of 4 billion reserves nothing
    assert read_pickle(path) == 1
    # Tuples of tuples as a key: hashing them would take 2^60 steps.
    path.write_bytes(b"\x80\x02}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s.")
    with pytest.raises(VigilError):
        read_pickle(path)
    path.write_bytes(b"\x80\x02}" + b"K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.")
    with pytest.raises(VigilError, match="a dictionary has a tuple for a key"):
        read_pickle(path)
    monkeypatch.setattr(fiper_pickle, "MOST_OPCODES", 100)
    path.write_bytes(b"\x80\x04" + b"\x8f" * 200 + b".")
    with pytest.raises(VigilError, match="more than 100 opcodes"):
        read_pickle(path)
    with pytest.raises(VigilError, match="has 203 bytes, at most 50"):
        read_pickle(path, most_bytes=50)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VigilError, match=r"cannot read .*gone\.pkl"):
        read_pickle(tmp_path / "gone.pkl")
