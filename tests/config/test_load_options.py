"""Option files: what loads, what is said of what does not, overrides, $VAR, plugins, the saved copy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import World

from sam4ir.config.load import OptionsError, dump_options, load_options, notices
from sam4ir.config.recipes import option_files
from sam4ir.config.schema import Options
from sam4ir.config.signature import block_arguments
from sam4ir.registry import ARCHS, DATASETS, LOSSES, METRICS

OPTIONS = Path(__file__).parents[2] / "options"

PLAIN = """\
name: small
datasets:
  train:
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    io_backend: {type: disk}
    gt_size: 64
    batch_size_per_gpu: 4
  val:
    type: GaussianDenoisingDataset
    dataroot_gt: val
    sigma_range: 50
network_g:
  type: NAFNet
  width: 8
  enc_blk_nums: [1, 1]
  dec_blk_nums: [1, 1]
train:
  total_iter: 100
  optim_g: {type: AdamW, lr: 1e-3, betas: [0.9, 0.9]}
  scheduler: {type: TrueCosineAnnealingLR, T_max: 100}
  pixel_opt: {type: PSNRLoss}
val:
  val_freq: 50
  metrics:
    psnr: {type: psnr}
"""
SAM = PLAIN.replace("name: small\n", "name: small\nmodel_type: SAM4IRModel\n").replace(
    "    gt_size: 64\n", "    gt_size: 64\n    masks: {store: masks}\n"
)

Load = Callable[..., Options]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = PLAIN, *overrides: str) -> Options:
        (tmp_path / "small.yml").write_text(text, encoding="utf-8")
        return load_options(tmp_path / "small.yml", overrides)

    return load


@pytest.fixture
def complain(load: Load) -> Callable[..., list[str]]:
    """The problems of a text, which must not load."""

    def complain(text: str = PLAIN, *overrides: str) -> list[str]:
        with pytest.raises(OptionsError) as error:
            load(text, *overrides)
        return [str(problem) for problem in error.value.problems]

    return complain


Complain = Callable[..., list[str]]


def swap(old: str, new: str, text: str = PLAIN) -> str:
    assert old in text
    return text.replace(old, new, 1)


def test_a_file_becomes_typed_options(load: Load) -> None:
    options = load()
    assert options.train is not None
    assert options.train.optim_g.lr == 1e-3
    assert options.train.optim_g.betas == (0.9, 0.9)
    assert options.network_g.arguments == {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
    assert options.datasets["train"].batch_size_per_gpu == 4
    assert options.datasets["train"].arguments["io_backend"] == {"type": "disk"}
    assert not options.distills
    with pytest.raises(ValueError, match="frozen"):
        options.scale = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("val:\n  val_freq", "vall:\n  val_freq", "line 24: vall: unknown key; did you mean 'val'?"),
        ("gt_size", "gtsize", "line 8: datasets.train.gtsize: unknown key; did you mean 'gt_size'?"),
        ("batch_size_per", "batchsize_per", "unknown key; did you mean 'batch_size_per_gpu'?"),
        ("sigma_range", "sigma_rnge", "line 13: datasets.val.sigma_rnge: unknown key; did you mean 'sigma_range'?"),
        ("width", "widht", "line 16: network_g.widht: unknown key; did you mean 'width'?"),
        ("T_max: 100", "T_max: 100, etamin: 0", "train.scheduler.etamin: unknown key; did you mean 'eta_min'?"),
        ("betas", "beta", "line 21: train.optim_g.beta: unknown key; did you mean 'betas'?"),
        ("val_freq", "val_frq", "line 25: val.val_frq: unknown key; did you mean 'val_freq'?"),
        ("psnr}", "psnr, crop_boder: 4}", "val.metrics.psnr.crop_boder: unknown key; did you mean 'crop_border'?"),
        ("PSNRLoss", "PSNRLoss, weight: 1", "train.pixel_opt.weight: unknown key; did you mean 'loss_weight'?"),
        ("gt_size: 64", "scale: 2", "line 8: datasets.train.scale: is handed over by the program; remove it here"),
        ("NAFNet", "NafNet", "line 15: network_g.type: no arch is called 'NafNet'; did you mean 'NAFNet'? known: "),
        ("PairedImageDataset", "PairedDataset", "no dataset is called 'PairedDataset'; did you mean 'PairedImage"),
        ("PSNRLoss", "PSNRloss", "no loss is called 'PSNRloss'; did you mean 'PSNRLoss'? known: "),
        ("type: psnr", "type: pnsr", "no metric is called 'pnsr'; did you mean 'psnr'? known: "),
        ("TrueCosineAnnealingLR", "TrueCosineLR", "no scheduler is called 'TrueCosineLR'; did you mean 'TrueCosineA"),
        ("AdamW", "Adamw", "train.optim_g.type: 'Adamw': expected 'Adam' or 'AdamW'; did you mean 'AdamW'?"),
        ("  type: NAFNet\n", "", "line 14: network_g.type: is required and missing"),
        ("    dataroot_lq: lq\n", "", "line 3: datasets.train.dataroot_lq: is required and missing"),
        ("  total_iter: 100\n", "", "line 19: train.total_iter: is required and missing"),
        ("T_max: 100", "eta_min: 0", "line 22: train.scheduler.T_max: is required and missing"),
        ("width: 8", "width: eight", "line 16: network_g.width: 'eight': expected a whole number"),
        ("[1, 1]", "[1, x]", "line 17: network_g.enc_blk_nums.1: 'x': expected a whole number"),
        ("{type: disk}", "disk", "line 7: datasets.train.io_backend: 'disk': expected a block of keys"),
        ("{type: disk}", "{type: [disk]}", "line 7: datasets.train.io_backend.type: ['disk']: expected "),
        ("lr: 1e-3", "lr: 0", "train.optim_g.lr: 0: expected more than 0"),
        ("lr: 1e-3", "lr: .inf", "line 21: train.optim_g.lr: '.inf' is no finite number"),
        ("[0.9, 0.9]", "[0.9]", "train.optim_g.betas: [0.9]: expected more values"),
        ("[0.9, 0.9]", "[0.9, 1]", "train.optim_g.betas.1: 1: expected less than 1"),
        ("total_iter: 100", "total_iter: 4.5", "line 20: train.total_iter: 4.5: expected a whole number"),
        ("val_freq: 50", "val_freq: 0", "line 25: val.val_freq: 0: expected at least 1"),
        ("{type: psnr}", "psnr", "line 27: val.metrics.psnr: 'psnr': expected a block of keys"),
        ("name: small", "name: small\ntrian: 1", "line 2: trian: unknown key; did you mean 'train'?"),
        ("name: small", "name: small\nnetwork_g: NAFNet", "line 15: network_g: stands twice (first in line 2)"),
        ("name: small", "model_type: SAM4IR\nname: small", "; did you mean 'SAM4IRModel'?"),
        ("name: small", "device: gpu\nname: small", "line 1: device: 'gpu': expected text that matches "),
        ("name: small", "plugins: mine\nname: small", "line 1: plugins: 'mine': expected a list"),
        ("  val:\n    type", "  valid/x:\n    type", "datasets.valid/x: the key of a data set is train, val or test, "),
        (
            "  val:\n    type",
            "  eval:\n    type",
            "line 10: datasets.eval: the key of a data set is train, val or test",
        ),
        ("  val:\n", "  val:\n    name: ../x\n", "line 11: datasets.val.name: '../x' names a folder, so it may not"),
        ("val_freq: 50", "grids: true", "val: grids is true without crop_size; set crop_size to"),
        ("val_freq: 50", "refiner: true", "line 25: val.refiner: belongs to model_type SAM4IRModel; this file says"),
        (
            "total_iter: 100",
            "total_iter: 9\n  total_batch: 6",
            "train.total_batch: 6 is no multiple of batch_size_per_gpu 4",
        ),
        (
            "total_iter: 100",
            "total_iter: 9\n  sgr_opt: {}",
            "line 21: train.sgr_opt: belongs to model_type SAM4IRModel",
        ),
    ],
)
def test_one_problem_a_mistake(complain: Complain, old: str, new: str, complaint: str) -> None:
    found = complain(swap(old, new))
    assert len([text for text in found if "required" not in text or "required" in complaint]) == 1, found
    assert any(complaint in text for text in found), found


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "    masks: {store: masks}\n",
            "",
            "datasets.train.masks: is required by SAM4IRModel: {store: PATH} of a mask store",
        ),
        (
            "total_iter: 100",
            "total_iter: 9\n  sgr_opt: {layers: []}",
            "sgr_opt.layers: []: expected at least 1 value(s)",
        ),
        (
            "total_iter: 100",
            "total_iter: 9\n  spd_opt: {balance: 1, loss_weight: 1}",
            "train.spd_opt: has loss_weight and",
        ),
        (
            "total_iter: 100",
            "total_iter: 9\n  spd_opt: {gate: pixel}",
            "train.spd_opt: has gate pixel with criterion l1",
        ),
        (
            "total_iter: 100",
            "total_iter: 9\n  distill: {refine_iter: 3}",
            "train.distill: refine_iter belongs to schedule",
        ),
        (
            "name: small",
            "name: small\nspf: {type: SPF, widht: 3}",
            "line 2: spf.widht: unknown key; did you mean 'width'?",
        ),
        ("name: small", "name: small\nscale: 2", "line 2: scale: is 2; SPF lays masks on the restored image"),
    ],
)
def test_one_problem_a_mistake_of_sam4ir(complain: Complain, old: str, new: str, complaint: str) -> None:
    (found,) = complain(swap(old, new, SAM))
    assert complaint in found


def test_two_phase_training_needs_a_trained_student_and_an_end_of_the_first_phase(complain: Complain) -> None:
    text = swap("total_iter: 100", "total_iter: 9\n  distill: {schedule: two_phase, refine_iter: 10}", SAM)
    assert complain(text) == [
        "path.pretrain_network_g: is required by schedule two_phase: the student is frozen first",
        "line 23: train.distill.refine_iter: must not be larger than total_iter",
    ]


def test_all_problems_stand_in_one_message_in_the_order_of_the_file(load: Load, tmp_path: Path) -> None:
    text = PLAIN.replace("width", "widht").replace("lr: 1e-3", "lr: !!float fast").replace("gt_size: 64", "gt_size: x")
    with pytest.raises(OptionsError) as error:
        load(text.replace("type: psnr", "type: pnsr") + "name: again\n1: 2\n")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'small.yml'}: 6 problems"
    places = [line.strip().split(": ")[:2] for line in lines[1:]]
    assert places == [
        ["line 8", "datasets.train.gt_size"],
        ["line 16", "network_g.widht"],
        ["line 21", "train.optim_g.lr"],
        ["line 27", "val.metrics.psnr.type"],
        ["line 28", "name"],
        ["line 29", "1"],
    ]


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "'  '", "' a'", "a/b", "'a\\b'", '"a\\nb"', "'a:b'", "é" * 101, "''"]
)
def test_a_name_that_is_no_folder_is_refused(complain: Complain, name: str) -> None:
    (found,) = complain(swap("name: small", f"name: {name}"))
    assert found.startswith("line 1: name: ")
    assert "names a folder" in found


@pytest.mark.parametrize("name", ["NAFNet_x4", "run 2", "è-1.5"])
def test_ordinary_names_are_fine(load: Load, name: str) -> None:
    assert load(swap("name: small", f"name: {name}")).name == name


def test_a_name_that_reads_as_a_number_is_told_to_be_quoted(complain: Complain) -> None:
    assert complain(swap("name: small", "name: 64")) == ["line 1: name: 64: expected text; put it in quotes"]


def test_two_data_sets_of_one_name_would_share_a_folder(complain: Complain) -> None:
    second = "  val_2:\n    name: val\n    type: GaussianDenoisingDataset\n    dataroot_gt: b\n    sigma_range: 15\n"
    (found,) = complain(swap("network_g:\n", second + "network_g:\n"))
    assert found == "line 15: datasets.val_2.name: 'val' is the name of datasets.val too; give each its own"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "does not hold `key: value` lines"),
        (b"- 1\n- 2\n", "does not hold `key: value` lines"),
        (b"just words\n", "does not hold `key: value` lines"),
        (b"name: \xff\n", "is not a UTF-8 text file"),
        ("name: a\n".encode("utf-16-le"), "is not a UTF-8 text file"),
        (b"name: a\n\tval: 1\n", "line 2: not valid YAML: "),
    ],
)
def test_a_file_that_is_no_option_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "small.yml").write_bytes(content)
    with pytest.raises(OptionsError) as error:
        load_options(tmp_path / "small.yml")
    (problem,) = error.value.problems
    assert complaint in str(problem)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"nowhere\.yml: 1 problem\n  cannot be read: No such file or directory"):
        load_options(tmp_path / "nowhere.yml")
    with pytest.raises(OptionsError, match="cannot be read: Is a directory"):
        load_options(tmp_path)


def test_a_byte_order_mark_is_fine(load: Load) -> None:
    assert load("\ufeff" + PLAIN) == load(PLAIN)


@pytest.mark.parametrize("block", ["plugins", "path", "logger", "val", "spf", "network_r", "dist_params", "num_gpu"])
def test_an_empty_block_is_as_good_as_none(load: Load, block: str) -> None:
    text = PLAIN[: PLAIN.index("val:\n  val_freq")]
    assert load(f"{text}{block}:\n") == load(f"{text}{block}: ~\n") == load(text)


def test_empty_blocks_further_down(load: Load) -> None:
    assert load("name: small\nnetwork_g: {type: NAFNet}\ndatasets:\n").datasets == {}
    val = load(PLAIN[: PLAIN.index("    psnr: {type")]).val
    assert val is not None
    assert val.metrics == {}
    assert load(swap("  total_iter", "  distill:\n  scheduler_r: ~\n  total_iter")) == load()


def test_basicsr_nulls_are_fine(load: Load) -> None:
    path = load(PLAIN + "path:\n  pretrain_network_g: ~\n  strict_load_g: true\n  resume_state: ~\n").path
    assert path.pretrain_network_g is None


@pytest.mark.parametrize("block", ["network_g", "datasets: {train", "train"])
def test_a_block_that_is_needed_may_not_be_empty(complain: Complain, block: str) -> None:
    end = "}" if "{" in block else ""
    text = "name: small\nnetwork_g: {type: NAFNet}\n" if block != "network_g" else "name: small\n"
    data = "datasets: {train: {type: GaussianDenoisingDataset, dataroot_gt: a, sigma_range: 1}}\n"
    found = complain(f"{text}{data if block == 'train' else ''}{block}: ~{end}\n")
    assert len(found) == 1
    assert "null: expected a block of keys" in found[0] or "is required with a training set" in found[0]


def test_whole_floats_count(load: Load) -> None:
    text = swap("total_iter: 100", "total_iter: !!float 4e5").replace("T_max: 100", "T_max: 4e5").replace("64", "64.0")
    options = load(text.replace("width: 8", "width: !!float 8"))
    assert options.train is not None
    assert options.train.total_iter == 400_000
    assert options.train.scheduler is not None
    arguments = block_arguments(ARCHS, "NAFNet", options.network_g.arguments)
    assert arguments["width"] == 8
    assert isinstance(arguments["width"], int)


def test_integers_do_for_floats(load: Load) -> None:
    train = load(swap("lr: 1e-3", "lr: 1")).train
    assert train is not None
    assert isinstance(train.optim_g.lr, float)


def test_geometric_augs_is_flips_and_rotations(load: Load) -> None:
    ours = load(swap("gt_size: 64", "gt_size: 64\n    use_hflip: true\n    use_rot: true"))
    assert load(swap("gt_size: 64", "gt_size: 64\n    geometric_augs: true")) == ours
    off = load(swap("gt_size: 64", "gt_size: 64\n    geometric_augs: false")).datasets["train"].arguments
    assert (off["use_hflip"], off["use_rot"]) == (False, False)
    assert load(swap("gt_size: 64", "gt_size: 64\n    geometric_augs: true\n    use_rot: true")) == ours


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("geometric_augs: 1", "line 8: datasets.train.geometric_augs: 1: expected true or false"),
        ("geometric_aug: true", "line 8: datasets.train.geometric_aug: unknown key; did you mean 'geometric_augs'?"),
        (
            "geometric_augs: true\n    use_rot: false",
            "line 8: datasets.train.geometric_augs: sets use_hflip and use_rot, but use_rot differs; keep one",
        ),
    ],
)
def test_geometric_augs_that_do_not_fit(complain: Complain, lines: str, complaint: str) -> None:
    assert complain(swap("gt_size: 64", lines)) == [complaint]


def test_overrides_set_yaml_values(load: Load) -> None:
    options = load(
        PLAIN,
        "train:total_iter=5e4",
        "train:optim_g:betas=[0.5, 0.6]",
        "val:metrics:psnr:crop_border=4",
        "val:metrics:ssim={type: ssim}",
        "path:root=/tmp/a=b",
        "logger:use_tb_logger = true",
        "val:val_freq=",
        "datasets:train:gt_size=~",
        "manual_seed=1",
        "manual_seed=2",
    )
    assert options.train is not None
    assert options.val is not None
    assert options.train.total_iter == 50_000
    assert options.train.optim_g.betas == (0.5, 0.6)
    assert options.val.metrics["psnr"].arguments == {"crop_border": 4}
    assert options.val.metrics["ssim"].type == "ssim"
    assert options.path.root == "/tmp/a=b"
    assert options.logger.use_tb_logger
    assert options.val.val_freq is None
    assert options.datasets["train"].arguments["gt_size"] is None
    assert options.manual_seed == 2


def test_an_override_reaches_one_of_two_aliases_only(load: Load) -> None:
    text = swap("  optim_g: {", "  optim_g: &o {", SAM).replace("  pixel_opt", "  optim_r: *o\n  pixel_opt")
    train = load(text, "train:optim_r:lr=1").train
    assert train is not None
    assert train.optim_r is not None
    assert (train.optim_g.lr, train.optim_r.lr) == (1e-3, 1.0)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train:total_iter=4.5", "train.total_iter: 4.5: expected a whole number (set by --force_yml)"),
        ("train:totl_iter=3", "train.totl_iter: unknown key; did you mean 'total_iter'? (set by --force_yml)"),
        (
            "train:pixel_opts:type=L1Loss",
            "train.pixel_opts: unknown key; did you mean 'pixel_opt'? (set by --force_yml)",
        ),
        ("train:optim_g:lr=[1", "train.optim_g.lr: not valid YAML: while parsing a flow sequence"),
        ("train:optim_g:lr=.nan", "train.optim_g.lr: '.nan' is no finite number (set by --force_yml)"),
        ("name:x=3", "name.x: name is 'small' and no block of keys (set by --force_yml)"),
        ("train:optim_g:betas:0=1", "train.optim_g.betas is [0.9, 0.9] and no block of keys"),
        ("train:total_iter", "--force_yml 'train:total_iter' does not read as key:key=value"),
        ("=3", "--force_yml '=3' does not read as key:key=value"),
        ("train::x=3", "--force_yml 'train::x=3' does not read as key:key=value"),
        ("a:" * 500 + "b=1", "does not read as key:key=value"),
        ("network_g:type=NafNet", "network_g.type: no arch is called 'NafNet'; did you mean 'NAFNet'?"),
    ],
)
def test_an_override_that_does_not_fit(complain: Complain, override: str, complaint: str) -> None:
    (found,) = complain(PLAIN, override)
    assert complaint in found
    assert "line" not in found.split(":")[0]


def test_variables_and_home_are_expanded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    options = load(
        swap("dataroot_gt: gt", "dataroot_gt: $DATA/gt").replace(": lq", ": '${DATA}/lq'"), "path:root=~/runs"
    )
    assert options.datasets["train"].arguments["dataroot_gt"] == "/data/gt"
    assert options.datasets["train"].arguments["dataroot_lq"] == "/data/lq"
    assert options.path.root == "/home/me/runs"


@pytest.mark.parametrize("text", ["$NOT_SET/gt", "'${NOT_SET}'", "'${NOT_SET:-x}'", "a$1"])
def test_a_variable_that_is_not_set_is_named(complain: Complain, text: str) -> None:
    (found,) = complain(swap("dataroot_gt: gt", f"dataroot_gt: {text}"))
    assert found.startswith("line 5: datasets.train.dataroot_gt: ")
    assert "the environment variable " in found
    assert found.endswith("is not set")


@pytest.mark.parametrize("value", ["$DATA/x", "\udcff"])
def test_a_variable_that_could_not_be_saved_is_refused(
    complain: Complain, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DATA", value)
    (found,) = complain(swap("dataroot_gt: gt", "dataroot_gt: $DATA"))
    assert "line 5: datasets.train.dataroot_gt: '$DATA' stands for" in found


def test_a_dollar_that_names_no_variable_is_text(load: Load) -> None:
    assert load(swap("dataroot_gt: gt", "dataroot_gt: 5$ a")).datasets["train"].arguments["dataroot_gt"] == "5$ a"


TRICKY = """\
name: '2e-4'
num_gpu: ~
dist_params: {backend: nccl, port: ~, '1e5': [1e-7, 3, 1e5]}
datasets:
  test: {type: GaussianDenoisingDataset, dataroot_gt: "a\\x85\\u2028", sigma_range: [1, 2.5], sigma_type: choice, std: }
  test_2: {type: GaussianDenoisingDataset, dataroot_gt: 'yes', sigma_range: 1e-7, io_backend: {type: disk}}
