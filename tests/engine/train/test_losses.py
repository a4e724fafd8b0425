"""Reconstruction losses in whole runs: which terms a run logs and sums, and errors that name their key."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import World
from engine.train.test_training import records, run
from torch import Tensor

from sam4ir.config.load import load_options, notices
from sam4ir.config.schema import Block
from sam4ir.engine.build import BuildError
from sam4ir.engine.train.check import check
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.losses import LossBuilder, build_refinement
from sam4ir.errors import UserError
from sam4ir.models.restoration import Reconstruction
from sam4ir.utils.image import read_image, write_image

CPU = torch.device("cpu")
TWO_STEPS = ("train:total_iter=2", "train:distill:start_iter=0")
PERCEPTUAL = "{type: PerceptualLoss, layer_weights: {conv2_1: 1}, weights: random"

# in the form of BasicSR's files of a PSNR-oriented model, with the perceptual loss of its adversarial ones
ESRNET = """\
name: ESRNet_SRx4
model_type: SRModel
scale: 4
num_gpu: 1
manual_seed: 0
datasets:
  train:
    name: photographs
    type: PairedImageDataset
    dataroot_gt: {root}/gt
    dataroot_lq: {root}/lq
    filename_tmpl: '{{}}'
    io_backend:
      type: disk
    gt_size: 32
    use_hflip: true
    use_rot: true
    use_shuffle: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
network_g:
  type: RRDBNet
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 8
  num_block: 1
  num_grow_ch: 4
path:
  root: {root}
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 2e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [1]
    gamma: 0.5
  total_iter: 2
  warmup_iter: -1
  pixel_opt:
    type: L1Loss
    loss_weight: !!float 1e-2
    reduction: mean
  perceptual_opt:
    type: PerceptualLoss
    layer_weights:
      'conv5_4': 1
    vgg_type: vgg19
    use_input_norm: true
    range_norm: false
    perceptual_weight: 1.0
    style_weight: {style}
    criterion: l1
    weights: random
val:
  val_freq: !!float 5e3
  save_img: false
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false
logger:
  print_freq: 1
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: false
  wandb:
    project: ~
    resume_id: ~
dist_params:
  backend: nccl
  port: 29500
