"""Whole reports of small runs and results: what they hold, what they name as missing, what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NETWORK, World

from sam4ir.cli.main import main
from sam4ir.engine.report.fingerprint import data_fingerprints
from sam4ir.engine.report.inputs import read_inputs
from sam4ir.engine.report.make import Report, ReportChoice, make_report
from sam4ir.engine.report.run_facts import ReportError
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS
from sam4ir.utils.image import read_image, write_image


class Page(HTMLParser):
    """The elements of a page by name, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: dict[str, list[Mapping[str, str | None]]] = {}
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def weights_file(world: World, name: str, bias: float) -> Path:
    """Weights of the small network that adds a number to every value of its input."""
    block = {key: value for key, value in NETWORK.items() if key != "type"}
    network = ARCHS.get("NAFNet")(**block)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["ending.bias"] += bias
    path = world.root / f"{name}.pth"
    torch.save({"params": state}, path)
    return path


def scored_result(world: World, name: str, bias: float, **changes: object) -> Path:
    """Score a network that adds a number to its input; return the folder of its results."""
    values = world.values(sam=True, name=name, model_type="ImageRestorationModel")
    data = values["datasets"]["val"]
    val = {"metrics": {"psnr": {"type": "psnr"}, "ssim": {"type": "ssim"}}, "save_img": True}
    path = {"root": str(world.root), "pretrain_network_g": str(weights_file(world, name, bias))}
    whole = {**values, "datasets": {"test": data}, "val": val, "path": path, **changes}
    for key in ("train", "logger"):
        del whole[key]
    assert main(["test", "-opt", str(world.write(whole, f"{name}.yml"))]) == 0
    return world.root / "results" / name


def reported(*paths: Path, **choice: object) -> Report:
    return make_report(read_inputs(paths), ReportChoice(**choice))  # type: ignore[arg-type]


@pytest.fixture
def results(world: World) -> tuple[Path, Path]:
    return scored_result(world, "plain", 0.0), scored_result(world, "brighter", 0.1)


def test_two_results_are_compared_and_their_images_shown(results: tuple[Path, Path]) -> None:
    report = reported(*results)
    page = Page(report.html)
    assert report.images == 5
    assert report.notes == ()
    assert len(page.elements["img"]) == 5 * 7
    labels = ["LQ (input)", "A plain", "B brighter", "GT", "error of A plain × 5", "error of B brighter × 5"]
    alts = [str(image["alt"]) for image in page.elements["img"][:7]]
    assert alts == [f"{label} of small_val/photo_{alts[0][-1]}" for label in [*labels, "region boundaries"]]
    assert "Compared with A plain, image by image" in page.text
    assert len([svg for svg in page.elements["svg"] if svg["class"] == "scatter"]) == 2


def test_results_of_two_sets_show_the_images_of_both(results: tuple[Path, Path]) -> None:
    summary = json.loads((results[1] / "summary.json").read_text())
    for content in ("images", "mean"):
        summary[content]["other"] = summary[content].pop("small_val")
    for values in summary["images"]["other"].values():
        values["restored"]["lpips"] = 0.125
    summary["lower_is_better"].append("lpips")
    (results[1] / "summary.json").write_text(json.dumps(summary))
    report = reported(*results)
    page = Page(report.html)
    assert report.images == 10
    assert "not compared: results have no image in common" in page.text
    assert "lpips A lpips B" in page.text  # a metric that the first result lacks
    assert not any("B brighter of small_val" in str(image["alt"]) for image in page.elements["img"])
    assert not any("this restored image is missing" in note for note in report.notes if note.startswith("A"))


def test_results_of_other_data_of_the_same_name_are_named(results: tuple[Path, Path], world: World) -> None:
    options = results[1] / "options.yml"
    text = options.read_text()
    assert str(world.root / "gt") in text
    shutil.copytree(world.root / "gt", world.root / "others")
    options.write_text(text.replace(str(world.root / "gt"), str(world.root / "others")))
    (note,) = reported(*results).notes
    assert note.startswith("data set 'small_val': B brighter was scored on other data (dataroot_gt); LQ, GT and error")


