"""Keys that need or exclude each other: stages, batches, mixing, degradations; official spellings; changes of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sam4ir.config.load import OptionsError, changes, dump_options, load_options, notices
from sam4ir.config.schema import MixingOptions, Options

TEXT = """\
name: small
datasets:
  train:
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    batch_size_per_gpu: 8
    gt_size: 96
    gt_sizes: [32, 64, 96]
    mini_batch_sizes: [8, 4, 1]
    iters: [30, 20, 10]
network_g: {type: NAFNet, width: 8, enc_blk_nums: [1], dec_blk_nums: [1]}
train:
  total_iter: 60
  total_batch: [16, 8, 2]
  optim_g: {type: AdamW, lr: 1e-3}
  pixel_opt: {type: L1Loss}
"""
MASKS = "    masks: {store: masks}\n"
NOISE = """\
name: small
datasets:
  train:
    type: DegradedImageDataset
    dataroot_gt: gt
    degradations:
      - {type: MotionBlur, length: [5, 20]}
      - {type: GaussianNoise, sigma: 10}
    gt_size: 32
network_g: {type: NAFNet, width: 8, enc_blk_nums: [1], dec_blk_nums: [1]}
train: {total_iter: 60, optim_g: {type: AdamW, lr: 1e-3}, pixel_opt: {type: L1Loss}}
"""

Load = Callable[..., Options]
Complain = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = TEXT, *overrides: str) -> Options:
        (tmp_path / "small.yml").write_text(text, encoding="utf-8")
        return load_options(tmp_path / "small.yml", overrides)

    return load


@pytest.fixture
def complain(load: Load) -> Complain:
    """The problems of a text, which must not load."""

    def complain(text: str = TEXT, *overrides: str) -> list[str]:
        with pytest.raises(OptionsError) as error:
            load(text, *overrides)
        return [str(problem) for problem in error.value.problems]

    return complain


def swap(old: str, new: str, text: str = TEXT) -> str:
    assert old in text
    return text.replace(old, new, 1)


def test_stages_load_and_say_nothing(load: Load) -> None:
    options = load()
    assert options.datasets["train"].gt_sizes == (32, 64, 96)
    assert options.train is not None
    assert options.train.total_batch == (16, 8, 2)
    assert notices(options) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("    iters: [30, 20, 10]\n", "", "datasets.train.iters: is required with gt_sizes and mini_batch_sizes: a "),
        (
            "    gt_sizes: [32, 64, 96]\n",
            "",
            "datasets.train.gt_sizes: is required with mini_batch_sizes and iters: a ",
        ),
        (
            "[8, 4, 1]",
            "[8, 4]",
            "line 3: datasets.train: has stages of different numbers (gt_sizes 3, mini_batch_sizes ",
        ),
        ("[8, 4, 1]", "[8, 4, 0]", "line 10: datasets.train.mini_batch_sizes.2: 0: expected at least 1"),
        ("[8, 4, 1]", "[8, 3, 1]", "line 15: train.total_batch: 8 is no multiple of mini_batch_sizes 3 of stage 2"),
        ("[16, 8, 2]", "20", "line 15: train.total_batch: 20 is no multiple of mini_batch_sizes 8 of stage 1"),
        ("[16, 8, 2]", "[16, 8]", "train.total_batch: [16, 8] has 2 entries for 3 stages; give one a stage"),
        ("[16, 8, 2]", "[]", "train.total_batch: []: expected "),
    ],
)
def test_stages_that_do_not_fit(complain: Complain, old: str, new: str, complaint: str) -> None:
    (found,) = complain(swap(old, new))
    assert complaint in found


def test_a_list_of_batches_needs_stages(complain: Complain, load: Load) -> None:
    stages = TEXT[TEXT.index("    gt_sizes") : TEXT.index("network_g")]
    (found,) = complain(TEXT.replace(stages, ""))
    assert "train.total_batch: [16, 8, 2] is a batch a stage, but the training set has no gt_sizes; give one" in found
    train = load(TEXT.replace(stages, ""), "train:total_batch=16").train
    assert train is not None
    assert train.total_batch == 16


def test_one_batch_for_all_stages(load: Load) -> None:
    train = load(TEXT, "train:total_batch=16").train
    assert train is not None
    assert train.total_batch == 16


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gt_size", 64, "datasets.train.gt_size has no effect: gt_sizes sets it, stage by stage"),
        (
            "batch_size_per_gpu",
            2,
            "datasets.train.batch_size_per_gpu has no effect: mini_batch_sizes sets it, stage by",
        ),
    ],
)
def test_what_the_stages_overrule_is_noted(load: Load, key: str, value: int, said: str) -> None:
    (found,) = notices(load(TEXT, f"datasets:train:{key}={value}"))
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("total", "end"),
    [(50, "never reached: stage 3"), (20, "never reached: stage 2, 3"), (55, "the last stage is cut short")],
)
def test_stages_that_are_not_reached_are_noted(load: Load, total: int, end: str) -> None:
    expected = f"datasets.train.iters adds up to 60, but train.total_iter is {total}: {end}"
    assert notices(load(TEXT, f"train:total_iter={total}")) == [expected]


def test_a_longer_training_stays_in_its_last_stage(load: Load) -> None:
    assert notices(load(TEXT, "train:total_iter=100")) == []


@pytest.mark.parametrize(
    ("length", "why"),
    [
        (50, "the rate rises again after it has fallen to eta_min"),
        (100, None),
        (150, "the rate ends before it has fallen to eta_min"),
    ],
)
def test_a_cosine_of_another_length_than_the_run_is_named(load: Load, length: int, why: str | None) -> None:
    schedule = f"train:scheduler={{type: TrueCosineAnnealingLR, T_max: {length}}}"
    expected = [f"train.scheduler.T_max is {length}, but train.total_iter is 100: {why}"] if why else []
    assert notices(load(TEXT, "train:total_iter=100", schedule)) == expected


def test_stages_of_a_validation_set_are_noted(load: Load) -> None:
    val = "  val: {type: PairedImageDataset, dataroot_gt: a, dataroot_lq: b, gt_sizes: [8]}\nnetwork_g"
    scored = ("val:val_freq=8", "val:metrics:psnr:type=psnr")
    assert notices(load(swap("network_g", val), *scored)) == [
        "datasets.val.gt_sizes has no effect: only training has stages"
    ]


@pytest.mark.parametrize(
    ("val_set", "overrides", "start"),
    [
        (False, ["val:val_freq=8"], "val.val_freq has no effect: datasets has no validation set; name one `val`"),
        (False, ["val:metrics:psnr:type=psnr"], "val.metrics has no effect: datasets has no validation set"),
        (True, [], "datasets.val has no effect: the file has no block `val`; add val: {val_freq: 5000"),
        (True, ["val:val_freq=8"], "datasets.val is restored and not scored: val.metrics names none"),
        (True, ["val:val_freq=8", "val:save_img=true"], None),
        (True, ["val:val_freq=8", "val:metrics:psnr:type=psnr"], None),
        (False, ["val:save_img=true"], "val.save_img has no effect: datasets has no validation set"),
        (False, ["val:grids=true", "val:crop_size=64"], None),
        (True, ["val:metrics:psnr:type=psnr"], "datasets.val has no effect: nothing is validated without val.val_freq"),
    ],
)
def test_a_training_that_validates_nothing_is_noted(
    load: Load, val_set: bool, overrides: list[str], start: str | None
) -> None:
    text = TEXT
    if val_set:
        text = swap("network_g", "  val: {type: PairedImageDataset, dataroot_gt: a, dataroot_lq: b}\nnetwork_g")
    lines = notices(load(text, *overrides))
    assert len(lines) == (start is not None)
    assert all(line.startswith(str(start)) for line in lines)


@pytest.mark.parametrize("key", ["crop_size", "overlap", "max_minibatch"])
def test_tile_keys_without_tiles_are_noted(load: Load, key: str) -> None:
    assert notices(load(TEXT, f"val:{key}=64"))[0].startswith(f"val.{key} has no effect: without grids: true ")
    sides = ["val:crop_size=128"] if key != "crop_size" else []
    assert notices(load(TEXT, "val:grids=true", *sides, f"val:{key}=64")) == []


@pytest.mark.parametrize("text", [TEXT + "model_type: SAM4IRModel\n", TEXT])
def test_mixup_does_not_go_with_masks(complain: Complain, load: Load, text: str) -> None:
    masked = swap("    gt_size: 96\n", "    gt_size: 96\n" + MASKS, text)
    (found,) = complain(masked, "train:mixing_augs:mixup=true")
    assert (
        "train.mixing_augs.mixup: lays two images over each other, and their regions cannot be; with masks, set "
        in found
    )
    load(masked, "train:mixing_augs:mixup=false")
    load(TEXT, "train:mixing_augs:mixup=true")


def test_mixup_in_train_is_that_of_mixing_augs(load: Load, complain: Complain) -> None:
    for value in (True, False):
        train = load(TEXT, f"train:mixup={str(value).lower()}").train
        assert train is not None
        assert train.mixing_augs == MixingOptions(mixup=value)
    assert complain(TEXT, "train:mixup=false", "train:mixing_augs={mixup: true}") == [
        "train.mixup: sets mixing_augs.mixup, which has another value; keep one (set by --force_yml)"
    ]
    assert complain(TEXT, "train:mixup=1") == ["train.mixup: 1: expected true or false (set by --force_yml)"]


def test_basicsr_does_not_clip_and_the_others_do(load: Load) -> None:
    for model, clips in (("SRModel", False), ("ImageRestorationModel", True), ("ImageCleanModel", True)):
        train = load(TEXT, f"model_type={model}").train
        assert train is not None
        assert (train.use_grad_clip, train.grad_clip) == (clips, 0.01)
    train = load(TEXT, "model_type=SRModel", "train:use_grad_clip=true").train
    assert train is not None
    assert train.use_grad_clip


@pytest.mark.parametrize("name", ["LinearLR", "VibrateLR"])
def test_schedulers_over_the_whole_training_take_its_length(load: Load, complain: Complain, name: str) -> None:
    train = load(TEXT, "train:total_iter=!!float 2e2", f"train:scheduler:type={name}").train
    assert train is not None
    assert train.scheduler is not None
    assert train.scheduler.arguments == {"total_iter": 200}
    own = load(TEXT, f"train:scheduler={{type: {name}, total_iter: 300}}").train
    assert own is not None
    assert own.scheduler is not None
    assert own.scheduler.arguments == {"total_iter": 300}
    (found,) = complain(TEXT, "train:total_iter=x", f"train:scheduler:type={name}")[:1]
    assert found.startswith("train.total_iter: 'x': expected a whole number")


@pytest.mark.parametrize(
    ("keys", "crop_size"),
    [("crop_size_h: 64, crop_size_w: 64", 64), ("crop_size_h: 64, crop_size_w: 64, crop_size: 64", 64)],
)
def test_height_and_width_of_a_tile(load: Load, keys: str, crop_size: int) -> None:
    val = load(f"{TEXT}val: {{grids: true, {keys}}}\n").val
    assert val is not None
    assert val.crop_size == crop_size


@pytest.mark.parametrize(
    "keys", ["crop_size_h: 64, crop_size_w: 32", "crop_size_h: 64", "crop_size_h: 64, crop_size_w: 64, crop_size: 32"]
)
def test_a_tile_that_is_not_square(complain: Complain, keys: str) -> None:
    found = complain(f"{TEXT}val: {{{keys}}}\n")
    assert found[0] == (
        "line 18: val.crop_size_h: tiles are square here: "
        "give crop_size, or crop_size_h and crop_size_w of the same value"
    )


@pytest.mark.parametrize(("value", "on"), [("8", True), ("1", False), ("~", False)])
def test_eight_transposes_are_self_ensemble(load: Load, value: str, on: bool) -> None:
    val = load(f"{TEXT}val: {{trans_num: {value}}}\n").val
    assert val is not None
    assert val.self_ensemble is on


def test_other_numbers_of_transposes(complain: Complain) -> None:
    for value in ("4", "true", "[8]"):
        (found,) = complain(f"{TEXT}val: {{trans_num: {value}}}\n")
        assert "val.trans_num: " in found
        assert "expected 8 (the mean over all flips and rotations) or 1 (none)" in found
    (found,) = complain(f"{TEXT}val: {{trans_num: 8, self_ensemble: false}}\n")
    assert found == "line 18: val.trans_num: sets self_ensemble, which has another value; keep one"


def test_keys_of_the_demo_and_of_random_tiles_are_noted(load: Load) -> None:
    text = f"{TEXT}val: {{random_crop_num: 2}}\nimg_path: {{input_img: a.png, output_img: b.png}}\n"
    assert [notice.split(" has no effect")[0] for notice in notices(load(text))] == ["img_path", "val.random_crop_num"]


def test_a_wandb_project_has_an_effect(load: Load) -> None:
    for project in ("~", "mine"):
        assert notices(load(TEXT, f"logger:wandb={{project: {project}, resume_id: ~}}")) == []


def test_a_number_of_gpus_is_noted_with_the_batch_that_it_makes(load: Load) -> None:
    def said(*overrides: str) -> str:
        (found,) = notices(load(TEXT, *overrides))
        assert found.startswith("num_gpu has no effect: the number of processes is torchrun's")
        return found

    assert "total_batch" not in said("num_gpu=8")  # the file has one
    assert "train.total_batch: [64, 32, 8] makes the batch of 8 GPUs" in said("num_gpu=8", "train:total_batch=~")
    assert "total_batch" not in said("num_gpu=1", "train:total_batch=~")
    assert "total_batch" not in said("num_gpu=auto", "train:total_batch=~")


def test_degradations_load(load: Load) -> None:
    options = load(NOISE)
    chain = options.datasets["train"].degradations
    assert chain is not None
    assert [(block.type, block.arguments) for block in chain] == [
        ("MotionBlur", {"length": [5, 20]}),
        ("GaussianNoise", {"sigma": 10}),
    ]
    assert load(dump_options(options)) == options


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("sigma: 10", "sigm: 10", "line 8: datasets.train.degradations.1.sigm: unknown key; did you mean 'sigma'?"),
        ("sigma: 10", "sigma: ten", "line 8: datasets.train.degradations.1.sigma: 'ten': expected "),
        (
            "MotionBlur",
            "MotinBlur",
            "line 7: datasets.train.degradations.0.type: no degradation is called 'MotinBlur'; did",
        ),
        (
            "{type: MotionBlur, length: [5, 20]}",
            "MotionBlur",
            "line 7: datasets.train.degradations.0: 'MotionBlur': exp",
        ),
        (
            "PairedImageDataset",
            "PairedImageDataset\n    degradations: [{type: Jpeg}]",
            "line 5: datasets.train.degradations: PairedImageDataset takes none; data sets that do: DegradedImage",
        ),
    ],
)
def test_degradations_that_do_not_fit(complain: Complain, old: str, new: str, complaint: str) -> None:
    found = complain(swap(old, new, NOISE if old in NOISE else TEXT))
    assert any(complaint in problem for problem in found), found
    assert sum("is required and missing" not in problem for problem in found) == 1


def test_a_data_set_that_degrades_needs_to_know_how(complain: Complain) -> None:
    chain = NOISE[NOISE.index("    degradations") : NOISE.index("    gt_size")]
    (found,) = complain(NOISE.replace(chain, ""))
    assert found == (
        "line 3: datasets.train.degradations: is required by DegradedImageDataset: a list of {type: NAME, ...}"
    )
    (found,) = complain(NOISE.replace(chain, "    degradations: []\n"))
    assert "line 6: datasets.train.degradations: []: expected at least 1 value(s)" in found


def test_changes_name_what_differs_down_to_one_degradation(load: Load) -> None:
    options = load(NOISE)
    saved = dump_options(options)
    assert changes(saved, options) == []
    assert changes(saved, load(NOISE.replace("sigma: 10", "sigma: 15"))) == [
        "datasets.train.degradations.1.sigma: 10, now 15"
    ]
    before = dump_options(load())
    assert changes(
        before, load(TEXT, "precision=fp16", "train:total_batch=16", "datasets:train:iters=[20, 20, 20]")
    ) == [
        "precision: fp32, now fp16",
        "datasets.train.iters: [30, 20, 10], now [20, 20, 20]",
        "train.total_batch: [16, 8, 2], now 16",
    ]


def test_a_key_that_an_older_file_lacks_has_not_changed(load: Load) -> None:
    options = load(NOISE)
    older = "\n".join(line for line in dump_options(options).splitlines() if "compile" not in line)
    assert changes(older, options) == []
    assert changes(older, load(NOISE, "compile=true")) == ["compile: False, now True"]
    assert changes("not: [options", options) != []


NAMED = "  pixel_opt: {type: L1Loss}\n  losses: {edges: {type: MSELoss}, tone: {type: PSNRLoss, toY: true}}\n"
WITH_LOSSES = TEXT.replace("  pixel_opt: {type: L1Loss}\n", NAMED)
PERCEPTUAL = "  perceptual_opt: {type: PerceptualLoss, layer_weights: {conv5_4: 1.0}, style_weight: 1}\n"


def test_losses_have_names_and_survive_a_saved_file(load: Load, tmp_path: Path) -> None:
    options = load(WITH_LOSSES + PERCEPTUAL)
    assert options.train is not None
    assert {name: block.type for name, block in options.train.losses.items()} == {
        "edges": "MSELoss",
        "tone": "PSNRLoss",
    }
    assert options.train.perceptual_opt is not None
    assert options.train.perceptual_opt.arguments["layer_weights"] == {"conv5_4": 1.0}
    assert load(dump_options(options)) == options
    assert notices(options) == []


@pytest.mark.parametrize("losses", [NAMED.splitlines(keepends=True)[1], PERCEPTUAL])
def test_pixel_opt_may_be_left_out_beside_another_loss(load: Load, losses: str) -> None:
    options = load(swap("  pixel_opt: {type: L1Loss}\n", losses))
    assert options.train is not None
    assert options.train.pixel_opt is None


@pytest.mark.parametrize("losses", ["", "  losses: {}\n", "  losses:\n"])
def test_a_training_without_a_loss_is_refused(complain: Complain, losses: str) -> None:
    complaint = "train.pixel_opt: is required where train.losses names no loss"
    assert any(complaint in problem for problem in complain(swap("  pixel_opt: {type: L1Loss}\n", losses)))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pix", "l_pix is the log name of another term"),
        ("refine", "l_refine is the log name of another term"),
        ("refine_tone", "l_refine_tone is the log name of another term"),
        ("spd", "l_spd is the log name of another term"),
        ("sgr", "l_sgr is the log name of another term"),
        ("noise", "l_noise is the log name of another term"),
        ("percep", "l_percep is the log name of another term"),
        ("style", "l_style is the log name of another term"),
        ("tone_style", "l_tone_style is the log name of the style part of tone"),
        ("high-pass", "take letters, digits and _ alone"),
    ],
)
def test_the_name_of_a_loss_is_its_own(complain: Complain, name: str, complaint: str) -> None:
    (problem,) = complain(swap("edges", name, WITH_LOSSES) + PERCEPTUAL)
    assert f"train.losses.{name}: " in problem
    assert complaint in problem


@pytest.mark.parametrize("name", ["percep", "style"])
def test_basicsrs_log_names_are_free_without_perceptual_opt(load: Load, name: str) -> None:
    load(swap("edges", name, WITH_LOSSES))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("MSELoss", "MSELos", r"train.losses.edges.type: no loss is called 'MSELos'; did you mean 'MSELoss'"),
        ("toY", "to_y", r"train.losses.tone.to_y: unknown key; did you mean 'toY'"),
        ("conv5_4: 1.0", "conv5_4: high", "train.perceptual_opt.layer_weights.conv5_4"),
        ("style_weight", "style_wight", "train.perceptual_opt.style_wight: unknown key; did you mean 'style_weight'"),
        ("style_weight: 1", "build_features: 1", "train.perceptual_opt.build_features: is handed over by the program"),
        ("layer_weights: {conv5_4: 1.0}, ", "", "train.perceptual_opt.layer_weights"),
    ],
)
def test_arguments_of_losses_are_checked(complain: Complain, old: str, new: str, complaint: str) -> None:
    (problem,) = complain(swap(old, new, WITH_LOSSES + PERCEPTUAL))
    assert complaint in problem
