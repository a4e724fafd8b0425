"""The forward process in its four modes against closed forms, and what a prediction says of x_0."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam4ir.diffusion.process import Modulation, Process, Target
from sam4ir.diffusion.samplers import ddpm
from sam4ir.diffusion.schedule import NoiseSchedule, cosine_schedule, linear_schedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_diffusion.npz")  # SAM-DiffSR a18eaf6
COSINE = cosine_schedule(100)
MODES: tuple[Modulation, ...] = ("none", "released", "paper", "invertible")
TARGETS: tuple[Target, ...] = ("noise", "x_0", "v")
PAIRS = [(m, t) for m, t in product(MODES, TARGETS) if m != "paper" or t == "noise"]


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, t (every time), noise and E of 100 small images."""
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.rand(100, 3, 4, 5, generator=rng, dtype=dtype) * 2 - 1
    noise = torch.randn(100, 3, 4, 5, generator=rng, dtype=dtype)
    spe = torch.randn(100, 1, 4, 5, generator=rng, dtype=dtype)
    return x_0, torch.arange(100), noise, spe


def column(table: Tensor) -> Tensor:
    return table.view(-1, 1, 1, 1)


@pytest.mark.parametrize(("modulation", "target"), PAIRS)
@pytest.mark.parametrize("strength", [0.0, 0.3, 5.0])
def test_zero_spe_is_plain_ddpm_bit_for_bit(modulation: Modulation, target: Target, strength: float) -> None:
    x_0, t, noise, spe = batch(torch.float32)
    plain = Process(COSINE, target=target).training_pair(x_0, t, noise)
    process = Process(COSINE, modulation, strength, target)
    for got, expected in zip(process.training_pair(x_0, t, noise, 0 * spe, 0.1), plain, strict=True):
        assert torch.equal(got, expected)
    if strength == 0:
        for got, expected in zip(process.training_pair(x_0, t, noise), plain, strict=True):
            assert torch.equal(got, expected)


