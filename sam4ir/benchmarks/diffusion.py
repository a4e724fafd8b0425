"""Contests of `sam4ir benchmark diffusion`: SAM-DiffSR's training step and chain against the released form's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam4ir.benchmarks.networks import OPTIONS, OurStep, Setting, network_of, noisy_batch
from sam4ir.benchmarks.reference_diffusion import ReferenceDiffusion, optimiser
from sam4ir.benchmarks.timing import Agreement, Aim, Contest, Form, relative_error
from sam4ir.config.load import load_options
from sam4ir.config.schema import Options
from sam4ir.data.sample import Batch
from sam4ir.diffusion.noise import SeededNoise
from sam4ir.engine.restore.build import build_process
from sam4ir.engine.restore.sampling import DiffusionRestorer, Sampling
from sam4ir.models.sam_diffsr import residual_of, upsampled
from sam4ir.utils.rng import derived_seed

RECIPE = OPTIONS / "sr" / "samdiffsr_x4.yml"
SCALE = 4
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "small": {"hidden_size": 32, "dim_mults": [1, 2, 3], "rrdb_num_feat": 32, "rrdb_num_block": 5},
    "tiny": {"hidden_size": 8, "dim_mults": [1, 2], "rrdb_num_feat": 8, "rrdb_num_block": 2},
}
PATCH, CHAIN = 160, 64
AIMS = {"fp32": 1.15, "bf16": 1.6}
PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
CHAIN_LIMITS = {"fp32": 1e-4, "bf16": 0.1}
FEWER = "dpm_solver_2m", 15
KEY = "image"


@dataclasses.dataclass(frozen=True)
class Pair:
    """x_t, step t and target of one draw.

    error: the difference of our x_t and target from the released form's (relative_error).
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    error: float


EstimateAndGradients = tuple[Tensor, list[Tensor]]


def contests(setting: Setting) -> Iterator[Contest]:
    """Yield the contests of training steps and chains of the full network and a small one, quick: of a tiny one."""
    sizes = ("tiny",) if setting.quick else ("full", "small")
    for size in sizes:
        yield training(size, setting)
        yield sampling(size, setting)


def options_of(size: str, setting: Setting, precision: str) -> Options:
    """Return the recipe's options for a network of this size, with random weights.

    There is no EMA, because the released step has none.
    """
    device = "cpu" if setting.device.type == "cpu" else str(setting.device)
    changes = [f"network_g:{name}={value}" for name, value in NETWORKS[size].items()]
    plain = [f"device={device}", f"precision={precision}", "train:ema_decay=0"]
    loaded = load_options(RECIPE, [*plain, *changes, *setting.overrides], named_by_user=True)
    return loaded.model_copy(update={"path": loaded.path.model_copy(update={"pretrain_network_c": None})})


def batch_of(number: int, side: int, device: torch.device) -> Batch:
    """Return HR and LR images with an SPE whose values are as large as real ones."""
    gt = noisy_batch(number, side, device).gt
    lq = nn.functional.interpolate(gt, scale_factor=1 / SCALE, mode="area")
    spe = 0.05 * torch.randn(number, 1, side, side, generator=torch.Generator().manual_seed(2))
    names = [str(i) for i in range(number)]
    return Batch(lq, gt, names, list(range(number)), {"spe": spe.to(device)})


def reference(options: Options, state: Mapping[str, Tensor], device: torch.device) -> ReferenceDiffusion:
    """Return the reference form of an option file's network and process, with the weights of ours."""
    arguments = {name: value for name, value in options.network_g.arguments.items() if name != "sr_scale"}
    network = ReferenceDiffusion(build_process(options.process).schedule.betas, **arguments)
    network.load_state_dict(dict(state))
    return network.to(device)


class ReferenceStep:
    """The released training step; each call takes one. As there, the data set up-samples LR before the step."""

    def __init__(self, network: ReferenceDiffusion, lr: float, batch: Batch) -> None:
        self.network = network
        self.optimiser = optimiser(network, lr)
        self.batch = batch
        self.lq_up = upsampled(batch.lq, batch.gt.shape[-2:])

    def __call__(self) -> None:
        assert self.batch.spe is not None
        self.optimiser.zero_grad()
        self.network.loss(self.batch.gt, self.batch.lq, self.lq_up, self.batch.spe).backward()
        self.optimiser.step()


def training(size: str, setting: Setting) -> Contest:
    """Return the contest of our training step in each precision against the released form's in fp32."""
    side = setting.patch or (32 if setting.quick else PATCH)
    batch = batch_of(setting.batch, side, setting.device)
    exact = options_of(size, setting, "fp32")
    state = network_of(exact, setting.device).state_dict()
    first = ReferenceStep(reference(exact, state, setting.device), learning_rate(exact), batch)
    pair = compared_pair(exact, first.network, batch)
    expected = gradients(first.network, pair, batch.lq, "fp32")
    forms = [Form("released form, fp32", first)]
    for precision in setting.precisions:
        options = options_of(size, setting, precision)
        step = OurStep(options, setting.device, batch, dict(state))
        agreement = agreements(gradients(step.network, pair, batch.lq, precision), expected, precision)
        agreement |= {"x_t and target": Agreement(pair.error, 1e-6)}
        aim = Aim(AIMS[precision]) if size == "full" and not setting.quick else None
        forms.append(Form(f"ours {precision}", step, aim=aim, agreement=agreement))
    control = forms[-1].name
    if setting.reference_bf16:
        forms.append(released_bf16(exact, state, setting, batch, pair, expected))
    settings = {"patch": side, "batch": setting.batch, "network": size, "recipe": RECIPE.name}
    return Contest("SAM-DiffSR training step", settings, forms, control)