network_g: {type: NAFNet, width: 8.0, enc_blk_nums: [1], dec_blk_nums: [1]}
val: {metrics: {'~': {type: psnr}, "no": {type: ssim, crop_border: 0}}}
logger: {wandb: {project: '2020-01-01', resume_id: ~}}
"""


@pytest.mark.parametrize("text", [PLAIN, SAM, TRICKY])
def test_the_saved_options_load_to_the_same(load: Load, text: str) -> None:
    options = load(text)
    assert load(dump_options(options)) == options
    assert dump_options(load(dump_options(options))) == dump_options(options)
    assert "warmup_iter: -1" in dump_options(load(PLAIN))  # defaults are written out


@pytest.mark.parametrize("path", [file.path for file in option_files()], ids=lambda p: str(p.relative_to(OPTIONS)))
def test_a_saved_copy_of_every_option_file_loads_to_the_same(load: Load, path: Path) -> None:
    options = load_options(path)
    assert load(dump_options(options)) == options


def test_keys_without_effect_are_noted(load: Load) -> None:
    text = swap("gt_size: 64", "gt_size: 64\n    prefetch_mode: cpu\n    num_prefetch_queue: ~")
    found = notices(load("num_gpu: 8\n" + text.replace("val_freq: 50", "val_freq: 50\n  pbar: false")))
    assert [notice.split(" has no effect: ")[0] for notice in found] == [
        "num_gpu",
        "datasets.train.prefetch_mode",
        "val.pbar",
    ]
    assert notices(load(PLAIN)) == []


PLUGIN = """
from sam4ir.registry import ARCHS, DATASETS, LOSSES, METRICS