"""


def logged(folder: Path) -> list[dict[str, float]]:
    """The terms of each step that has any, by their names in the log."""
    steps = [{name: value for name, value in record.items() if name.startswith("l_")} for record in records(folder)]
    return [step for step in steps if step]


@pytest.mark.parametrize(("style", "names"), [(0, ["l_pix", "l_percep"]), (2.5, ["l_pix", "l_percep", "l_style"])])
def test_a_basicsr_file_with_a_perceptual_loss_trains(world: World, style: float, names: list[str]) -> None:
    for file in sorted((world.root / "gt").iterdir()):
        write_image(world.root / "lq" / file.name, read_image(file)[::4, ::4].copy())
    file = world.root / "esrnet.yml"
    file.write_text(ESRNET.format(root=world.root, style=style), encoding="utf-8")
    options = load_options(file)
    assert not any("perceptual" in notice for notice in notices(options))
    trainer = Trainer(options, resume=False)
    trainer.run()
    steps = logged(trainer.paths.run)
    assert [list(step) for step in steps] == [names, names]
    assert all(math.isfinite(value) and value > 0 for step in steps for value in step.values())


def test_named_losses_of_student_and_refiner_are_logged_by_their_names(world: World) -> None:
    features = f"train:losses:features={PERCEPTUAL}, style_weight: 1.0}}"
    step = logged(run(world, True, *TWO_STEPS, features, "train:losses:mse={type: MSELoss}"))[0]
    own = ["pix", "features", "features_style", "mse"]
    refiners = ["refine", "refine_features", "refine_features_style", "refine_mse"]
    assert list(step) == [f"l_{name}" for name in [*own, *refiners, "spd", "sgr"]]


def test_refine_opt_is_the_only_loss_of_the_refiner(world: World) -> None:
    perceptual = f"train:perceptual_opt={PERCEPTUAL}}}"
    step = logged(run(world, True, *TWO_STEPS, perceptual, "train:refine_opt={type: L1Loss}"))[0]
    assert list(step) == ["l_pix", "l_percep", "l_refine", "l_spd", "l_sgr"]


@pytest.mark.parametrize("sam", [False, True])
def test_pixel_opt_may_be_left_out_beside_another_loss(world: World, sam: bool) -> None:
    values = world.values(sam)
    del values["train"]["pixel_opt"]
    values["train"]["losses"] = {"mse": {"type": "MSELoss"}}
    options = load_options(world.write(values), TWO_STEPS if sam else TWO_STEPS[:1])
    assert check(options) == 0
    trainer = Trainer(options, resume=False)
    trainer.run()
    expected = ["l_mse", "l_refine_mse", "l_spd", "l_sgr"] if sam else ["l_mse"]
    assert list(logged(trainer.paths.run)[0]) == expected


IN_PARTS = '''
"""A loss that returns the parts that an option file asks for."""

from sam4ir.registry import LOSSES


@LOSSES.register()
class Parts:
    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def __call__(self, prediction, target):
        return {part: (prediction - target).abs().mean() for part in self.parts}
'''


@pytest.mark.parametrize(
    ("losses", "terms", "error", "message"),
    [
        ({"a": {"type": "Parts", "parts": ["edge"]}, "a_edge": {"type": "L1Loss"}}, {}, UserError, "log name l_a_edge"),
        ({"a": {"type": "Parts", "parts": ["edge"]}}, {"a_edge": {"type": "SPD"}}, UserError, "log name l_a_edge"),
        ({"a": {"type": "Parts", "parts": []}}, {}, ValueError, "loss a: Parts returns no part"),
    ],
)
def test_no_part_of_a_loss_is_lost(
    world: World, losses: dict, terms: dict, error: type[Exception], message: str
) -> None:
    """The parts of a loss are known when it runs: one of two parts with one name would not be trained."""
    (world.root / "loss_in_parts.py").write_text(IN_PARTS, encoding="utf-8")
    values = world.values(True, plugins=["loss_in_parts"])
    values["train"] |= {"losses": losses, "distill": {"start_iter": 0, "terms": terms}}
    trainer = Trainer(load_options(world.write(values)), resume=False)
    with pytest.raises(error, match=message) as caught:
        trainer.run()
    assert isinstance(caught.value, UserError) == (error is UserError)


def test_a_second_loss_changes_the_training_and_a_split_of_one_does_not(world: World) -> None:
    half, mse = "{type: MSELoss, loss_weight: 0.5}", "train:pixel_opt={type: MSELoss}"
    whole = logged(run(world, False, "name=whole", TWO_STEPS[0], mse))
    split = logged(run(world, False, "name=split", TWO_STEPS[0], f"train:pixel_opt={half}", f"train:losses:b={half}"))
    more = logged(run(world, False, "name=more", TWO_STEPS[0], mse, "train:losses:l1={type: L1Loss, loss_weight: 5.0}"))
    for one, two in zip(whole, split, strict=True):
        assert one["l_pix"] == pytest.approx(two["l_pix"] + two["l_b"], rel=1e-4)
    assert more[1]["l_pix"] != pytest.approx(whole[1]["l_pix"], rel=1e-4)


@pytest.mark.parametrize("key", ["perceptual_opt", "losses:features", "refine_opt"])
def test_errors_of_a_loss_name_its_key(world: World, key: str, capsys) -> None:
    override = f"train:{key}={PERCEPTUAL.replace('random', 'none.pth')}}}"
    place = f"train.{key.replace(':', '.')}: none.pth: no such file"
    with pytest.raises(BuildError, match=place):
        Trainer(world.options(True, (override,)), resume=False)
    assert check(world.options(True, (override,))) == 2
    assert f"PROBLEM  {place}" in capsys.readouterr().out


def even(output: Tensor, gt: Tensor) -> Tensor:
    return output.sum() * 0


def in_parts(output: Tensor, gt: Tensor) -> dict[str, Tensor]:
    return {"": even(output, gt), "style": even(output, gt)}


def test_the_refiner_has_the_losses_of_the_student_under_its_own_names() -> None:
    student = Reconstruction({"pix": even, "edge": even, "zebra": even, "percep": in_parts}, {"percep_style": "style"})
    refiner = build_refinement(SimpleNamespace(refine_opt=None), student, LossBuilder(CPU))  # type: ignore[arg-type]
    image = torch.zeros(1, 1, 2, 2)
    assert list(student(image, image)) == ["pix", "edge", "zebra", "percep", "style"]
    wanted = ["refine", "refine_edge", "refine_zebra", "refine_percep", "refine_style"]
    assert list(refiner(image, image)) == wanted


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_a_perceptual_loss_reads_colour_images_alone(channels: int) -> None:
    block = Block(type="PerceptualLoss", layer_weights={"conv2_1": 1}, weights="random")
    assert LossBuilder(CPU).build(block, "train.perceptual_opt")
    with pytest.raises(BuildError, match=rf"train.perceptual_opt: .* have {channels} channel"):
        LossBuilder(CPU, channels).build(block, "train.perceptual_opt")


def test_grey_images_have_no_perceptual_loss(world: World) -> None:
    for file in sorted((world.root / "gt").iterdir()):
        write_image(file, read_image(file)[:, :, :1].copy())
    values = world.values()
    for block in values["datasets"].values():
        block["in_ch"] = 1
    values["network_g"] = {**values["network_g"], "img_channel": 1}
    values["train"]["perceptual_opt"] = {"type": "PerceptualLoss", "layer_weights": {"relu1_1": 1}, "weights": "random"}
    with pytest.raises(BuildError, match=r"train\.perceptual_opt: .*RGB images.* 1 channel"):
        Trainer(load_options(world.write(values)), resume=False)
