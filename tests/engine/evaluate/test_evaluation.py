"""Evaluation of sets: metrics of a whole set, several samples an image, super-resolution, missing parts."""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import cv2
import pytest
import torch
from conftest import World
from torch import Tensor, nn

from sam4ir.config.load import load_options
from sam4ir.data.sample import Sample
from sam4ir.engine.evaluate import metric, testbed
from sam4ir.engine.evaluate.metric import Metric, MetricBuildError, prepare_metrics
from sam4ir.engine.evaluate.report import Score, SetScore, means, printable, text_table
from sam4ir.engine.evaluate.result_folder import write_results
from sam4ir.engine.evaluate.results import read_result
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.evaluate.testbed import Scores
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer
from sam4ir.errors import UserError
from sam4ir.metrics.fid import FrechetDistance
from sam4ir.metrics.frechet import frechet_distance
from sam4ir.metrics.kinds import Traits, described
from sam4ir.metrics.psnr import lr_psnr, psnr
from sam4ir.registry import ARCHS, METRICS
from sam4ir.utils import dist
from sam4ir.utils.image import read_image
from sam4ir.utils.resize import imresize
from sam4ir.utils.rng import generator

CPU = torch.device("cpu")
NEAREST = """
from torch import Tensor, nn
from sam4ir.registry import ARCHS


@ARCHS.register()
class Nearest(nn.Module):
    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.shift = nn.Parameter(__import__("torch").zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return image.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2) + self.shift
"""