def test_images_that_another_program_restored_are_compared_and_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.root)
    gt = world.root / "gt"
    folders = []
    for name, shift in (("darker", 10), ("lighter", 20)):
        for path in gt.glob("*.png"):
            write_image(world.root / name / f"{path.stem}_out.png", read_image(path) // 2 + np.uint8(shift))
        assert main(["test", "--restored", str(world.root / name), "--gt", str(gt)]) == 0
        folders.append(Path("results") / name)
    report = reported(*folders)
    page = Page(report.html)
    assert report.notes == ()
    assert "Compared with A darker, image by image" in page.text
    alts = [str(image["alt"]).partition(" of gt/")[0] for image in page.elements["img"][:5]]
    assert alts == ["A darker", "B lighter", "GT", "error of A darker × 5", "error of B lighter × 5"]
    shutil.rmtree(world.root / "lighter")
    notes = reported(*folders).notes
    assert any(note.startswith("B lighter: no restored images (") for note in notes)


def test_a_viewer_begins_with_the_results_whatever_their_names_are(world: World) -> None:
    names = "error_samples", "refined"
    page = Page(reported(*(scored_result(world, name, 0.1 * number) for number, name in enumerate(names))).html)
    seen = [image for image in page.elements["img"][:7] if "hidden" not in image]
    assert [str(image["alt"]).partition(" of small_val")[0] for image in seen] == ["A error_samples", "B refined"]


def test_the_page_asks_for_nothing(results: tuple[Path, Path]) -> None:
    page = Page(reported(*results).html)
    for elements in page.elements.values():
        for attributes in elements:
            for name in ("src", "href"):
                address = attributes.get(name)
                assert address is None or address.startswith(("data:", "#"))
    assert not re.search(r"url\(|@import", reported(*results).html)
    (policy,) = [meta["content"] for meta in page.elements["meta"] if "http-equiv" in meta]
    assert str(policy).startswith("default-src 'none'; img-src data:; ")


def test_a_run_shows_its_curves_and_its_last_validation(world: World) -> None:
    values = world.values(sam=True)
    values["val"]["save_img"] = True
    assert main(["train", "-opt", str(world.write(values))]) == 0
    report = reported(world.root / "experiments" / "small")
    page = Page(report.html)
    charts = [json.loads(str(svg["data-curves"])) for svg in page.elements["svg"] if svg["class"] == "chart"]
    names = {curve["name"] for chart in charts for curve in chart}
    assert {"small", "small, refiner", "small, net_g", "small, net_r"} <= names
    assert "small, student; small, refiner" in names, "equal rates are one curve"
    assert "l_spd" in page.text
    alts = [str(image["alt"]) for image in page.elements["img"]]
    assert "A refined of small_val/photo_0" in alts
    assert "error of A refined × 5 of small_val/photo_0" in alts
    assert re.search(r"versions sam4ir [\d.]+, python [\d.]+, torch", page.text)
    assert re.search(r"net_g_latest.pth iteration 8, [\d,]+ bytes, SHA-256 [0-9a-f]{64}", page.text)
    assert re.search(
        r"fingerprint of data train 5 images, names [0-9a-f]{16}, pixels of 3 of them [0-9a-f]{16}, masks [0-9a-f]{16}",
        page.text,
    )


def test_fingerprints_follow_the_data(world: World) -> None:
    options = world.options(sam=True)
    before = data_fingerprints(options)
    assert before == data_fingerprints(options)
    write_image(world.root / "gt" / "photo_4.png", np.zeros((40, 52, 3), np.uint8))
    pixels = data_fingerprints(options)
    assert pixels["data train"] != before["data train"]
    assert pixels["data train"].partition(", pixels")[0] == before["data train"].partition(", pixels")[0]
    shutil.rmtree(world.root / "gt")
    assert data_fingerprints(options)["data val"].startswith("not known now (datasets.val: ")


def test_options_that_differ_are_listed_and_no_others(world: World) -> None:
    runs = []
    for name, rate in (("one", 2e-3), ("two", 1e-3)):
        values = world.values(name=name)
        values["train"]["optim_g"]["lr"] = rate
        assert main(["train", "-opt", str(world.write(values))]) == 0
        runs.append(world.root / "experiments" / name)
    text = Page(reported(*runs).html).text
    assert "option that differs one two train.optim_g.lr 0.002 0.001 options of one" in text


def test_what_is_missing_is_named(results: tuple[Path, Path], world: World) -> None:
    (results[1] / "visualization" / "small_val" / "photo_2_brighter.png").unlink()
    (results[0] / "visualization" / "small_val" / "photo_1_plain.png").write_bytes(b"no picture")
    (world.root / "gt" / "photo_3.png").unlink()
    report = reported(*results)
    assert report.images == 5
    assert "B brighter: this restored image is missing" in report.notes
    assert "LQ and GT: the data set 'small_val' has no image of this name now" in report.notes
    assert any("photo_1_plain.png" in note for note in report.notes)


def test_results_without_images_and_data_still_give_tables(results: tuple[Path, Path], world: World) -> None:
    for result in results:
        (result / "options.yml").unlink()
    (results[0] / "visualization").rename(world.root / "elsewhere")
    report = reported(*results)
    assert "A plain: restored images were not saved (val.save_img: true saves them)" in report.notes
    assert any("data set 'small_val': no LQ, GT and error maps (no option file names it)" in n for n in report.notes)
    assert "Compared with A plain" in Page(report.html).text


@pytest.mark.parametrize("content", [b"\xff\xfe\xfd", b"name: [", b""])
def test_an_option_file_that_cannot_be_read_is_a_note(results: tuple[Path, Path], content: bytes) -> None:
    (results[0] / "options.yml").write_bytes(content)
    report = reported(results[0])
    assert report.images == 5
    assert any(note.startswith("A plain: its options cannot be read (") for note in report.notes)


def test_weights_of_a_name_that_no_disk_holds_are_not_there(results: tuple[Path, Path]) -> None:
    summary = json.loads((results[0] / "summary.json").read_text())
    summary["weights"] = {"source": 5000 * "x"}
    (results[0] / "summary.json").write_text(json.dumps(summary))
    assert "not known: the file is not there" in Page(reported(results[0]).html).text


def test_several_samples_show_their_spread(world: World) -> None:
    result = scored_result(world, "plain", 0.0)
    folder = result / "visualization" / "small_val"
    for path in list(folder.iterdir()):
        picture = read_image(path)
        path.unlink()
        for number in range(6):
            write_image(path.with_stem(f"{path.stem}_s{number}"), picture + np.uint8(number % 2))
    summary = json.loads((result / "summary.json").read_text())
    spread = {"samples": 6, "image": 0.25, "mean": 0.5}
    summary["spread"] = {"small_val": {"restored": {"psnr": spread}}}
    (result / "summary.json").write_text(json.dumps(summary))
    page = Page(reported(result).html)
    alts = [str(image["alt"]).partition(" of small_val")[0] for image in page.elements["img"][:13]]
    assert alts[1:7] == [
        "A plain, sample 0",
        "A plain, sample 1",
        "A plain, sample 2",
        "A plain, sample 3",
        "A plain, spread of the samples × 5",
        "GT",
    ]
    assert "A plain small_val restored psnr 6 0.2500 0.5000" in page.text


def test_hostile_names_are_text(world: World) -> None:
    evil = "<script>alert(1)</script>\"'&"
    result = scored_result(world, "plain", 0.0)
    summary = json.loads((result / "summary.json").read_text())
    summary["protocols"]["psnr"] = evil
    summary["notes"] = [evil]
    images = summary["images"]["small_val"]
    images[f"../{evil}"] = images["photo_0"]
    summary["images"][f"../../{evil}"] = {"photo_0": images["photo_0"]}
    (result / "summary.json").write_text(json.dumps(summary))
    hostile = result.rename(result.with_name(evil.replace("/", "")))
    html = reported(hostile, title=evil).html
    assert "<script>alert" not in html
    assert html.count("<script") == 1
    assert evil in Page(html).text


@pytest.mark.parametrize(
    ("damage", "line", "words"),
    [
        ("log.jsonl", "{no record", "line 2 is no record of a run"),
        ("log.jsonl", '{"iter": Infinity}', "line 2 is no record of a run"),
        ("validation.csv", "{no record", "has no column"),
    ],
)
def test_a_damaged_run_is_refused_and_nothing_is_written(
    damage: str, line: str, words: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world.root / "experiments" / "small"
    assert main(["train", "-opt", str(world.write(world.values()))]) == 0
    text = (run / damage).read_text()
    lines = text.splitlines()
    (run / damage).write_text("\n".join([lines[0].replace("dataset", "set"), line, *lines[2:]]))
    output = world.root / "report.html"
    assert main(["report", str(run), "--output", str(output)]) == 2
    assert words in capsys.readouterr().err
    assert not output.exists()
    assert not list(world.root.glob(".*.part"))


def test_a_last_line_that_a_killed_run_did_not_end_is_left_out(world: World) -> None:
    run = world.root / "experiments" / "small"
    assert main(["train", "-opt", str(world.write(world.values()))]) == 0
    with (run / "log.jsonl").open("a") as log:
        log.write('{"iter": 9, "l_')
    (facts,) = read_inputs([run]).runs
    assert facts.series["l_pix"][-1][0] == 8


def test_inputs_that_are_neither_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_inputs([tmp_path / "nothing"])
    with pytest.raises(UserError, match=r"holds neither summary\.json nor"):
        read_inputs([world.root / "gt"])
    result = scored_result(world, "plain", 0.0)
    with pytest.raises(ReportError, match="is named twice"):
        read_inputs([result, result])


@pytest.mark.parametrize("name", ["report.txt", "folder.html"])
def test_an_output_that_is_no_page_is_refused_before_the_work(
    name: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.root / "folder.html").mkdir()
    assert main(["report", str(world.root / "nothing"), "--output", str(world.root / name)]) == 2
    assert f"--output {world.root / name}" in capsys.readouterr().err


def test_the_file_stays_below_its_bound(results: tuple[Path, Path]) -> None:
    report = reported(*results, largest=2_000_000 + 60_000)
    assert 0 < report.images < 5
    assert any("have no full views: the file would exceed 2.06 MB" in note for note in report.notes)
    assert any("have no views: the file would exceed 2.06 MB" in note for note in report.notes)
    assert reported(*results, images=0).images == 0


def test_images_that_were_not_chosen_have_reduced_views(results: tuple[Path, Path]) -> None:
    report = reported(*results, images=2)
    assert (report.images, report.reduced) == (2, 3)
    assert "3 further images" in report.html
    page = Page(report.html)
    assert not [note for note in report.notes if "--max-size" in note]
    for number in range(1, 6):
        assert f'id="image-{number}"' in report.html
    assert page.text.count("Left view") == 5
    none = reported(*results, images=0)
    assert (none.images, none.reduced) == (0, 0)
    assert "further images" not in none.html


def test_a_table_is_printed_and_no_page_written(
    results: tuple[Path, Path], world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.root)
    capsys.readouterr()
    assert main(["report", *map(str, results), "--table", "tex"]) == 0
    assert capsys.readouterr().out.count(r"\textbf{") == 2
    assert not (world.root / "report.html").exists()
    assert main(["report", *map(str, results), "--images", "1"]) == 0
    assert (world.root / "report.html").stat().st_size > 50_000
