"""Files of weights: every layout of the field's tools, and what is refused."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sam4ir.utils.weights import Weights, WeightsFileError, read_file, read_weights

STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([1.0, -2.0])}
OTHER = {key: value + 1 for key, value in STATE.items()}

LAYOUTS = {
    "params": ({"params": STATE}, "params"),
    "params_ema": ({"params_ema": STATE}, "params_ema"),
    "both, the average is taken": ({"params": OTHER, "params_ema": STATE}, "params_ema"),
    "state_dict": (
        {"epoch": 3, "state_dict": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        "state_dict",
    ),
    "model": ({"model": STATE, "iteration": 7}, "model"),
    "bare": (OrderedDict(STATE), None),
    "bare with a count beside": ({**STATE, "epoch": 3}, None),
    "another name": ({"generator": STATE, "epoch": 3, "lr": [0.1]}, "generator"),
}
PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


def saved(content: object, path: Path, **how: object) -> Path:
    torch.save(content, path, **how)  # type: ignore[arg-type]
    return path


def assert_state(weights: Weights, entry: str | None = None) -> None:
    assert set(weights.state) == set(STATE)
    assert all(torch.equal(weights.state[key], STATE[key]) for key in STATE)
    assert weights.entry == entry


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_every_layout_is_read_without_being_told(layout: str, suffix: str, tmp_path: Path) -> None:
    content, entry = LAYOUTS[layout]
    assert_state(read_weights(saved(content, tmp_path / f"w{suffix}")), entry)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_leave_no_trace_in_keys(prefix: str, tmp_path: Path) -> None:
    named = {prefix + key: value for key, value in STATE.items()}
    assert_state(read_weights(saved({"params": named}, tmp_path / "w.pth")), "params")


def test_the_format_before_torch_1_6_is_read(tmp_path: Path) -> None:
    path = saved({"params": STATE}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_state(read_weights(path), "params")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.safetensors.part"])
def test_safetensors_are_told_by_their_content(name: str, tmp_path: Path) -> None:
    save_file({f"module.{key}": value for key, value in STATE.items()}, str(tmp_path / name))
    assert_state(read_weights(tmp_path / name))


def test_a_header_whose_length_looks_like_text_is_no_page(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(ord("<"))
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert torch.equal(read_weights(path).state["a"], torch.zeros(2))


def test_an_entry_can_be_asked_for(tmp_path: Path) -> None:
    path = saved({"params": STATE, "params_ema": OTHER}, tmp_path / "w.pth")
    assert_state(read_weights(path, "params"), "params")
    with pytest.raises(WeightsFileError, match=r"w.pth: has no entry 'model' \(it has params, params_ema\)"):
        read_weights(path, "model")


def test_weights_say_where_they_stood(tmp_path: Path) -> None:
    path = saved({"params": OTHER, "params_ema": STATE}, tmp_path / "w.pth")
    assert str(read_weights(path)) == f"params_ema of {path}"
    assert str(read_weights(saved(STATE, path))) == str(path)


@pytest.mark.parametrize(
    "value",
    [np.float64(31.5), np.float32(31.5), np.int64(-4), np.uint8(200), np.bool_(True)],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy 1", "numpy 2"])
def test_numpy_numbers_beside_weights_come_as_plain_values(value: np.generic, module: bytes, tmp_path: Path) -> None:
    class Spelt:  # pickle writes the module that this numpy has
        def __reduce__(self) -> tuple[object, ...]:
            return value.__reduce__()  # type: ignore[return-value]

    path = saved({"params": STATE, "best": Spelt()}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    own = value.__reduce__()[0].__module__.encode()  # type: ignore[index]
    path.write_bytes(path.read_bytes().replace(b"c" + own + b"\nscalar", b"c" + module + b"\nscalar"))
    assert_state(read_weights(path), "params")
    read = read_file(path)["best"]
    assert type(read) in (bool, int, float)
    assert read == value


def test_numbers_keep_their_byte_order(tmp_path: Path) -> None:
    class Big:
        def __reduce__(self) -> tuple[object, ...]:
            scalar = np.int32(0).__reduce__()[0]
            return scalar, (np.dtype(">i4"), (1000).to_bytes(4, "big"))  # type: ignore[return-value]

    assert read_file(saved({"n": Big(), "params": STATE}, tmp_path / "w.pth"))["n"] == 1000


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_refused_by_name_and_nothing_runs(zipped: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = saved({"params": STATE, "x": Evil(trap)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsFileError, match=r"w.pth: holds (posix|nt).mkdir, .*only tensors and plain"):
        read_weights(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": STATE, "opt": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"params": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
        ({"params": STATE, "best": np.zeros(3)}, "numpy.*_reconstruct"),
        ({"params": STATE, "best": np.array(["text"])[0]}, "numpy type 'U4'"),
    ],
    ids=["namespace", "module", "array", "text"],
)
def test_what_is_no_plain_value_is_named(content: object, named: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=f"w.pth.*{named}") as caught:
        read_weights(saved(content, tmp_path / "w.pth"))
    assert "This file can still be loaded" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html>sign in</html>",
        b"hello",
        pickle.dumps([1, 2], 2),
        b"PK\x03\x04 and no more",
        b"\x80\x02.",
    ],
    ids=["empty", "page", "text", "list", "zip", "pickle"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_hold_no_weights_are_named(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightsFileError, match="broken"):
        read_weights(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_cut_file_is_named(kind: str, share: float, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    if kind == "safetensors":
        save_file({"a": torch.rand(100)}, str(whole))
    else:
        torch.save({"params": {"a": torch.rand(100)}}, whole, _use_new_zipfile_serialization=kind == "zip")
    path = tmp_path / "cut.pth"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    with pytest.raises(WeightsFileError, match=r"cut\.pth"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no weights"),
        ({"params": {"a": 1}}, "holds no weights under 'params'"),
        ({"g": STATE, "d": OTHER}, "holds no weights"),
        ([STATE], "holds no named weights but a list"),
    ],
    ids=["none", "no tensors", "two networks", "list"],
)
def test_a_file_without_one_state_dict_is_an_error(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=f"w.pth: {message}"):
        read_weights(saved(content, tmp_path / "w.pth"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=r"nowhere.pth: no such weights file"):
        read_weights(tmp_path / "nowhere.pth")
