"""Exported files: what they compute, what they say of their network, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from archs.test_networks import HI_TINY, NAF_TINY, RE_TINY, build
from export.test_graph import DIFF_TINY, RRDB_TINY
from safetensors.torch import load_file, save_file
from torch import nn

from sam4ir.cli.export import main
from sam4ir.engine.weights import network_block
from sam4ir.errors import UserError
from sam4ir.export import formats, write
from sam4ir.export.metadata import facts_of, read_metadata
from sam4ir.export.runtime import OnnxNetwork, OpenVinoNetwork
from sam4ir.export.source import export_source
from sam4ir.models.restoration import restore

SMALL = {"width": 2, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
SIZES = [(1, 3, 5, 7), (1, 3, 1, 1), (3, 3, 8, 6)]


def weights_file(folder: Path, network: nn.Module, name: str = "net_g_8.pth") -> Path:
    """Write weights as a run does."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"params": network.state_dict()}, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Make the folder of a run with weights, options and the log of its validations."""
    folder = tmp_path_factory.mktemp("run")
    weights_file(folder / "models", build("NAFNet", SMALL))
    options = {"name": "run", "model_type": "ImageRestorationModel", "network_g": {"type": "NAFNet", **SMALL}}
    (folder / "options.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    lines = [
        {"iter": 4, "metrics/set/psnr": 20},
        {"iter": 8, "metrics/set/psnr": 31, "metrics/set/psnr_refiner": 32, "metrics/set/odd": "inf"},
        {"iter": 12, "metrics/set/psnr": 40},
    ]
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def onnx_file(run) -> Path:
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} writes or runs ONNX files")
    assert main([str(run / "models" / "net_g_8.pth"), "--to", "onnx"]) == 0
    return run / "models" / "net_g_8.onnx"


def test_an_onnx_file_is_called_as_the_network(onnx_file):
    network, exported = build("NAFNet", SMALL), OnnxNetwork(onnx_file, threads=1).eval()
    for shape in SIZES:
        image = torch.rand(shape)
        assert torch.allclose(restore(exported, image), restore(network, image), atol=1e-5)


def test_an_onnx_file_runs_in_openvino(onnx_file):
    pytest.importorskip("openvino", reason="openvino runs ONNX files")
    network, exported = build("NAFNet", SMALL), OpenVinoNetwork(onnx_file, threads=1)
    for shape in SIZES:
        image = torch.rand(shape)
        assert torch.allclose(restore(exported, image), restore(network, image), atol=1e-5)


def test_an_onnx_file_describes_its_network(onnx_file):
    onnx = pytest.importorskip("onnx")
    description = read_metadata(onnx_file)
    assert description["network"] == {"type": "NAFNet", **SMALL}
    assert (description["graph"], description["scale"], description["inputs"]) == ("restoring", 1, ["image"])
    assert description["validation"] == {"iteration": 8, "scores": {"set/restored/psnr": 31, "set/refined/psnr": 32}}
    assert len(description["options_sha256"]) == 64
    text = onnx.load(onnx_file).doc_string
    assert text.startswith("Images (b, c, h, w) float32")
    assert "\n\n" not in text  # the arguments of our class are of no use to a reader of the file


def test_wrong_inputs_of_an_onnx_file_are_named(onnx_file):
    with pytest.raises(UserError, match="takes 1 inputs"):
        OnnxNetwork(onnx_file)(torch.rand(1, 3, 4, 4), torch.rand(1))


def test_safetensors_alone_name_their_network(run, tmp_path):
    file = tmp_path / "alone" / "x.safetensors"
    assert main([str(run / "models" / "net_g_8.pth"), "--to", "safetensors", "--output", str(file)]) == 0
    assert network_block(file) == {"type": "NAFNet", **SMALL}
    state = build("NAFNet", SMALL).state_dict()
    read = load_file(file)
    assert read.keys() == state.keys()
    for name in state:
        assert torch.equal(read[name], state[name])
    assert export_source(str(file)).network_g == {"type": "NAFNet", **SMALL}


def test_safetensors_in_half_precision_hold_half_the_bytes(run, tmp_path):
    file = tmp_path / "x.safetensors"
    assert (
        main([str(run / "models/net_g_8.pth"), "--to", "safetensors", "--precision", "fp16", "--output", str(file)])
        == 0
    )
    for tensor in load_file(file).values():
        assert tensor.dtype is torch.float16


NO_DESCRIPTIONS = [
    "[]",
    "{",
    "[" * 200_000,
    json.dumps({"long": "x" * (1 << 20)}),
    '{"network": 3}',
    '{"network": {"type": 5}}',
    '{"network": {"type": ["NAFNet"]}}',
    '{"scale": "x"}',
    '{"scale": null}',
    '{"scale": 1e999}',
    '{"channels": -1}',
]


@pytest.mark.parametrize("text", NO_DESCRIPTIONS, ids=range(len(NO_DESCRIPTIONS)))
def test_a_description_of_hostile_hands_is_refused(onnx_file, tmp_path, text):
    onnx = pytest.importorskip("onnx", reason="onnx changes ONNX files")
    model = onnx.load(onnx_file)
    for entry in model.metadata_props:
        entry.value = text
    onnx.save(model, tmp_path / "x.onnx")
    for read in (read_metadata, OnnxNetwork):
        with pytest.raises(UserError, match=r"x\.onnx: its entry sam4ir is no description of a network"):
            read(tmp_path / "x.onnx")


