"""Contests of sam4ir benchmark between networks: training steps, SAM4IR steps, inference."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam4ir.benchmarks import reference_forms
from sam4ir.benchmarks.timing import Agreement, Aim, Contest, Form, relative_error
from sam4ir.config.load import load_options
from sam4ir.config.schema import Options
from sam4ir.data.sample import Batch
from sam4ir.engine import build
from sam4ir.engine.train import build as build_train
from sam4ir.errors import UserError
from sam4ir.models.restoration import Loss, Reconstruction, last_output, restore, total
from sam4ir.registry import LOSSES
from sam4ir.utils.shipped import shipped

OPTIONS = shipped("options/train")
SAM4IR = OPTIONS / "denoising" / "nafnet_w32_sidd_sam4ir.yml"
REGIONS_A_SIDE = 5
TINY = {
    "NAFNet": ("width=4", "enc_blk_nums=[1,1]", "middle_blk_num=1", "dec_blk_nums=[1,1]"),
    "HINet": ("wf=4", "depth=2"),
    "Restormer": ("dim=8", "num_blocks=[1,1,1,1]", "num_refinement_blocks=1", "heads=[1,2,2,4]"),
}


@dataclass(frozen=True)
class Recipe:
    """A network's recipe and the sizes at which it is measured.

    width: (argument that sets the width, value). patch: side of training patches, in pixels. size: side of the images
    to restore. aims: speed-up of a training step in fp32 and bf16.
    """

    file: Path
    width: tuple[str, int]
    patch: int
    size: int
    aims: tuple[float, float]


RECIPES = {
    "NAFNet": Recipe(OPTIONS / "denoising" / "nafnet_w32_sidd.yml", ("width", 32), 256, 512, (1.45, 2.0)),
    "HINet": Recipe(OPTIONS / "denoising" / "hinet_sidd.yml", ("wf", 32), 256, 512, (1.4, 2.2)),
    "Restormer": Recipe(OPTIONS / "deraining" / "restormer_rain13k.yml", ("dim", 48), 128, 128, (1.55, 1.75)),
}


@dataclass(frozen=True)
class Setting:
    """The settings of the command line; None takes the recipe's value."""

    device: torch.device
    precisions: Sequence[str] = ("fp32", "bf16")
    patch: int | None = None
    batch: int = 1
    width: int | None = None
    compiled: bool = False
    reference_bf16: bool = False
    quick: bool = False
    overrides: Sequence[str] = field(default_factory=tuple)

    def options(self, network: str, file: Path, precision: str, *more: str) -> Options:
        """Return the recipe's options with the command line's changes and `more`."""
        key, width = RECIPES[network].width
        arguments = TINY[network] if self.quick else (f"{key}={self.width or width}",)
        changes = [f"network_g:{argument}" for argument in arguments]
        device = "cpu" if self.device.type == "cpu" else str(self.device)
        overrides = [f"device={device}", f"precision={precision}", *changes, *more, *self.overrides]
        return load_options(file, overrides, named_by_user=True)

    def side(self, network: str, own: int) -> int:
        """Return the side of patches or images: the command line's, 32 in a quick run, or `own`."""
        return self.patch or (32 if self.quick else own)


def network_of(options: Options, device: torch.device) -> nn.Module:
    """Build network_g of an option file, with the initial weights of its seed."""
    seed, channels_last = options.manual_seed, options.channels_last
    return build.build_network(options.network_g, "g", device, seed=seed, channels_last=channels_last)