def released_bf16(
    options: Options,
    state: Mapping[str, Tensor],
    setting: Setting,
    batch: Batch,
    pair: Pair,
    expected: EstimateAndGradients,
) -> Form:
    """Return the form of the released step under autocast."""
    step = ReferenceStep(reference(options, state, setting.device), learning_rate(options), batch)

    def run() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16):
            step()

    agreement = agreements(gradients(step.network, pair, batch.lq, "bf16"), expected, "bf16")
    return Form("released form, bf16", run, agreement=agreement)


def learning_rate(options: Options) -> float:
    assert options.train is not None
    return options.train.optim_g.lr


def compared_pair(options: Options, first: ReferenceDiffusion, batch: Batch) -> Pair:
    """Return a training pair of our process, compared with the released form's."""
    assert batch.spe is not None
    x_0 = residual_of(batch.gt, upsampled(batch.lq, batch.gt.shape[-2:]))
    random = torch.Generator().manual_seed(3)
    t = torch.randint(0, 100, (len(x_0),), generator=random).to(x_0.device)
    noise = torch.randn(x_0.shape, generator=random).to(x_0.device)
    x_t, target = build_process(options.process).training_pair(x_0, t, noise, batch.spe)
    released = first.q_sample(x_0, t, noise, batch.spe)
    return Pair(x_t, t, target, relative_error([x_t, target], released))


def gradients(network: nn.Module, pair: Pair, lq: Tensor, precision: str) -> EstimateAndGradients:
    """Return the estimate and the L1 loss's gradients, sorted by parameter name; clear the network's gradients."""
    with torch.autocast(lq.device.type, torch.bfloat16, enabled=precision == "bf16"):
        estimate = network(pair.x_t, pair.t, lq)
    (estimate.float() - pair.target).abs().mean().backward()
    denoiser_gradients = []
    for name, parameter in sorted(network.named_parameters()):
        if name.startswith("denoise_fn.") and parameter.grad is not None:
            denoiser_gradients.append(parameter.grad)
    network.zero_grad(set_to_none=True)
    return estimate.detach(), denoiser_gradients


def agreements(actual: EstimateAndGradients, expected: EstimateAndGradients, precision: str) -> dict[str, Agreement]:
    """Return how the estimate (largest difference) and the gradients (L2) differ from the released form in fp32."""
    limits = {"fp32": (1e-5, 1e-4), "bf16": (0.03, 0.1)}[precision]
    return {
        "outputs": Agreement(relative_error([actual[0]], [expected[0]]), limits[0]),
        "gradients": Agreement(relative_error(actual[1], expected[1], euclidean=True), limits[1]),
    }


def sampling(size: str, setting: Setting) -> Contest:
    """Return the contest of restoring one image by the 100 steps of the released chain: its form in fp32 and ours.

    The last form is ours with the few steps of another sampler. It draws another image, so it has no agreement.
    """
    side = setting.patch or (32 if setting.quick else CHAIN)
    options = options_of(size, setting, "fp32")
    ours = network_of(options, setting.device).eval()
    first = reference(options, ours.state_dict(), setting.device).eval()
    lq = batch_of(1, side, setting.device).lq
    lq_up = upsampled(lq, (side, side))
    noise = SeededNoise([derived_seed(0, "sampling", KEY, 0)], (3, side, side), setting.device)
    process = build_process(options.process)

    def chain(sampler: str, steps: int, precision: Literal["fp32", "bf16"]) -> Callable[[], Tensor]:
        restorer = DiffusionRestorer(ours, process, SCALE, Sampling(sampler, steps, precision=precision))
        return lambda: restorer(lq, KEY)

    forms = [Form("released form, fp32", lambda: first.chain(lq, lq_up, noise.start(), noise))]
    expected = first.chain(lq, lq_up, noise.start(), noise)
    for precision in PRECISIONS:
        if precision in setting.precisions:
            run = chain("ddpm", process.timesteps, precision)
            error = Agreement(relative_error([run()], [expected]), CHAIN_LIMITS[precision])
            forms.append(Form(f"ours {precision}", run, agreement={"image": error}))
    control = forms[-1].name
    sampler, steps = FEWER
    precision = "bf16" if "bf16" in setting.precisions else "fp32"
    forms.append(Form(f"ours {precision}, {sampler} {steps}", chain(sampler, steps, precision)))
    settings = {"image": f"{side}x{side}", "steps": process.timesteps, "network": size, "recipe": RECIPE.name}
    return Contest("SAM-DiffSR sampling chain", settings, forms, control)