@pytest.mark.parametrize("text", [*NO_DESCRIPTIONS, '{"network": {"type": "Nothing"}}'], ids=range(12))
def test_a_description_that_is_none_is_passed_over(tmp_path, text):
    file = tmp_path / "x.safetensors"
    save_file(build("NAFNet", SMALL).state_dict(), file, {"sam4ir": text})
    assert network_block(file)["type"] == "NAFNet"


def test_an_export_that_differs_leaves_no_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "recorded", lambda graph, inputs: None)
    monkeypatch.setattr(formats, "torch_export_bytes", lambda program, description: b"file")
    monkeypatch.setattr(formats, "torch_export_run", lambda data: lambda image: image + 0.5)
    source = export_source(str(run / "models" / "net_g_8.pth"))
    output = tmp_path / "x.pt2"
    with pytest.raises(UserError, match=r"more than the tolerance of 0\.0001"):
        write.export(source, output, write.ExportSettings("torch-export"))
    assert not output.exists()
    write.export(source, output, write.ExportSettings("torch-export", check=False))
    assert output.read_bytes() == b"file"


def test_an_old_opset_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="--opset 11"):
        main([str(run / "models/net_g_8.pth"), "--to", "onnx", "--opset", "11", "--output", str(tmp_path / "x.onnx")])


def test_the_weights_are_not_replaced(run, tmp_path):
    file = tmp_path / "x.safetensors"
    assert main([str(run / "models" / "net_g_8.pth"), "--to", "safetensors", "--output", str(file)]) == 0
    with pytest.raises(UserError, match="is the weights file itself"):
        main([str(file), "--to", "safetensors"])


def test_a_run_is_exported_and_a_folder_is_no_output(run, tmp_path, monkeypatch):
    output = tmp_path / "net.safetensors"
    assert main([str(run), "--to", "safetensors", "--output", str(output)]) == 0
    assert output.is_file()
    monkeypatch.setattr("sam4ir.export.source.export_source", None)  # refused before the network is loaded
    with pytest.raises(UserError, match=r"is a folder; name the file, such as .*net_g_8\.safetensors"):
        main([str(run), "--to", "safetensors", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "is a folder; name the file, such as"), ("x.pth", r"x\.pth must end with \.onnx, by which")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(run, tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(formats, "recorded", None)
    with pytest.raises(UserError, match=message):
        main([str(run / "models" / "net_g_8.pth"), "--to", "onnx", "--output", str(tmp_path / name)])


@pytest.mark.parametrize("text", ["nan", "inf", "-1"])
def test_a_tolerance_is_a_number(run, capsys, text):
    with pytest.raises(SystemExit):
        main([str(run / "models" / "net_g_8.pth"), "--to", "onnx", f"--tolerance={text}"])
    assert f"{text} is no difference" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.onnx", "x.pt2", "x.safetensors", "x.txt"])
def test_a_file_of_another_kind_is_named(tmp_path, name):
    if name == "x.onnx":
        pytest.importorskip("onnx", reason="onnx reads ONNX files")
    (tmp_path / name).write_bytes(b"<html>no model</html>")
    with pytest.raises(UserError, match=name):
        read_metadata(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        read_metadata(tmp_path / "none" / name)


def test_scores_are_those_of_the_weights_own_iteration(run, tmp_path):
    early = weights_file(run / "models", build("NAFNet", SMALL), "net_g_5.pth")
    assert facts_of(early, str(early), None)["validation"] == {"iteration": 4, "scores": {"set/restored/psnr": 20}}
    elsewhere = weights_file(tmp_path / "models", build("NAFNet", SMALL))
    assert "validation" not in facts_of(elsewhere, str(elsewhere), run / "options.yml")


EVERY = [
    ("NAFNet", NAF_TINY),
    ("NAFNetLocal", {"train_size": [1, 3, 32, 32], **NAF_TINY}),
    ("Baseline", {"dw_expand": 2, **NAF_TINY}),
    ("HINet", HI_TINY),
    ("Restormer", RE_TINY),
    ("RRDBNet", RRDB_TINY),
    ("RRDBNet", {"scale": 2, **RRDB_TINY}),
    ("DiffSR", DIFF_TINY),
]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("form", ["onnx", "onnx --precision fp16", "torch-export"])
@pytest.mark.parametrize(("role", "arguments"), EVERY)
def test_every_network_is_exported_in_every_form(tmp_path, role, arguments, form):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} writes or runs ONNX files")
    weights = weights_file(tmp_path / "models", build(role, arguments))
    options: dict = {"name": "run", "network_g": {"type": role, **arguments}}
    if role == "DiffSR":
        options |= {"model_type": "SAMDiffSRModel", "scale": 4}
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    assert main([str(weights), "--to", *form.split()]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_network_of_real_width_is_exported(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript writes ONNX files")
    arguments = {"width": 32, "middle_blk_num": 12, "enc_blk_nums": [2, 2, 4, 8], "dec_blk_nums": [2, 2, 2, 2]}
    weights = weights_file(tmp_path, build("NAFNet", arguments))
    assert main([str(weights), "--to", "onnx"]) == 0