def test_plain_ddpm_uses_the_released_tables() -> None:
    x_0, t, noise, _ = batch(torch.float32)
    x_t, target = Process(COSINE).training_pair(x_0, t, noise)
    signal, sigma = GOLDEN["sqrt_alphas_cumprod"], GOLDEN["sqrt_one_minus_alphas_cumprod"]
    expected = signal.reshape(-1, 1, 1, 1) * x_0.numpy() + sigma.reshape(-1, 1, 1, 1) * noise.numpy()
    np.testing.assert_allclose(x_t.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert target is noise


def test_released_shifts_the_noise_by_its_coefficient() -> None:
    x_0, t, noise, spe = batch(torch.float32)
    x_t, target = Process(COSINE, "released", strength=2.0).training_pair(x_0, t, noise, spe)
    shifted = noise.numpy() + 2 * GOLDEN["mask_coefficient"].reshape(-1, 1, 1, 1) * spe.numpy()
    signal, sigma = GOLDEN["sqrt_alphas_cumprod"], GOLDEN["sqrt_one_minus_alphas_cumprod"]
    expected = signal.reshape(-1, 1, 1, 1) * x_0.numpy() + sigma.reshape(-1, 1, 1, 1) * shifted
    np.testing.assert_allclose(x_t.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(target.numpy(), shifted, rtol=1e-5, atol=1e-6)


def test_paper_has_the_mean_and_target_of_its_equations() -> None:
    x_0, t, noise, spe = batch()
    x_t, target = Process(COSINE, "paper", strength=0.5).training_pair(x_0, t, noise, spe)
    abar = column(COSINE.alpha_bar)
    torch.testing.assert_close(
        x_t, abar.sqrt() * x_0 + column(COSINE.phi) * 0.5 * spe + (1 - abar).sqrt() * noise, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(target, noise + ((1 - abar) / column(COSINE.betas)).sqrt() * 0.5 * spe)


def paper_posterior(schedule: NoiseSchedule, t: int, x_t: Tensor, x_0: Tensor, spe: Tensor) -> Tensor:
    """The mean of q(x_{t-1} | x_t, x_0, E): the product of two Gaussians, prior times likelihood, by their precisions.

    x_{t-1} ~ N(sqrt(abar_{t-1}) x_0 + phi_{t-1} E, 1 - abar_{t-1}),
    x_t ~ N(sqrt(alpha_t) x_{t-1} + sqrt(beta_t) E, beta_t).
    """
    if t == 0:
        return x_0
    beta, alpha, abar = schedule.betas[t], 1 - schedule.betas[t], schedule.alpha_bar[t - 1]
    prior_mean = abar.sqrt() * x_0 + schedule.phi[t - 1] * spe
    likely_mean, likely_precision = (x_t - beta.sqrt() * spe) / alpha.sqrt(), alpha / beta
    prior_precision = 1 / (1 - abar)
    return (prior_mean * prior_precision + likely_mean * likely_precision) / (prior_precision + likely_precision)


@pytest.mark.parametrize("schedule", [COSINE, linear_schedule(100)], ids=["cosine", "linear"])
def test_the_papers_target_takes_the_epsilon_step_to_the_posterior_with_the_spe(schedule: NoiseSchedule) -> None:
    """Along a noiseless chain the sampler, told the exact target, follows q(x_{t-1} | x_t, x_0, E) and ends at x_0."""
    x_0, _, noise, spe = (part[:2] for part in batch())
    process = Process(schedule, "paper")
    seen: list[Tensor] = []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        abar, phi, beta = (column(table[t]) for table in (schedule.alpha_bar, schedule.phi, schedule.betas))
        epsilon = (x - abar.sqrt() * x_0 - phi * spe) / (1 - abar).sqrt()
        _, target = process.training_pair(x_0, t, epsilon, spe)
        torch.testing.assert_close(target, epsilon + ((1 - abar) / beta).sqrt() * spe)
        return target

    start, _ = process.training_pair(x_0, torch.tensor([99, 99]), noise, spe)
    result = ddpm(process, oracle, start, range(99, -1, -1), lambda i: torch.zeros_like(start))
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-9)
    for t, x_t, x_next in zip(range(99, -1, -1), seen, [*seen[1:], result], strict=True):
        torch.testing.assert_close(x_next, paper_posterior(schedule, t, x_t, x_0, spe), rtol=1e-8, atol=1e-8)


def test_the_papers_step_over_several_times_is_right_to_first_order() -> None:
    """Its SPE part is (1 - alpha) / sqrt(beta_t), the posterior's phi_t - sqrt(alpha) phi_s: O(h^2) apart."""
    schedule = cosine_schedule(1000)
    x_0, _, noise, spe = (part[:2] for part in batch())
    process = Process(schedule, "paper", strength=0.1)
    x_t, target = process.training_pair(x_0, torch.tensor([500, 500]), noise, spe)
    errors = []
    for s in (460, 480, 490):
        seen: list[Tensor] = []
        ddpm(process, lambda x, t, to=seen: (to.append(x), target)[1], x_t, [500, s], lambda i: 0 * x_t)  # type: ignore[misc]
        alpha = schedule.alpha_bar[500] / schedule.alpha_bar[s]
        shift = schedule.phi[500] - alpha.sqrt() * schedule.phi[s]
        epsilon_part = (1 - alpha) / (1 - schedule.alpha_bar[500]).sqrt() * noise
        errors.append((seen[1] - (x_t - epsilon_part - 0.1 * shift * spe) / alpha.sqrt()).abs().max().item())
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]


@pytest.mark.parametrize(
    ("profile", "shape"),
    [
        ("flat", torch.ones(100, dtype=torch.float64)),
        ("signal", COSINE.alpha_bar.sqrt()),
        ("noise", (1 - COSINE.alpha_bar).sqrt()),
        ("released", COSINE.mask_coefficient),
        (tuple(float(i) for i in range(100)), torch.arange(100, dtype=torch.float64)),
    ],
)
def test_invertible_offsets_have_the_asked_for_strength(profile: str | tuple[float, ...], shape: Tensor) -> None:
    x_0, t, noise, spe = batch()
    process = Process(COSINE, "invertible", strength=0.3, profile=profile)
    x_t, target = process.training_pair(x_0, t, noise, spe, spe_rms=0.05)
    offset = target - noise
    assert (offset * 0.05 / spe).flatten(1)[:, 0].square().mean().sqrt().item() == pytest.approx(0.3)
    g = column(shape / shape.square().mean().sqrt())
    torch.testing.assert_close(offset, (0.3 * g * spe / 0.05).expand_as(offset), rtol=1e-9, atol=1e-12)
    abar = column(COSINE.alpha_bar)
    torch.testing.assert_close(x_t, abar.sqrt() * x_0 + (1 - abar).sqrt() * target)


@pytest.mark.parametrize(("modulation", "target"), [pair for pair in PAIRS if pair[0] != "paper"])
def test_the_true_target_gives_x_0_and_the_shifted_noise_back(modulation: Modulation, target: Target) -> None:
    x_0, t, noise, spe = batch()
    noisy = Process(COSINE, modulation, 0.3).training_pair(x_0, t, noise, spe, 0.1)
    process = Process(COSINE, modulation, 0.3, target)
    x_t, truth = process.training_pair(x_0, t, noise, spe, 0.1)
    torch.testing.assert_close(x_t, noisy[0])
    torch.testing.assert_close(process.x_0(x_t, t, truth), x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(process.noise(x_t, t, truth), noisy[1], rtol=0, atol=1e-10)


def test_v_is_the_derivative_that_its_authors_define() -> None:
    x_0, t, noise, _ = batch()
    _, v = Process(COSINE, target="v").training_pair(x_0, t, noise)
    abar = column(COSINE.alpha_bar)
    torch.testing.assert_close(v, abar.sqrt() * noise - (1 - abar).sqrt() * x_0)


def test_predictions_in_half_precision_are_used_in_that_of_x_t() -> None:
    x_0, t, noise, _ = batch(torch.float32)
    process = Process(COSINE)
    x_t, _ = process.training_pair(x_0, t, noise)
    assert process.x_0(x_t, t, noise.bfloat16()).dtype == torch.float32
    assert process.noise(x_t, t, noise.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("modulation", "target"), PAIRS)
def test_nothing_is_read_back_from_the_device(modulation: Modulation, target: Target) -> None:
    """Tensors on the meta device have no values: whatever asked for one would raise."""
    x_0, t, noise, spe = (part.to("meta") for part in batch(torch.float32))
    process = Process(COSINE, modulation, 0.3, target)
    x_t, truth = process.training_pair(x_0, t, noise, spe, torch.ones((), device="meta"))
    assert x_t.device.type == truth.device.type == "meta"
    if modulation != "paper":
        assert process.x_0(x_t, t, truth).shape == x_0.shape


def test_tables_first_used_in_inference_mode_serve_training() -> None:
    x_0, t, noise, _ = batch(torch.float32)
    process = Process(cosine_schedule(100))
    with torch.inference_mode():
        process.training_pair(x_0, t, noise)
    estimate = noise.clone().requires_grad_()
    process.x_0(x_0, t, estimate).sum().backward()
    torch.testing.assert_close(estimate.grad[:, 0, 0, 0], -((1 - COSINE.alpha_bar) / COSINE.alpha_bar).sqrt().float())


def test_paper_has_no_x_0_and_no_sampler_that_needs_it() -> None:
    x_0, t, noise, _ = batch()
    process = Process(COSINE, "paper")
    process.check_sampler("ddpm")
    for name in ("ddim", "dpm_solver_2m"):
        with pytest.raises(ValueError, match=f"'{name}'.*'paper'.*'ddpm'"):
            process.check_sampler(name)
        Process(COSINE, "released").check_sampler(name)
    with pytest.raises(ValueError, match="paper"):
        process.x_0(x_0, t, noise)
    with pytest.raises(ValueError, match=r"'euler'.*ddpm, ddim, dpm_solver_2m"):
        process.check_sampler("euler")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modulation": "papers"}, "none, released, paper, invertible"),
        ({"target": "eps"}, "noise, x_0, v"),
        ({"modulation": "paper", "target": "x_0"}, "'noise' only"),
        ({"modulation": "paper", "target": "v"}, "'noise' only"),
        ({"strength": -1.0}, "strength is -1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"profile": "steep"}, "flat, signal"),
        ({"profile": (1.0, 2.0)}, "2 numbers, expected 100"),
        ({"profile": (0.0,) * 100}, "not all 0"),
    ],
)
def test_settings_that_make_no_process_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Process(COSINE, **arguments)  # type: ignore[arg-type]


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    x_0, t, noise, spe = batch()
    process = Process(COSINE, "invertible")
    with pytest.raises(ValueError, match="needs the SPE"):
        process.training_pair(x_0, t, noise)
    with pytest.raises(ValueError, match="spe is"):
        process.training_pair(x_0, t, noise, spe[..., :3])
    with pytest.raises(ValueError, match="expected t"):
        process.training_pair(x_0, t[:5], noise, spe)
    with pytest.raises(ValueError, match="noise of x_0's shape"):
        process.training_pair(x_0, t, noise[:, :1], spe)
    with pytest.raises(ValueError, match="spe_rms is 0"):
        process.training_pair(x_0, t, noise, spe, spe_rms=0.0)


@pytest.mark.parametrize(
    ("modulation", "strength", "needed"),
    [("none", 1.0, False), ("released", 1.0, True), ("paper", 0.1, True), ("invertible", 0.0, False)],
)
def test_the_spe_is_asked_for_only_where_it_counts(modulation: Modulation, strength: float, needed: bool) -> None:
    assert Process(COSINE, modulation, strength).needs_spe is needed
