"""Every option file of the repository loads and its parts can be built, on the meta device; recipes are the field's."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.config.load import load_options, notices
from sam4ir.config.recipes import option_files
from sam4ir.config.schema import Block, DatasetOptions, Options
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.config.yaml_text import parse
from sam4ir.data.prepare.recipes import RECIPES as PREPARED
from sam4ir.engine.evaluate.published import published_table
from sam4ir.engine.train.stages import stages
from sam4ir.models.restoration import last_output
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, FUSIONS, LOSSES, METRICS, SCHEDULES, Registry

OPTIONS = Path(__file__).parents[1] / "options"
FILES = [file.path for file in option_files()]
TRAINING = sorted((OPTIONS / "train").rglob("*.yml"))
VARIANTS = [path for path in TRAINING if path.stem.endswith("_sam4ir")]
SR = OPTIONS / "train" / "sr"
SIDE = 64

BY_PIXELS = {name for name in METRICS.names() if not inspect.isclass(METRICS.get(name)) and name != "lr_psnr"}

load = functools.cache(load_options)  # options are frozen


def named(path: Path) -> str:
    return str(path.relative_to(OPTIONS))


@pytest.fixture(params=FILES, ids=named)
def options(request: pytest.FixtureRequest) -> Options:
    return load(request.param)


def build(registry: Registry, block: Block) -> object:
    return registry.get(block.type)(**block_arguments(registry, block.type, block.arguments))


@functools.cache
def output_shape(network: str, channels: int, scale: int) -> tuple[int, ...]:
    """Shape of what a network makes of (1, channels, 64, 64), worked out on the meta device."""
    block = Block.model_validate_json(network)
    with torch.device("meta"):
        built = build(ARCHS, block)
        assert isinstance(built, nn.Module)
        assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
        image = torch.zeros(1, channels, SIDE, SIDE)
        if not isinstance(built, DiffSR):
            return tuple(last_output(built(image)).shape)
    built = built.to_empty(device="cpu")  # autocast, which it switches off for its times, knows no meta device
    x_t = torch.zeros(1, 3, 16 * scale, 16 * scale)
    assert built(x_t, torch.zeros(1), torch.zeros(1, channels, 16, 16), x_t).shape == x_t.shape
    return (1, 3, SIDE * scale, SIDE * scale)


def channels(block: DatasetOptions) -> tuple[int, int]:
    """(of the degraded image, of the ground truth) that a data set gives."""
    if accepts(DATASETS.get(block.type), "dataroot_lqL"):
        return 6, 3
    grey = block.arguments.get("in_ch", block.arguments.get("channels", 3))
    return grey, grey


def test_there_are_option_files() -> None:
    assert len(FILES) >= 3
    assert not list(OPTIONS.rglob("*.yaml")), "an option file is called .yml"


def test_no_two_trainings_write_into_one_folder() -> None:
    names = [options.name for options in map(load, FILES) if options.train is not None]
    assert sorted(set(names)) == sorted(names)


def test_no_two_tests_write_into_one_folder() -> None:
    names = [load(path).name for path in sorted((OPTIONS / "test").rglob("*.yml"))]
    assert sorted(set(names)) == sorted(names)


def test_networks_turn_the_images_of_their_data_sets_into_those_of_the_ground_truth(options: Options) -> None:
    for block in options.datasets.values():
        degraded, clean = channels(block)
        large = SIDE * options.scale
        network = options.network_g.model_dump_json()
        assert output_shape(network, degraded, options.scale) == (1, clean, large, large)


def test_refiners_turn_restored_images_into_restored_images(options: Options) -> None:
    if not options.distills:
        return
    for block in options.phase("train").values():
        clean = channels(block)[1]
        refiner = (options.network_r or options.network_g).model_dump_json()
        assert output_shape(refiner, clean, 1) == (1, clean, SIDE, SIDE)
        fusion = build(FUSIONS, options.spf or Block(type="SPF"))
        assert callable(fusion)
        image, labels = torch.zeros(1, clean, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
        assert fusion(image, labels, 1, image).shape == image.shape
        assert options.train is not None
        assert clean == 3 or options.train.sgr_opt is None, "SGR's VGG takes RGB images"


def test_losses_are_built_and_finite(options: Options) -> None:
    if options.train is None:
        return
    assert options.train.pixel_opt is not None
    loss = build(LOSSES, options.train.pixel_opt)
    assert callable(loss)
    image = torch.linspace(0, 1, 3 * SIDE).view(1, 3, 1, SIDE).expand(1, 3, SIDE, SIDE)
    assert math.isfinite(loss(image, 1 - image))


def test_metrics_score_an_image(options: Options) -> None:
    for block in options.val.metrics.values() if options.val is not None else ():
        if block.type not in BY_PIXELS:
            continue
        metric = partial(METRICS.get(block.type), **block_arguments(METRICS, block.type, block.arguments))
        image = torch.linspace(0, 1, 3 * SIDE).view(3, 1, SIDE).expand(3, SIDE, SIDE)
        assert math.isfinite(metric(image, 1 - image, data_range=1.0))


def test_schedulers_run_from_the_first_to_the_last_iteration(options: Options) -> None:
    if options.train is None:
        return
    train = options.train
    pairs = [(train.scheduler, train.optim_g), (train.scheduler_r or train.scheduler, train.optim_r or train.optim_g)]
    for block, optimiser in pairs:
        if block is None:
            continue
        rate = partial(SCHEDULES.get(block.type), **block_arguments(SCHEDULES, block.type, block.arguments))
        assert rate(iteration=0, base_lr=optimiser.lr) == pytest.approx(optimiser.lr)
        assert 0 <= rate(iteration=train.total_iter, base_lr=optimiser.lr) <= optimiser.lr


def test_data_sets_get_all_arguments_that_they_need(options: Options) -> None:
    assert options.datasets
    for block in options.datasets.values():
        target = DATASETS.get(block.type)
        handed = {name: None for name in DATASETS.handed if accepts(target, name)}
        inspect.signature(target).bind(**handed, **block_arguments(DATASETS, block.type, block.arguments))


def test_degradations_are_built(options: Options) -> None:
    for block in options.datasets.values():
        for degradation in block.degradations or ():
            assert callable(build(DEGRADATIONS, degradation))
        taken = accepts(DATASETS.get(block.type), "degradations")
        assert (block.degradations is not None) == taken


def test_degraded_validation_images_are_the_same_every_time() -> None:
    degraded = [b for o in map(load, FILES) for k, b in o.datasets.items() if b.degradations and k != "train"]
    assert degraded
    assert all("noise_seed" in block.arguments for block in degraded)


def test_no_key_of_our_own_files_is_without_effect(options: Options) -> None:
    assert notices(options) == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_says_where_its_data_comes_from_and_a_training_draws_curves(path: Path) -> None:
    text, options = path.read_text(encoding="utf-8"), load(path)
    header = text[: text.index("\nname: ")]
    data = re.search(r"^# Data: (.+)", header, re.MULTILINE)
    assert data is not None, "a comment `# Data: ` says which command prepares the data, or which folders they are"
    command = re.match(r"sam4ir prepare (\w+) --input", data[1])
    assert command is None or command[1] in PREPARED
    if any(block.masks is not None for block in options.datasets.values()):
        assert "make-masks" in text or "with their masks" in header
    if options.train is None:
        return
    curves = options.val is not None and options.val.val_freq and options.val.metrics and options.phase("val")
    assert curves or "# No curves: " in header
    if options.val is not None and options.val.val_freq is not None:
        assert options.val.val_freq <= options.train.total_iter


def test_the_schedule_ends_with_the_training(options: Options) -> None:
    if options.train is None or options.train.scheduler is None:
        return
    arguments = options.train.scheduler.arguments
    if "T_max" in arguments:
        assert arguments["T_max"] == options.train.total_iter
    if "periods" in arguments:
        assert sum(arguments["periods"]) == options.train.total_iter


def test_stages_fill_the_training_and_reach_their_batches_on_one_to_eight_processes(options: Options) -> None:
    if options.train is None:
        return
    for loader in options.phase("train").values():
        if loader.iters:
            assert sum(loader.iters) == options.train.total_iter
        for processes in (1, 2, 4, 8):
            if options.train.total_batch is None:
                continue
            found = stages(options.train, loader, processes)
            assert [stage.start for stage in found] == [0, *(stage.end for stage in found[:-1])]
            assert found[-1].end == options.train.total_iter
            for stage in found:
                assert stage.rounds * stage.micro_batch * processes == stage.total_batch


RESTORMER = {
    "batch": (64, 40, 32, 16, 8, 8),
    "patch": (128, 160, 192, 256, 320, 384),
    "iters": (92_000, 64_000, 48_000, 36_000, 36_000, 24_000),
    "optim": ("AdamW", 3e-4, (0.9, 0.999), 1e-4),
    "scheduler": {"periods": [92_000, 208_000], "restart_weights": [1, 1], "eta_mins": [3e-4, 1e-6]},
    "loss": ("L1Loss", 1),
    "flips": True,
}


def cosine(total: int, lowest: float) -> dict[str, Any]:
    return {"T_max": total, "eta_min": lowest}


# The design's table of recipes, from the papers and the official option files.
TABLE: dict[str, dict[str, Any]] = {
    "denoising/nafnet_w32_sidd": {
        **{"batch": 32, "patch": 256, "iters": 200_000, "optim": ("AdamW", 1e-3, (0.9, 0.9), 0)},
        **{"scheduler": cosine(200_000, 1e-7), "loss": ("PSNRLoss", 1), "flips": False},
        "network": {"width": 32, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2]},
    },
    "denoising/nafnet_w64_sidd": {
        **{"batch": 64, "patch": 256, "iters": 400_000, "optim": ("AdamW", 1e-3, (0.9, 0.9), 0)},
        **{"scheduler": cosine(400_000, 1e-7), "loss": ("PSNRLoss", 1), "flips": False},
        "network": {"width": 64, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2]},
    },
    "deblurring/nafnet_w32_gopro": {
        **{"batch": 32, "patch": 256, "iters": 200_000, "optim": ("AdamW", 1e-3, (0.9, 0.9), 1e-3)},
        **{"scheduler": cosine(200_000, 1e-7), "loss": ("PSNRLoss", 1), "flips": True, "type": "NAFNetLocal"},
        "network": {"width": 32, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]},
    },
    "deblurring/nafnet_w64_gopro": {
        **{"batch": 64, "patch": 256, "iters": 400_000, "optim": ("AdamW", 1e-3, (0.9, 0.9), 1e-3)},
        **{"scheduler": cosine(400_000, 1e-7), "loss": ("PSNRLoss", 1), "flips": True, "type": "NAFNetLocal"},
        "network": {"width": 64, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]},
    },
    "deblurring/hinet_gopro": {
        **{"batch": 64, "patch": 256, "iters": 400_000, "optim": ("Adam", 2e-4, (0.9, 0.99), 0)},
        **{"scheduler": cosine(400_000, 1e-7), "loss": ("PSNRLoss", 0.5), "flips": True, "tile": 256},
        "network": {"wf": 64, "hin_position_left": 3, "hin_position_right": 4},
    },
    "deraining/hinet_rain13k": {
        **{"batch": 64, "patch": 256, "iters": 400_000, "optim": ("Adam", 2e-4, (0.9, 0.99), 0), "warmup": 10_000},
        **{"scheduler": cosine(400_000, 1e-7), "loss": ("PSNRLoss", 0.5), "flips": True, "tile": 256},
        "network": {"wf": 64, "hin_position_left": 0, "hin_position_right": 4},
    },
    "denoising/hinet_sidd": {
        **{"batch": 64, "patch": 256, "iters": 400_000, "optim": ("Adam", 2e-4, (0.9, 0.999), 0)},
        **{"scheduler": cosine(400_000, 1e-6), "loss": ("L1Loss", 1), "flips": True},
        "network": {"wf": 64, "hin_position_left": 0, "hin_position_right": 4},
    },
    "deraining/restormer_rain13k": {**RESTORMER, "network": {"LayerNorm_type": "WithBias"}},
    "deblurring/restormer_gopro": {**RESTORMER, "network": {"LayerNorm_type": "WithBias"}},
    "deblurring/restormer_dpdd_single": {**RESTORMER, "network": {"LayerNorm_type": "WithBias"}},
    "deblurring/restormer_dpdd_dual": {**RESTORMER, "network": {"inp_channels": 6, "dual_pixel_task": True}},
    "denoising/restormer_sidd": {**RESTORMER, "network": {"LayerNorm_type": "BiasFree"}, "mixup": True},
    "denoising/restormer_gaussian_color": {**RESTORMER, "network": {"LayerNorm_type": "BiasFree"}, "mixup": True},
    "denoising/restormer_gaussian_gray": {
        **RESTORMER,
        "network": {"LayerNorm_type": "BiasFree", "inp_channels": 1, "out_channels": 1},
        "mixup": True,
    },
}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_the_numbers_of_the_table(name: str) -> None:
    expected, options = TABLE[name], load(OPTIONS / "train" / f"{name}.yml")
    train, loader, val = options.train, options.datasets["train"], options.val
    assert train is not None
    assert train.scheduler is not None
    assert val is not None
    optim, given = train.optim_g, loader.arguments
    assert train.total_batch == expected["batch"]
    assert (loader.gt_sizes or given["gt_size"]) == expected["patch"]
    assert (loader.iters or train.total_iter) == expected["iters"]
    assert (optim.type, optim.lr, optim.betas, optim.weight_decay) == expected["optim"]
    assert train.scheduler.arguments == expected["scheduler"]
    loss = block_arguments(LOSSES, train.pixel_opt.type, train.pixel_opt.arguments)
    assert (train.pixel_opt.type, loss.get("loss_weight", 1)) == expected["loss"]
    assert (given["use_hflip"], given["use_rot"]) == (expected["flips"], expected["flips"])
    assert options.network_g.type == expected.get(
        "type", {"nafn": "NAFNet", "hine": "HINet"}.get(Path(name).name[:4], "Restormer")
    )
    assert expected["network"].items() <= options.network_g.arguments.items()
    assert max(train.warmup_iter, 0) == expected.get("warmup", 0)
    assert (val.grids, val.crop_size) == ("tile" in expected, expected.get("tile"))
    assert (train.mixing_augs is not None and train.mixing_augs.mixup) == expected.get("mixup", False)
    assert (train.use_grad_clip, train.grad_clip, train.ema_decay) == (True, 0.01, 0)


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_says_what_it_reproduces_and_has_a_variant_and_a_test_file(name: str) -> None:
    text = (OPTIONS / "train" / f"{name}.yml").read_text(encoding="utf-8")
    header = text[: text.index("name: ")]
    assert "Published" in header
    prepared = re.search(r"# Data: sam4ir prepare (\w+) --input DOWNLOADS --output (\S+)\n", header)
    assert prepared is not None
    assert prepared[1] in PREPARED
    roots = [v for v in load(OPTIONS / "train" / f"{name}.yml").datasets["train"].arguments.values() if "/" in str(v)]
    assert roots
    assert all(root.startswith(f"{prepared[2]}/train/") and root.endswith(".lmdb") for root in roots)
    assert (OPTIONS / "train" / f"{name}_sam4ir.yml").is_file()
    test = load(OPTIONS / "test" / f"{name}.yml")
    assert test.network_g == load(OPTIONS / "train" / f"{name}.yml").network_g
    assert test.path.pretrain_network_g == f"experiments/{Path(name).name}/models/net_g_latest.pth"
    assert "Published" in (OPTIONS / "test" / f"{name}.yml").read_text(encoding="utf-8")


def test_sam_diffsr_and_its_control_differ_by_masks_and_modulation_only() -> None:
    control, ours = (dict(leaves(parse((SR / f"{n}.yml").read_text())[0])) for n in ("srdiff_x4", "samdiffsr_x4"))
    different = {key for key in {**control, **ours} if control.get(key) != ours.get(key)}
    assert different == {
        "name",
        "datasets.train.masks.store",
        "diffusion.modulation",
        "diffusion.strength",
        "diffusion.mean",
    }


@pytest.mark.parametrize("name", ["srdiff_x4", "samdiffsr_x4"])
def test_diffusion_has_the_numbers_of_the_released_recipe(name: str) -> None:
    options = load(SR / f"{name}.yml")
    train, network = options.train, options.network_g
    assert train is not None
    assert (train.total_batch, options.datasets["train"].arguments["gt_size"]) == (64, 160)
    assert (train.optim_g.type, train.optim_g.lr, train.pixel_opt.type) == ("Adam", 2e-4, "L1Loss")
    assert (options.process.schedule, options.process.timesteps, options.process.s) == ("cosine", 100, 0.008)
    assert train.scheduler is not None
    rate = partial(SCHEDULES.get("MultiStepLR"), **train.scheduler.arguments)
    assert [rate(i, base_lr=2e-4) for i in (199_999, 200_000)] == pytest.approx([2e-4, 1e-4])
    assert train.total_iter == 400_000
    assert network.arguments == {
        **{"hidden_size": 64, "dim_mults": [1, 2, 3, 4], "rrdb_num_feat": 64, "rrdb_num_block": 17, "sr_scale": 4}
    }
    rrdb = load(SR / "rrdb_x4.yml").network_g.arguments
    assert (rrdb["num_feat"], rrdb["num_block"], rrdb["num_grow_ch"]) == (64, 17, 32)
    assert options.path.pretrain_network_c == "experiments/rrdb_x4/models/net_g_latest.pth"


def test_the_benchmark_names_the_sets_of_the_published_table() -> None:
    options = load(OPTIONS / "test" / "sr" / "samdiffsr_x4.yml")
    assert options.val is not None
    assert options.val.published is not None
    figures = published_table(options.val.published).methods["SAM-DiffSR"]
    assert [block.name for block in options.scored.values()] == list(figures)


OWN_OF_SAM4IR = re.compile(
    r"name|model_type|datasets\.\w+\.masks\.store|train\.(spd_opt|sgr_opt|distill)\.\w+|val\.refiner"
    r"|network_r\.\w+|spf\.\w+|train\.mixing_augs\.mixup"
)


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize("path", VARIANTS, ids=named)
def test_a_sam4ir_variant_differs_by_its_own_keys_only(path: Path) -> None:
    base = path.with_name(path.name.replace("_sam4ir", ""))
    plain, sam = (dict(leaves(parse(p.read_text(encoding="utf-8"))[0])) for p in (base, path))
    different = {key for key in {**plain, **sam} if plain.get(key) != sam.get(key)}
    assert all(OWN_OF_SAM4IR.fullmatch(key) for key in different)
    assert {"name", "model_type", "datasets.train.masks.store", "train.spd_opt.balance"} <= different
    assert sam["name"] == f"{plain['name']}_sam4ir"


@pytest.mark.parametrize("path", VARIANTS, ids=named)
def test_the_lines_of_a_sam4ir_variant_that_differ_are_marked(path: Path) -> None:
    base, variant = (
        [line for line in p.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for p in (path.with_name(path.name.replace("_sam4ir", "")), path)
    )
    unmarked = [line for line in variant if line.strip() and not line.endswith("# +")]
    replaced = [line for line in base if line.strip() and line not in unmarked]
    assert [line for line in base if line in unmarked and line.strip()] == unmarked
    assert all(line.split(":")[0] in ("name", "model_type", "  mixing_augs") for line in replaced)


def test_every_recipe_has_a_variant() -> None:
    assert {path.name for path in VARIANTS} == {f"{Path(name).name}_sam4ir.yml" for name in [*TABLE, "nafnet_w8"]}