@pytest.fixture(autouse=True)
def own_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins register is forgotten after the test."""
    for table in (ARCHS, METRICS):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    yield
    for name in ("nearest_net", "small_fid"):
        sys.modules.pop(name, None)


class Colours(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image.mean(dim=(2, 3)), image.std(dim=(2, 3))], dim=1) / 255


class SmallFid(FrechetDistance):
    traits = Traits(lower_is_better=True, definition="mean and deviation of each channel")

    def __init__(self) -> None:
        super().__init__(Colours(), dimensions=6)


class Shrunk:
    """Photographs and their halves, as a data set of super-resolution."""

    def __init__(self, count: int = 5, gt: bool = True) -> None:
        self.count, self.gt = count, gt

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"image_{index}"

    def get(self, index: int, rng: object = None) -> Sample:
        gt = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(index)) * 0.2 + 0.1 * index
        lq = imresize(gt, 0.5).mul(255).round().div(255).clamp(0, 1)
        return Sample(self.key(index), lq, gt if self.gt else None)


class Noisy:
    """A way that draws noise of the image and the sample, as a diffusion network does."""

    def __init__(self) -> None:
        self.network = nn.Identity()

    def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        doubled = lq.repeat_interleave(2, -1).repeat_interleave(2, -2)
        noise = torch.from_numpy(generator(0, key, sample).normal(size=doubled.shape)).float()
        return doubled + 0.05 * noise


def of(name: str, function: object = None, uint8: bool = True) -> Metric:
    return Metric(name, name, function or METRICS.get(name), {}, uint8)


def measured(samples: int = 1, world: dist.World = dist.ALONE, count: int = 5, **metrics: Metric):
    metrics = metrics or {"psnr": of("psnr"), "small_fid": of("small_fid", SmallFid)}
    outputs = Outputs(Noisy(), CPU)
    return evaluate("Set5", Shrunk(count), outputs, metrics, seed=0, samples=samples, world=world)


def features(images: list[Tensor]) -> Tensor:
    metric = SmallFid()
    return torch.stack([metric.features((i.clamp(0, 1) * 255).round().byte(), 255.0) for i in images])


def test_a_metric_of_a_set_is_one_number_a_stage_beside_the_means_of_the_others() -> None:
    found = measured()
    data, restorer = Shrunk(), Noisy()
    samples = [data.get(i) for i in range(5)]
    gt = features([s.gt for s in samples])
    expected = {
        "bicubic": frechet_distance(features([imresize(s.lq, 2) for s in samples]), gt),
        "restored": frechet_distance(features([restorer(s.lq[None], s.key)[0] for s in samples]), gt),
    }
    assert {s.output: s.values["small_fid"] for s in found.sets} == pytest.approx(expected, abs=1e-9)
    assert [(s.dataset, s.images) for s in found.sets] == [("Set5", 5), ("Set5", 5)]
    assert all(list(s.values) == ["psnr"] for s in found.scores)
    table = means(found.scores, found.sets)
    assert list(table["Set5", "restored"]) == ["psnr", "small_fid"]
    assert found.notes[0].startswith("small_fid of Set5: 5 images for 6 features")
    assert not measured(count=7).notes


def test_the_small_image_is_scored_up_scaled_and_lr_psnr_sees_it() -> None:
    found = measured(psnr=of("psnr"), lr_psnr=of("lr_psnr"))
    sample = Shrunk().get(2)
    up = (imresize(sample.lq, 2).clamp(0, 1) * 255).round().byte()
    gt, lq = ((x * 255).round().byte() for x in (sample.gt, sample.lq))
    (row,) = [s.values for s in found.scores if (s.image, s.output) == ("image_2", "bicubic")]
    assert row == {"psnr": pytest.approx(psnr(up, gt), abs=1e-9), "lr_psnr": pytest.approx(lr_psnr(up, gt, lq))}
    assert [s.output for s in found.scores[:2]] == ["bicubic", "restored"]


def test_without_ground_truth_nothing_is_scored() -> None:
    metrics = {"psnr": of("psnr"), "fid": of("fid", SmallFid)}
    found = evaluate("set", Shrunk(gt=False), Outputs(Noisy(), CPU), metrics, seed=0)
    assert (found.scores, list(found.sets)) == ([], [])


def test_several_samples_give_means_and_both_spreads() -> None:
    found = measured(samples=3)
    table = means(found.scores, found.sets)["Set5", "restored"]
    restored = [s for s in found.scores if s.output == "restored"]
    rows = [[s.values["psnr"] for s in restored if s.image == f"image_{i}"] for i in range(5)]
    assert all(len(set(row)) == 3 for row in rows)
    mean = table["psnr"]
    assert mean.value == pytest.approx(statistics.mean(map(statistics.mean, rows)))
    assert mean.spread.image == pytest.approx(statistics.mean(map(statistics.stdev, rows)))
    assert mean.spread.mean == pytest.approx(statistics.stdev(map(statistics.mean, zip(*rows, strict=True))))
    assert (mean.images, mean.spread.samples) == (5, 3)
    sets = [s.values["small_fid"] for s in found.sets if s.output == "restored"]
    assert len(set(sets)) == 3
    assert table["small_fid"].value == pytest.approx(statistics.mean(sets))
    assert table["small_fid"].spread.mean == pytest.approx(statistics.stdev(sets))
    assert means(found.scores, found.sets)["Set5", "bicubic"]["psnr"].spread is None
    assert [s.sample for s in found.scores[:4]] == [0, 0, 1, 2]


def test_the_first_of_several_samples_is_that_of_one() -> None:
    one, three = measured(), measured(samples=3)
    assert one.scores == [s for s in three.scores if s.sample == 0]
    assert list(one.sets) == [s for s in three.sets if s.sample == 0]


class Half(dist.World):
    """One of two processes in turn; `gather` hands over what the other saw."""

    seen: ClassVar[dict[int, list]] = {}

    def gather(self, value: list) -> list:  # type: ignore[override]
        self.seen[self.rank] = value
        return [self.seen.get(0, []), self.seen.get(1, [])]

    def largest(self, value: int) -> int:
        return value

    def from_main(self, value: object) -> object:  # type: ignore[override]
        return value


def test_two_processes_give_the_scores_of_one_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Half, "seen", {})
    measured(samples=2, world=Half(rank=1, size=2))
    both = measured(samples=2, world=Half(rank=0, size=2))
    assert [len(share) for _, share in sorted(Half.seen.items())] == [3, 2]
    alone = measured(samples=2)
    assert both.scores == alone.scores
    assert list(both.sets) == list(alone.sets)  # the same bits: features lie in the order of images


def test_equal_images_and_values_that_are_not_finite() -> None:
    rows = [Score("s", "a", "restored", {"m": math.inf}), Score("s", "a", "restored", {"m": 3.0}, 1)]
    rows += [Score("s", "b", "restored", {"m": 1.0}), Score("s", "b", "restored", {"m": 2.0}, 1)]
    mean = means(rows)["s", "restored"]["m"]
    assert (mean.value, mean.infinite, mean.images) == (1.5, 1, 2)
    assert mean.spread.image == pytest.approx(statistics.stdev([1, 2]))  # of the images whose values are all finite
    broken = SmallFid()
    bad = torch.full((3, 8, 8), math.nan)
    assert Metric("f", "f", SmallFid, {}).features(metric.Pixels(bad)).isnan().all()
    assert math.isnan(broken.distance(torch.full((4, 6), math.nan), torch.rand(4, 6)))


def test_tables_tell_by_an_arrow_what_is_better_and_how_samples_differ() -> None:
    sets = [SetScore("s", "restored", {"fid": v}, 2, n) for n, v in enumerate((4.0, 6.0))]
    scores = [Score("s", i, "restored", {"psnr": 30.0 + n}, n) for i in "ab" for n in (0, 1)]
    text = text_table(scores, {"psnr": "P", "fid": "F"}, sets, ["fid"])
    head, _, row, *rest = text.splitlines()
    assert head.split() == ["dataset", "stage", "images", "psnr", "↑", "fid", "↓"]
    assert row.split() == ["s", "restored", "2", "30.5000", "5.0000"]
    assert "over 2 samples" in rest[1]
    assert rest[4].split() == ["s", "restored", "0.7071", "/", "0.7071", "-", "/", "1.4142"]
    assert "psnr ^" in printable(text, "ascii")
    assert printable(text, "utf-8") == text


def sr_values(world: World, **changes: object) -> dict:
    (world.root / "nearest_net.py").write_text(NEAREST, encoding="utf-8")
    torch.save({"params": {"shift": torch.zeros(1)}}, world.root / "net.pth")
    values = world.values(
        name="sr",
        model_type="SRModel",
        scale=2,
        plugins=["nearest_net"],
        datasets={"test_1": {"name": "Set5", "type": "SuperResolutionDataset", "dataroot_gt": str(world.root / "gt")}},
        network_g={"type": "Nearest"},
        path={"root": str(world.root), "pretrain_network_g": str(world.root / "net.pth")},
        val={"metrics": {"psnr_y": {"type": "psnr_y"}, "lr_psnr": {"type": "lr_psnr"}}},
        **changes,
    )
    del values["train"]
    return values


@pytest.fixture
def small_fid(monkeypatch: pytest.MonkeyPatch) -> None:
    """`type: small_fid` in option files."""
    monkeypatch.setitem(METRICS._entries, "small_fid", SmallFid)


def test_test_py_writes_metrics_of_sets_and_samples_and_they_are_read_back(
    world: World, small_fid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = sr_values(world)
    values["val"]["save_img"] = True
    values["val"]["metrics"]["fid"] = {"type": "small_fid"}
    monkeypatch.setattr(restore_build, "build_restorer", lambda options, network: Noisy())
    options = load_options(world.write(values))
    text = score_network(options.model_copy(update={"val": options.val.model_copy(update={"samples": 2})}))
    folder = world.root / "results" / "sr"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["lower_is_better"] == summary["of_sets"] == ["fid"]
    assert set(summary["mean"]["Set5"]) == {"bicubic", "restored"}
    assert set(summary["mean"]["Set5"]["restored"]) == {"psnr_y", "lr_psnr", "fid"}
    assert summary["spread"]["Set5"]["restored"]["fid"]["image"] == "nan"
    assert summary["spread"]["Set5"]["restored"]["psnr_y"]["samples"] == 2
    assert "bicubic" not in summary["spread"]["Set5"]
    assert summary["notes"][0] in text
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert list(rows[0]) == ["dataset", "stage", "image", "sample", "lr_psnr", "psnr_y"]
    assert [row["sample"] for row in rows if row["stage"] == "restored"] == ["0", "1"] * 5
    pictures = folder / "visualization" / "Set5"
    names = {f"photo_{i}_sr_s{n}.png" for i in range(5) for n in (0, 1)}
    assert {p.name for p in pictures.iterdir()} == names
    assert (read_image(pictures / "photo_0_sr_s0.png") != read_image(pictures / "photo_0_sr_s1.png")).any()
    for file in ("summary.json", "metrics.csv"):
        result = read_result(folder / file, "x")
        assert result.lower == {"fid"}
        assert result.sets["Set5"]["restored"]["fid"] == summary["mean"]["Set5"]["restored"]["fid"]
        image = [float(row["psnr_y"]) for row in rows if (row["image"], row["stage"]) == ("photo_3", "restored")]
        read = result.values["Set5"]["restored"]["photo_3"]["psnr_y"]
        assert read == pytest.approx(statistics.mean(image))


def test_one_sample_has_no_column_and_no_spread(world: World) -> None:
    text = score_network(load_options(world.write(sr_values(world))))
    folder = world.root / "results" / "sr"
    assert (folder / "metrics.csv").read_text().startswith("dataset,stage,image,lr_psnr,psnr_y\n")
    assert "spread" not in json.loads((folder / "summary.json").read_text())
    assert "samples" not in text


@pytest.mark.parametrize("case", ["package", "weights"])
def test_what_a_metric_lacks_is_told_before_any_image_is_restored(
    world: World, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    values = sr_values(world)
    values["val"]["metrics"]["mine"] = {"type": "fid" if case == "package" else "lpips_alex"}
    restored = []
    monkeypatch.setattr(testbed, "evaluate", lambda *_, **__: restored.append(1))
    monkeypatch.setattr(metric.importlib.util, "find_spec", lambda name: None)
    if case == "weights":
        from sam4ir.priors.zoo import weights as zoo

        def unreachable(name: str) -> Mapping[str, Tensor]:
            raise zoo.WeightsError(f"the weights {name!r} could not be fetched")

        monkeypatch.setattr(zoo, "load_state", unreachable)
    expected = {
        "package": r"val\.metrics\.mine: fid needs the package torch-fidelity: pip install -e \"\.\[fid\]\"",
        "weights": r"val\.metrics\.mine: lpips_alex: the weights .*sam4ir weights lpips_alex",
    }
    with pytest.raises(MetricBuildError, match=expected[case]):
        score_network(load_options(world.write(values)))
    assert not restored
    assert not (world.root / "results").exists()


class WithNetwork(nn.Module):
    traits = Traits(weights="lpips_alex", lower_is_better=True)

    def __init__(self, state: Mapping[str, Tensor], factor: float = 2.0) -> None:
        super().__init__()
        self.register_buffer("bias", state["bias"])
        self.factor = factor

    def forward(self, image: Tensor, reference: Tensor, data_range: float) -> float:
        return float(self.bias) + self.factor * data_range


def test_a_class_is_built_once_with_its_state_and_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam4ir.priors.zoo import weights as zoo

    asked = []
    monkeypatch.setattr(zoo, "load_state", lambda name: asked.append(name) or {"bias": torch.tensor(0.5)})
    own = Metric("own", "mine", WithNetwork, {"factor": 3.0})
    assert own.protocol == "mine on 8-bit images, factor 3.0"
    ready = prepare_metrics({"own": own, "psnr": of("psnr")}, CPU)
    assert asked == ["lpips_alex"]
    image = metric.Pixels(torch.rand(3, 8, 8))
    assert ready["own"](image, image) == ready["own"](image, image) == 0.5 + 3 * 255
    assert asked == ["lpips_alex"]
    assert (own.lower_is_better, of("psnr").lower_is_better, of("lr_psnr").lower_is_better) == (True, False, False)


def test_a_users_function_tells_what_is_better_and_what_it_is() -> None:
    @described(Traits(lower_is_better=True, definition="mean absolute difference"))
    def mae(image: Tensor, reference: Tensor, data_range: float = 255.0) -> float:
        return float((image.double() - reference.double()).abs().mean())

    own = of("mae", mae)
    assert own.lower_is_better
    assert own.protocol == "mae on 8-bit images: mean absolute difference"
    black, white = (metric.Pixels(torch.full((3, 4, 4), v)) for v in (0.0, 1.0))
    assert own(white, black) == 255


def test_a_refiner_and_plain_ways_are_scored_as_before() -> None:
    class Add(nn.Module):
        def forward(self, restored: Tensor, *_: object) -> Tensor:
            return restored + 0.1

    class Same:
        def __len__(self) -> int:
            return 1

        def key(self, index: int) -> str:
            return "a"

        def get(self, index: int, rng: object) -> Sample:
            return Sample("a", torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.5))

    outputs = Outputs(PlainRestorer(nn.Identity(), Inference()), CPU, Add())
    found = evaluate("set", Same(), outputs, {"psnr": of("psnr")}, seed=0)
    assert [s.output for s in found.scores] == ["input", "restored", "refined"]


def test_results_of_another_metric_set_only_can_be_read(tmp_path: Path) -> None:
    on = {"fid": of("fid", SmallFid)}
    sets = [SetScore("s", "restored", {"fid": 3.5}, 9)]
    write_results(tmp_path, Scores([], sets, ()), on)
    result = read_result(tmp_path, "x")
    assert result.sets == {"s": {"restored": {"fid": 3.5}}}
    assert result.outputs() == {"restored"}


class OneAtFault(Shrunk):
    """A data set whose image number 1 cannot be read."""

    error: Exception = UserError("image_1.png: damaged")

    def get(self, index: int, rng: object = None) -> Sample:
        if index == 1:
            raise self.error
        return super().get(index)


@pytest.mark.parametrize("error", [UserError("damaged"), OSError(5000, "gone"), MemoryError(), cv2.error("too large")])
def test_an_image_at_fault_is_listed_and_the_others_are_scored(error: Exception) -> None:
    data = OneAtFault()
    data.error = error
    found = evaluate("set", data, Outputs(Noisy(), CPU), {"psnr": of("psnr")}, seed=0)
    others = evaluate("set", Shrunk(), Outputs(Noisy(), CPU), {"psnr": of("psnr")}, seed=0)
    assert found.scores == [score for score in others.scores if score.image != "image_1"]
    ((key, reason),) = found.faults
    assert key == "image_1"
    assert reason


def test_an_image_at_fault_keeps_the_order_of_two_processes() -> None:
    Half.seen.clear()
    for rank in (0, 1):
        found = evaluate("set", OneAtFault(), Outputs(Noisy(), CPU), {"psnr": of("psnr")}, seed=0, world=Half(rank, 2))
    alone = evaluate("set", OneAtFault(), Outputs(Noisy(), CPU), {"psnr": of("psnr")}, seed=0)
    assert (found.scores, found.faults) == (alone.scores, alone.faults)


def test_a_bug_ends_the_scoring() -> None:
    data = OneAtFault()
    data.error = KeyError("bug")
    with pytest.raises(KeyError):
        evaluate("set", data, Outputs(Noisy(), CPU), {"psnr": of("psnr")}, seed=0)
