"""Option files with the keys and values of the official ones of NAFNet, HINet and Restormer: they load as they are.

official/*.yml hold every key that those repositories' training and test files have (megvii-research/NAFNet
options/, megvii-model/HINet options/, swz30/Restormer */Options/; NAFSSR left out), written down here in our own form.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from sam4ir.config.load import OptionsError, dump_options, load_options, notices
from sam4ir.config.schema import Block, DatasetOptions, Options
from sam4ir.config.signature import block_arguments
from sam4ir.registry import ARCHS, DATASETS, LOSSES, METRICS, SCHEDULES, Registry

HERE = Path(__file__).parent / "official"
OPTIONS = Path(__file__).parents[2] / "options"
FILES = sorted(HERE.glob("*.yml"))

# official file -> our recipe, with what our recipe's own header says to override
SAME = {
    "nafnet_sidd_width32": ("denoising/nafnet_w32_sidd", ()),
    "nafnet_sidd_width64": ("denoising/nafnet_w64_sidd", ()),
    "nafnet_gopro_width32": ("deblurring/nafnet_w32_gopro", ()),
    "nafnet_gopro_width64": ("deblurring/nafnet_w64_gopro", ()),
    "hinet_gopro": ("deblurring/hinet_gopro", ()),
    "hinet_rain13k": ("deraining/hinet_rain13k", ()),
    "hinet_sidd": ("denoising/hinet_sidd", ()),
    "hinet_sidd_half": ("denoising/hinet_sidd", ("network_g:wf=32",)),
    "restormer_deraining": ("deraining/restormer_rain13k", ()),
    "restormer_deblurring": ("deblurring/restormer_gopro", ()),
    "restormer_defocus_single": ("deblurring/restormer_dpdd_single", ()),
    "restormer_defocus_dual": ("deblurring/restormer_dpdd_dual", ()),
    "restormer_real": ("denoising/restormer_sidd", ()),
    "restormer_color": ("denoising/restormer_gaussian_color", ()),
    "restormer_gray": ("denoising/restormer_gaussian_gray", ()),
    "restormer_color_sigma15": (
        "denoising/restormer_gaussian_color",
        ("datasets:train:sigma_type=constant", "datasets:train:sigma_range=15", "datasets:val:sigma_test=15"),
    ),
}
WHEREABOUTS = {"dataroot_gt", "dataroot_lq", "dataroot_lqL", "dataroot_lqR", "io_backend", "gt_size"}


load = functools.cache(load_options)  # options are frozen


def whole(registry: Registry, block: Block, leave_out: Collection[str] = ()) -> tuple[object, dict[str, Any]]:
    """(what a block names, all its arguments, those that the file leaves to the default too)."""
    target = registry.get(block.type)
    handed = dict.fromkeys(registry.handed & set(inspect.signature(target).parameters))
    bound = inspect.signature(target).bind_partial(**handed, **block_arguments(registry, block.type, block.arguments))
    bound.apply_defaults()
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in bound.arguments.items() if k not in leave_out}
    if found.get("use_flip") is not None:  # another name of use_hflip
        found["use_hflip"] = found["use_flip"]
    return target, {k: v for k, v in found.items() if k != "use_flip"}


def patches(block: DatasetOptions) -> tuple[Any, ...]:
    """Patch sizes, micro-batches and iterations."""
    if block.gt_sizes:
        return block.gt_sizes, block.mini_batch_sizes, block.iters
    return block.arguments["gt_size"], block.batch_size_per_gpu, None


def recipe(options: Options) -> dict[str, Any]:
    """All that a training is, but for where its data lie."""
    train, loader, val = options.train, options.datasets["train"], options.val
    assert train is not None
    assert val is not None
    assert train.scheduler is not None
    plain = train.model_dump(exclude={"total_batch", "pixel_opt", "scheduler", "mixing_augs"})
    plain["optim_g"]["weight_decay"] = train.optim_g.decay
    return {
        **plain,
        "mixup": train.mixing_augs if train.mixing_augs is not None and train.mixing_augs.mixup else None,
        "loss": whole(LOSSES, train.pixel_opt),
        "scheduler": whole(SCHEDULES, train.scheduler),
        "network": whole(ARCHS, options.network_g),
        "samples": whole(DATASETS, loader, WHEREABOUTS),
        "patches": patches(loader),
        "shuffled": loader.use_shuffle,
        "scored": (val.use_image, val.grids, val.crop_size),
        "validated": [whole(DATASETS, block, WHEREABOUTS) for block in options.phase("val").values()],
        "seed": options.manual_seed,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_official_file_loads_unchanged(path: Path, tmp_path: Path) -> None:
    options = load(path)
    copy = tmp_path / "saved.yml"
    copy.write_text(dump_options(options), encoding="utf-8")
    assert load_options(copy) == options
    assert options.model_type in ("ImageRestorationModel", "ImageCleanModel")


def test_every_training_file_has_a_recipe_of_ours() -> None:
    assert SAME.keys() == {path.stem for path in FILES if not path.stem.endswith("_test")}


@pytest.mark.parametrize("name", SAME)
def test_an_official_training_file_is_our_recipe(name: str) -> None:
    ours, overrides = SAME[name]
    official = load(HERE / f"{name}.yml")
    own = load(OPTIONS / "train" / f"{ours}.yml", overrides)
    expected, found = recipe(official), recipe(own)
    if name == "hinet_rain13k":  # its file leaves the validation set to the user
        del expected["validated"], found["validated"]
    assert found == expected


@pytest.mark.parametrize("name", SAME)
def test_our_total_batch_is_that_of_the_official_number_of_gpus(name: str) -> None:
    official = load(HERE / f"{name}.yml")
    own = load(OPTIONS / "train" / f"{SAME[name][0]}.yml", ()).train
    loader = official.datasets["train"]
    assert own is not None
    assert isinstance(official.num_gpu, int)
    total = own.total_batch
    if loader.mini_batch_sizes:
        assert total == tuple(official.num_gpu * batch for batch in loader.mini_batch_sizes)
    else:
        assert total == official.num_gpu * loader.batch_size_per_gpu
    assert f"train.total_batch: {list(total) if isinstance(total, tuple) else total} makes" in notices(official)[0]


EVERYWHERE = ["num_gpu", "dist_params"]
IDLE = ["datasets.train.dataroot_lq", "datasets.train.filename_tmpl", "datasets.val.dataroot_lq"]
WHOLE_IMAGES = ["val.rgb2bgr", "val.max_minibatch"]
NOTED = {
    "hinet_rain13k": ["datasets.val"],
    "hinet_sidd": WHOLE_IMAGES,
    "hinet_sidd_half": WHOLE_IMAGES,
    "hinet_sidd_test": ["val.rgb2bgr"],
    "restormer_deraining": WHOLE_IMAGES,
    "restormer_deblurring": WHOLE_IMAGES,
    "restormer_defocus_single": WHOLE_IMAGES,
    "restormer_defocus_dual": WHOLE_IMAGES,
    "restormer_real": WHOLE_IMAGES,
    "restormer_color": IDLE + WHOLE_IMAGES,
    "restormer_color_sigma15": IDLE + WHOLE_IMAGES,
    "restormer_gray": IDLE + WHOLE_IMAGES,
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_keys_of_an_official_file_work_or_are_noted(path: Path) -> None:
    noted = [notice.split(" has no effect: ")[0] for notice in notices(load(path))]
    assert noted == EVERYWHERE + NOTED.get(path.stem, [])


def test_test_files_score_their_sets_whatever_they_call_them() -> None:
    for path in FILES:
        options = load(path)
        assert list(options.scored) == (
            {"nafnet_sidd": ["val"]}.get(path.stem[:11], ["test"]) if not options.train else []
        )


def test_official_metrics_are_ours() -> None:
    for path in FILES:
        val = load(path).val
        assert val is not None
        for block in val.metrics.values():
            assert block.type in METRICS
            assert block.arguments["crop_border"] == 0


def test_a_placeholder_of_a_validation_set_is_none() -> None:
    official = load(HERE / "hinet_rain13k.yml")
    assert official.phase("val") == {}
    assert [*official.datasets] == ["train", "val"]
    with pytest.raises(OptionsError, match=r"datasets\.train\.dataroot_gt: null: expected text"):
        load_options(HERE / "hinet_rain13k.yml", ["datasets:train:dataroot_gt=~", "datasets:train:dataroot_lq=~"])
    with pytest.raises(OptionsError, match=r"datasets\.val\.dataroot_lq: null: expected text"):
        load_options(HERE / "hinet_rain13k.yml", ["datasets:val:dataroot_gt=gt"])


@pytest.mark.parametrize(
    ("name", "key", "near"),
    [
        ("nafnet_sidd_width32", "train:warmup_itr", "warmup_iter"),
        ("nafnet_sidd_width32", "datasets:train:use_flips", "use_flip"),
        ("nafnet_sidd_width32", "path:strict_load", "strict_load_g"),
        ("hinet_gopro", "network_g:hin_position_lef", "hin_position_left"),
        ("hinet_gopro", "val:max_minibatches", "max_minibatch"),
        ("restormer_deraining", "datasets:train:mini_batch_size", "mini_batch_sizes"),
        ("restormer_deraining", "datasets:train:geometric_aug", "geometric_augs"),
        ("restormer_deraining", "train:scheduler:eta_min", "eta_mins"),
        ("restormer_deraining", "train:mixing_augs:mixup_bet", "mixup_beta"),
        ("restormer_color", "datasets:val:sigma_tst", "sigma_test"),
        ("restormer_defocus_dual", "datasets:val:dataroot_lq", "dataroot_lqR"),
    ],
)
def test_a_misspelt_key_of_an_official_file_is_an_error(name: str, key: str, near: str) -> None:
    with pytest.raises(OptionsError) as error:
        load_options(HERE / f"{name}.yml", [f"{key}=1"])
    (problem,) = error.value.problems
    assert problem.message.startswith(f"unknown key; did you mean {near!r}?")


def test_official_files_have_the_defaults_of_their_code_and_ours_keep_theirs(tmp_path: Path) -> None:
    for path in FILES:
        val = load(path).val
        assert val is not None
        assert val.overlap == (0 if val.grids else None), path.stem
    lines = "name: x\nnetwork_g: {type: HINet}\nval: {grids: true, crop_size: 64}\n"
    for model_type, overlap in (("ImageRestorationModel", 0), ("SRModel", 0), ("SAM4IRModel", None), (None, 8)):
        file = tmp_path / "o.yml"
        file.write_text(lines + (f"model_type: {model_type}\n" if model_type else ""), encoding="utf-8")
        options = load_options(file)
        assert options.val.overlap == overlap
        assert load_options(file, ["val:overlap=8"]).val.overlap == 8
        file.write_text(dump_options(options), encoding="utf-8")
        assert load_options(file) == options


@pytest.mark.parametrize(("scale", "crop", "expected"), [(1, 256, 256), (4, 256, 64), (4, 255, 63)])
def test_nafnets_sides_of_a_tile_are_pixels_of_the_output(tmp_path: Path, scale: int, crop: int, expected: int) -> None:
    file = tmp_path / "o.yml"
    file.write_text(
        f"name: x\nmodel_type: ImageRestorationModel\nscale: {scale}\nnetwork_g: {{type: NAFNet}}\n"
        f"val: {{grids: true, crop_size_h: {crop}, crop_size_w: {crop}}}\n",
        encoding="utf-8",
    )
    val = load_options(file).val
    assert val is not None
    assert val.crop_size == expected