def awake(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state after its NAFNet scales became random: at zero they would hide errors."""
    random = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return network.state_dict()


def noisy_batch(batch: int, side: int, device: torch.device) -> Batch:
    """Return smooth GT, noisy LQ and a grid of regions: gt, lq (b, 3, side, side); regions (b, side, side)."""
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 8, 8, generator=random)
    gt = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    lq = gt + 0.1 * torch.randn(gt.shape, generator=random)
    cell = torch.arange(side) * REGIONS_A_SIDE // side
    regions = (1 + REGIONS_A_SIDE * cell.view(-1, 1) + cell).repeat(batch, 1, 1)
    names = [str(i) for i in range(batch)]
    count = REGIONS_A_SIDE**2
    return Batch(
        lq.to(device), gt.to(device), names, list(range(batch)), {"regions": regions.to(device)}, {"regions": count}
    )


class OurStep:
    """The training step that sam4ir train takes with these options; each call takes one."""

    def __init__(self, options: Options, device: torch.device, batch: Batch, state: dict[str, Tensor]) -> None:
        self.parts = build_train.build_parts(options, device)
        self.step = build_train.build_step(options, self.parts, device)
        self.batch = batch
        self.network = self.parts.model.networks["g"]
        self.network.load_state_dict(state)

    def __call__(self) -> None:
        if not self.step([self.batch], iteration=1, measure=False).finite:
            raise UserError("a step of the benchmark was not finite; its figures would mean nothing")


class ReferenceStep:
    """The same step in the reference form; each call takes one."""

    def __init__(self, options: Options, device: torch.device, batch: Batch, state: dict[str, Tensor]) -> None:
        train = options.train
        assert train is not None
        self.network = reference(options, state).to(device)
        optim = train.optim_g
        optimiser = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.type]
        self.optimiser = optimiser(self.network.parameters(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
        self.loss, self.batch = loss_of(options), batch
        self.clip = train.grad_clip
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    def __call__(self) -> None:
        reference_forms.training_step(
            self.network, self.optimiser, self.loss, self.clip, self.batch.lq, self.batch.gt, self.autocast
        )


def reference(options: Options, state: dict[str, Tensor]) -> nn.Module:
    """Return the network of an option file in the reference form, with the weights of ours."""
    network_class = reference_forms.NETWORKS[options.network_g.type]
    parameters = inspect.signature(network_class).parameters
    arguments = options.network_g.arguments
    network = network_class(**{name: value for name, value in arguments.items() if name in parameters})
    network.load_state_dict(state)
    return network


def loss_of(options: Options) -> Loss:
    """Return the recipe's reconstruction loss."""
    assert options.train is not None
    assert options.train.pixel_opt is not None
    loss: Loss = build.build_part(LOSSES, options.train.pixel_opt, "train.pixel_opt")
    return loss


def gradients(network: nn.Module, loss: Loss, batch: Batch, precision: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of one batch and all gradients, sorted by parameter name; clear the network's gradients."""
    with torch.autocast(batch.lq.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = network(batch.lq)
    total(Reconstruction({"pix": loss})(output, batch.gt)).backward()
    parameter_gradients = [p.grad for _, p in sorted(network.named_parameters()) if p.grad is not None]
    network.zero_grad(set_to_none=True)
    outputs = output if isinstance(output, list) else [output]
    return [image.detach() for image in outputs], parameter_gradients


def step_agreement(
    actual: tuple[list[Tensor], list[Tensor]], expected: tuple[list[Tensor], list[Tensor]], precision: str
) -> dict[str, Agreement]:
    """Return how outputs (largest difference) and gradients (L2) of a form differ from the reference in fp32."""
    limits = {"fp32": (1e-5, 1e-4), "bf16": (0.03, 0.1)}[precision]
    return {
        "outputs": Agreement(relative_error(actual[0], expected[0]), limits[0]),
        "gradients": Agreement(relative_error(actual[1], expected[1], euclidean=True), limits[1]),
    }


def training(network: str, setting: Setting) -> Contest:
    """Return the contest of our training step in each precision against the reference form's in fp32."""
    recipe = RECIPES[network]
    side = setting.side(network, recipe.patch)
    batch = noisy_batch(setting.batch, side, setting.device)
    exact = setting.options(network, recipe.file, "fp32")
    state = awake(network_of(exact, setting.device))
    first = ReferenceStep(exact, setting.device, batch, state)
    expected = gradients(first.network, first.loss, batch, "fp32")
    forms = [Form("reference fp32", first)]
    for precision, aim in zip(("fp32", "bf16"), recipe.aims, strict=True):
        if precision not in setting.precisions:
            continue
        options = setting.options(network, recipe.file, precision)
        ours = OurStep(options, setting.device, batch, state)
        agreement = step_agreement(gradients(ours.network, first.loss, batch, precision), expected, precision)
        forms.append(Form(f"ours {precision}", ours, aim=None if setting.quick else Aim(aim), agreement=agreement))
    control = forms[-1].name
    if setting.reference_bf16:
        step = ReferenceStep(setting.options(network, recipe.file, "bf16"), setting.device, batch, state)
        agreement = step_agreement(gradients(step.network, first.loss, batch, "bf16"), expected, "bf16")
        forms.append(Form("reference bf16", step, agreement=agreement))
    settings = {"patch": side, "batch": setting.batch, **_settings(exact, recipe.file)}
    return Contest(f"{network} training step", settings, forms, control)


def sam4ir(setting: Setting) -> Contest:
    """Return the contest of SAM4IR steps, without SGR and with several forms of it, against a plain step.

    All steps train the same network; ratios are costs.
    """
    side = setting.patch or (32 if setting.quick else 128)
    batch = noisy_batch(setting.batch, side, setting.device)
    precision = setting.precisions[0]
    plain = setting.options("NAFNet", RECIPES["NAFNet"].file, precision)
    state = awake(network_of(plain, setting.device))
    forms = [Form("plain step", OurStep(plain, setting.device, batch, state))]
    three, two = "[relu2_2,relu3_3,relu4_3]", "[relu2_2,relu3_3]"
    sgr_options = {
        "SAM4IR without SGR": "null",
        "with SGR, 3 levels": f"{{loss_weight: 0.1, weights: random, layers: {three}}}",
        "with SGR, 3 levels, bf16": f"{{loss_weight: 0.1, weights: random, layers: {three}, bf16: true}}",
        "with SGR, 2 levels, bf16": f"{{loss_weight: 0.1, weights: random, layers: {two}, bf16: true}}",
    }
    for name, sgr in sgr_options.items():
        terms = f"train:sgr_opt={sgr}", "train:spd_opt={loss_weight: 0.1}", "train:distill={start_iter: 0}"
        step = OurStep(setting.options("NAFNet", SAM4IR, precision, *terms), setting.device, batch, state)
        aim = Aim(2.4, cost=True) if sgr == "null" and not setting.quick else None
        forms.append(Form(name, step, aim=aim))
    settings = {"patch": side, "batch": setting.batch, "precision": precision, **_settings(plain, SAM4IR)}
    return Contest("SAM4IR step of NAFNet", settings, forms, forms[0].name, cost=True)


def inference(network: str, setting: Setting) -> Contest:
    """Return the contest of restoring one image: our network in each precision against the reference form in fp32."""
    recipe = RECIPES[network]
    side = setting.side(network, recipe.size)
    image = noisy_batch(setting.batch, side, setting.device).lq
    options = setting.options(network, recipe.file, "fp32")
    ours = network_of(options, setting.device).eval()
    first = reference(options, awake(ours)).to(setting.device).eval()
    forms = [Form("reference fp32", no_gradient(lambda: last_output(first(image))))]
    expected = forms[0].run()
    for precision in setting.precisions:
        forms.append(inference_form(f"ours {precision}", ours, image, precision, expected))
    control = forms[-1].name
    if setting.compiled:
        for precision in setting.precisions:
            compiled = copy.deepcopy(ours)
            compiled.compile()
            forms.append(inference_form(f"ours {precision}, compiled", compiled, image, precision, expected))
    settings = {"size": f"{side}x{side}", "batch": setting.batch, **_settings(options, recipe.file)}
    return Contest(f"{network} inference", settings, forms, control)


def inference_form(name: str, network: nn.Module, image: Tensor, precision: str, expected: Any) -> Form:
    """Return the form that restores an image with a network under autocast."""

    def run() -> Tensor:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return restore(network, image)

    error = relative_error([run()], [expected])
    return Form(name, run, agreement={"outputs": Agreement(error, 1e-5 if precision == "fp32" else 0.03)})


def no_gradient(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a function that calls run() without recording gradients."""

    def wrapped() -> Tensor:
        with torch.no_grad():
            return run()

    return wrapped


def _settings(options: Options, file: Path) -> dict[str, Any]:
    """Return the settings of a contest that come from the option file: the network's width and the recipe."""
    arguments = options.network_g.arguments
    key = RECIPES[options.network_g.type].width[0]
    return {key: arguments[key], "recipe": f"{file.parent.name}/{file.name}"}