@ARCHS.register()
class MyNet:
    def __init__(self, depth: int = 3) -> None:
        self.depth = depth


@LOSSES.register("my_loss")
class Loss:
    def __init__(self, power: float = 1.0) -> None:
        pass


@DATASETS.register()
class MyData:
    def __init__(self, folder: str, gt_size: int | None = None) -> None:
        pass


@METRICS.register()
def my_metric(image: object, reference: object, border: int = 0, data_range: float = 255.0) -> float:
    return 0.0
"""
WITH_PLUGIN = """\
name: small
plugins: [PLUGIN]
datasets:
  train: {type: MyData, folder: a, gt_size: 64, batch_size_per_gpu: 2}
network_g: {type: MyNet, depth: 4}
train: {total_iter: 1, optim_g: {}, pixel_opt: {type: my_loss, power: 2}}
val: {metrics: {m: {type: my_metric, border: 1}}}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module beside the option file and gives its name; nothing of it outlives the test."""
    for registry in (ARCHS, DATASETS, LOSSES, METRICS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"plugin_{tmp_path.name}"

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
        return name

    return write


def test_parts_of_a_plugin_beside_the_file_are_found(load: Load, plugin: Callable[[str], str]) -> None:
    options = load(swap("PLUGIN", plugin(PLUGIN), WITH_PLUGIN))
    assert options.network_g.type == "MyNet"
    assert ARCHS.get("MyNet")(**options.network_g.arguments).depth == 4


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("depth: 4", "depht: 4", "network_g.depht: unknown key; did you mean 'depth'?"),
        ("depth: 4", "depth: four", "network_g.depth: 'four': expected a whole number"),
        ("power: 2", "pover: 2", "train.pixel_opt.pover: unknown key; did you mean 'power'?"),
        ("folder: a", "foldr: a, folder: a", "datasets.train.foldr: unknown key; did you mean 'folder'?"),
        ("gt_size: 64", "geometric_augs: true", "datasets.train.geometric_augs: unknown key; known: "),
        ("border: 1", "boder: 1", "val.metrics.m.boder: unknown key; did you mean 'border'?"),
        ("MyNet", "MyNt", "network_g.type: no arch is called 'MyNt'; did you mean 'MyNet'?"),
    ],
)
def test_parts_of_a_plugin_are_checked_like_ours(
    complain: Complain, plugin: Callable[[str], str], old: str, new: str, complaint: str
) -> None:
    (found,) = complain(swap(old, new, swap("PLUGIN", plugin(PLUGIN), WITH_PLUGIN)))
    assert complaint in found


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError: invalid syntax"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        (
            "from sam4ir.registry import ARCHS\n@ARCHS.register()\nclass NAFNet: pass",
            "UserError: arch 'NAFNet' is registered already; give yours another name",
        ),
    ],
)
def test_a_broken_plugin_is_one_problem(
    complain: Complain, plugin: Callable[[str], str], source: str, complaint: str
) -> None:
    name = plugin(source)
    (found,) = complain(swap("PLUGIN", name, WITH_PLUGIN))
    assert found.startswith("line 2: plugins.0: ")
    assert f"{name}.py' cannot be imported: {complaint}" in found


@pytest.mark.parametrize(
    ("source", "line"),
    [("\n\n1 / 0", 3), ("def", 1), ("def fail():\n    1 / 0\n\nfail()", 2), ("import json\njson.loads('x')", 2)],
)
def test_a_broken_plugin_names_its_line(
    complain: Complain, plugin: Callable[[str], str], source: str, line: int
) -> None:
    name = plugin(source)
    (found,) = complain(swap("PLUGIN", name, WITH_PLUGIN))
    assert found.endswith(f"({Path(name).name}.py, line {line})")


@pytest.mark.parametrize("name", ["no_such_module", "''", "..", "'a b'", '"a\\nb"', "sam4ir.", "3"])
def test_a_plugin_that_does_not_exist_is_one_problem(complain: Complain, name: str) -> None:
    (found,) = complain(swap("name: small", f"name: small\nplugins: [{name}]"))
    assert found.startswith("line 2: plugins.0: ")


def test_a_plugin_may_bring_a_part_that_takes_anything(load: Load, plugin: Callable[[str], str]) -> None:
    source = "from sam4ir.registry import ARCHS\n@ARCHS.register()\ndef anything(**given): return given\n"
    text = f"name: small\nplugins: [{plugin(source)}]\nnetwork_g: {{type: anything, a: [1, {{b: x}}]}}\n"
    arguments: dict[str, Any] = load(text).network_g.arguments
    assert block_arguments(ARCHS, "anything", arguments) == {"a": [1, {"b": "x"}]}


def test_a_program_that_only_restores_needs_no_part_of_the_training(world: World) -> None:
    values = world.values(sam=True, spf={"type": "FusionOfAPluginThatIsGone"})
    values["train"]["distill"]["terms"] = {"own": {"type": "TermOfAPluginThatIsGone", "balance": 0.1}}
    path = world.write(values)
    with pytest.raises(OptionsError, match=r"FusionOfAPluginThatIsGone"):
        load_options(path)
    options = load_options(path, training=False)
    assert (options.train, options.spf, options.datasets) == (None, None, {})
    assert options.network_g.block == values["network_g"]


def test_plugins_of_a_file_that_nobody_named_are_not_imported(
    tmp_path: Path, plugin: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    name = plugin("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    file = tmp_path / "options.yml"
    for entry in (name, str(tmp_path / f"{name}.py")):
        file.write_text(
            f"name: x\nplugins: [{entry}]\nnetwork_g: {{type: NAFNet}}\nval: {{metrics: {{m: {{type: theirs}}}}}}\n"
        )
        before = list(sys.path)
        options = load_options(file, training=False, named_by_user=False)
        assert options.plugins == ()
        assert sys.path == before
    assert not (tmp_path / "ran").exists()
    assert f"({name}) were not loaded" in caplog.text
    assert f"-opt {file} loads them" in caplog.text


def test_a_network_of_a_plugin_that_nobody_named_is_refused_in_one_sentence(
    tmp_path: Path, plugin: Callable[[str], str]
) -> None:
    file = tmp_path / "options.yml"
    file.write_text(f"name: x\nplugins: [{plugin(PLUGIN)}]\nnetwork_g: {{type: MyNet, depth: 4}}\n")
    with pytest.raises(
        OptionsError, match=r"line 3: network_g.type: 'MyNet' is no network of sam4ir; .* give it by -opt"
    ):
        load_options(file, training=False, named_by_user=False)
    assert load_options(file, training=False, named_by_user=True).network_g.type == "MyNet"


def test_every_command_says_whether_the_user_named_its_option_file() -> None:
    root = Path(__file__).resolve().parents[2]
    silent = []
    for file in [*root.glob("*.py"), *root.glob("sam4ir/**/*.py"), *root.glob("scripts/**/*.py")]:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "load_options":
                named = {keyword.arg for keyword in call.keywords}
                if "named_by_user" not in named:
                    silent.append(f"{file.name}:{call.lineno}")
    assert silent == []
