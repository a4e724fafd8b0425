"""Samplers against closed forms: Gaussian data, whose optimal denoiser and ODE are known, and single known images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam4ir.diffusion.noise import SeededNoise
from sam4ir.diffusion.process import Process, Target
from sam4ir.diffusion.samplers import (
    SAMPLERS,
    Denoise,
    Spacing,
    check_sampling,
    ddim,
    ddpm,
    dpm_solver_2m,
    run_sampler,
    start_time,
    timesteps,
)
from sam4ir.diffusion.schedule import NoiseSchedule, cosine_schedule, linear_schedule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_diffusion.npz")  # SAM-DiffSR a18eaf6
COSINE = Process(cosine_schedule(100))
SHAPE = (3, 7, 9)  # odd, so that vectors end in the middle of an image


def silent(x: Tensor) -> Denoise:
    """Noise of 0."""
    return lambda i: torch.zeros_like(x)  # type: ignore[return-value, misc]


def gaussian_denoiser(process: Process, mean: float, std: float) -> Denoise:
    """The best estimate of the target where every value of x_0 is N(mean, std^2)."""
    abar = process.schedule.alpha_bar

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a = abar.to(x)[t].view(-1, 1, 1, 1)
        x_0 = mean + std**2 * a.sqrt() / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)
        epsilon = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return {"x_0": x_0, "noise": epsilon, "v": a.sqrt() * epsilon - (1 - a).sqrt() * x_0}[process.target]

    return denoise


def pixelwise(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear stand-in for a network, of single rounded operations."""
    return 0.7 * x + 0.1 * x * x.abs().clamp(max=1) - 0.05 + t.view(-1, 1, 1, 1) * 0.001


def start(seeds: list[int]) -> tuple[Tensor, SeededNoise]:
    noise = SeededNoise(seeds, SHAPE)
    return noise.start(), noise


# --- whole chains -----------------------------------------------------------------------------------------------------


def test_ddpm_with_all_times_is_the_released_ancestral_sampler() -> None:
    x, noise = start([1, 2])
    table = {name: GOLDEN[name] for name in GOLDEN}
    expected = x.numpy()
    for i, t in enumerate(range(99, -1, -1)):
        epsilon = pixelwise(torch.from_numpy(expected), torch.tensor([t, t])).numpy()
        x_0 = table["sqrt_recip_alphas_cumprod"][t] * expected - table["sqrt_recipm1_alphas_cumprod"][t] * epsilon
        mean = table["posterior_mean_coef1"][t] * x_0.clip(-1, 1) + table["posterior_mean_coef2"][t] * expected
        deviation = np.exp(0.5 * table["posterior_log_variance_clipped"][t])
        expected = mean + (t > 0) * deviation * noise(i).numpy()
    got = ddpm(COSINE, pixelwise, x, timesteps(100, 100), noise)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("target", ["noise", "x_0", "v"])
def test_ddpm_samples_gaussian_data(target: Target) -> None:
    """100 steps lose some of the spread (exactly 6.1 % of std 0.25), 1,000 steps an eighth of that."""
    noise = SeededNoise([3], (1, 160, 160))
    for steps, lost in ((100, 0.0609), (1000, 0.0077)):
        process = Process(cosine_schedule(steps), target=target)
        denoise = gaussian_denoiser(process, 0.2, 0.25)
        result = run_sampler(process, denoise, noise.start(), noise, "ddpm")
        assert result.mean().item() == pytest.approx(0.2, abs=0.008)
        assert 1 - result.std().item() / 0.25 == pytest.approx(lost, abs=0.012)


def test_ddim_with_eta_1_is_ddpm() -> None:
    x, noise = start([1, 2])
    x = x.double()
    for steps in (100, 12):
        times = timesteps(100, steps)
        ancestral = ddpm(COSINE, pixelwise, x, times, noise)
        torch.testing.assert_close(ddim(COSINE, pixelwise, x, times, noise, eta=1.0), ancestral, rtol=0, atol=1e-8)
        assert (ddim(COSINE, pixelwise, x, times) - ancestral).abs().max() > 1e-3


def test_eta_is_the_share_of_the_posteriors_standard_deviation_in_each_step() -> None:
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for eta in (0.25, 1.0):
        seen: list[float] = []
        ddim(COSINE, lambda x, t, to=seen: (to.append(float(x)), zero)[1], zero, [60, 40], lambda i: one * 1e-3, eta)  # type: ignore[misc]
        a, b = COSINE.schedule.alpha_bar[[60, 40]].tolist()
        assert seen[1] == pytest.approx(1e-3 * eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginal_of_a_known_image(eta: float) -> None:
    """With the true noise, x_s stays N(sqrt(abar_s) x_0, 1 - abar_s) for every eta (Song et al., lemma 1)."""
    noise = SeededNoise([11], (1, 200, 200))
    abar, seen = COSINE.schedule.alpha_bar, []

    def oracle(x: Tensor, t: Tensor) -> Tensor:
        a = abar[t].item()
        seen.append(((x - a**0.5 * 0.5).std() / (1 - a) ** 0.5).item())
        return (x - a**0.5 * 0.5) / (1 - a) ** 0.5

    x = noise.start() + abar[99].sqrt().item() * 0.5
    ddim(COSINE, oracle, x, timesteps(100, 8), noise, eta=eta)
    assert seen == pytest.approx([1.0] * 8, abs=0.02)


def exact_ode(schedule: NoiseSchedule, x: Tensor, times: list[int], mean: float, std: float) -> Tensor:
    """The probability flow keeps (x - sqrt(abar) mean) / std_t of N(mean, std^2) data; then the last estimate."""
    first, last = (float(schedule.alpha_bar[t]) for t in (times[0], times[-1]))
    spread = [(a * std**2 + 1 - a) ** 0.5 for a in (first, last)]
    at_last = last**0.5 * mean + (x - first**0.5 * mean) * spread[1] / spread[0]
    return mean + std**2 * last**0.5 / spread[1] ** 2 * (at_last - last**0.5 * mean)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm_solver_2m", 2)])
@pytest.mark.parametrize("target", ["noise", "v"])
def test_deterministic_samplers_converge_to_the_exact_ode_with_their_order(
    sampler: str, order: int, target: Target
) -> None:
    schedule = linear_schedule(4000, 2.5e-5, 0.005, last_beta=None)
    process = Process(schedule, target=target)
    x = torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).view(1, 1, 3, 4)
    errors = []
    for steps in (20, 40, 80):
        times = timesteps(4000, steps, "logsnr", schedule)
        run = {"ddim": ddim, "dpm_solver_2m": dpm_solver_2m}[sampler]
        got = run(process, gaussian_denoiser(process, 0.1, 0.3), x, times)
        errors.append((got - exact_ode(schedule, x, times, 0.1, 0.3)).abs().max().item())
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert rates == pytest.approx([order, order], abs=0.3)
    assert errors[-1] < {1: 2e-2, 2: 1e-3}[order]


def gain(sampler: str, steps: int, std: float, spacing: Spacing = "logsnr") -> float:
    """Standard deviation of sampled values over the data's: the chain is linear, so impulses tell it exactly."""
    denoise, total = gaussian_denoiser(COSINE, 0.0, std), 0.0
    one = torch.full((1, 1, 1, 1), 1e-3, dtype=torch.float64)  # small, so that nothing is clipped
    for impulse in range(-1, steps - 1 if sampler == "ddpm" else 0):
        x = one * (impulse == -1)
        result = run_sampler(COSINE, denoise, x, lambda i, k=impulse: one * (i == k), sampler, steps, spacing=spacing)  # type: ignore[misc]
        total += (result.item() * 1e3) ** 2
    return total**0.5 / std


@pytest.mark.parametrize(
    ("sampler", "expected"), [("ddpm", (0.26, 0.43)), ("ddim", (0.16, 0.31)), ("dpm_solver_2m", (0.05, 0.16))]
)
def test_the_default_spacing_has_the_documented_lead_on_gaussian_residuals(
    sampler: str, expected: tuple[float, float]
) -> None:
    def error(spacing: Spacing) -> float:
        return (sum((gain(sampler, 10, std, spacing) - 1) ** 2 for std in (0.06, 0.1, 0.2, 0.3)) / 4) ** 0.5

    assert (error("logsnr"), error("uniform")) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_few_steps_forgive_a_biased_noise_estimate(sampler: str) -> None:
    """What the estimate of x_0 makes of it at the last times, where abar is 2e-7, must not colour the image."""
    noise = SeededNoise([8], (1, 60, 60))
    right = gaussian_denoiser(COSINE, 0.0, 0.1)
    for steps in (5, 10, 15, 20):
        exact, biased = (
            run_sampler(COSINE, lambda x, t, e=e: right(x, t) + e, noise.start(), noise, sampler, steps).mean().item()  # type: ignore[misc]
            for e in (0.0, 0.01)
        )
        assert abs(biased - exact) < 0.008


def test_chains_start_where_signal_begins_to_count() -> None:
    assert start_time(COSINE) == 90
    assert start_time(Process(linear_schedule(100))) == 99  # abar is 0.36 at 98
    assert start_time(Process(linear_schedule(100, last_beta=None))) == 99
    assert start_time(Process(cosine_schedule(100), "paper")) == 99
    for steps, first in ((1, 90), (20, 90), (91, 90), (95, 94), (100, 99)):
        seen: list[int] = []
        x, _ = start([1])
        run_sampler(COSINE, lambda x, t, to=seen: (to.append(int(t)), x)[1], x, None, "ddim", steps)  # type: ignore[misc]
        assert (len(seen), seen[0]) == (steps, first)


def test_second_order_pays_at_the_same_number_of_steps() -> None:
    for steps in (8, 10, 15, 20):
        assert abs(gain("dpm_solver_2m", steps, 0.2) - 1) < 0.4 * abs(gain("ddim", steps, 0.2) - 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [cosine_schedule(100), linear_schedule(100)], ids=["cosine", "linear"])
def test_a_known_image_is_found_exactly_with_any_number_of_steps(sampler: str, schedule: NoiseSchedule) -> None:
    process = Process(schedule, target="x_0")
    x, noise = start([4])
    truth = torch.linspace(-1, 1, x.numel()).view_as(x)
    for steps in (1, 2, 3, 7, 15, 50, 99, 100):
        calls: list[int] = []
        found = run_sampler(process, lambda x, t, c=calls: (c.append(int(t)), truth)[1], x, noise, sampler, steps)  # type: ignore[misc]
        assert torch.equal(found, truth)
        assert len(calls) == steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_estimates_beyond_the_range_of_x_0_are_clipped_and_stay_finite(sampler: str) -> None:
    x, noise = start([4, 5])
    for sign in (-1, 1):
        result = run_sampler(COSINE, lambda x, t, s=sign: s * 1e4 + 0 * x, x, noise, sampler, 10)  # type: ignore[misc]
        assert torch.equal(result, torch.full_like(x, -float(sign)))


def test_paper_clips_the_final_image_only() -> None:
    """In epsilon form an estimate of 0 grows x by 1/sqrt(alpha) a step, without bound inside the chain."""
    process = Process(cosine_schedule(100), "paper")
    x, _ = start([4])
    seen: list[Tensor] = []
    result = run_sampler(process, lambda x, t: (seen.append(x), 0 * x)[1], x, silent(x), "ddpm")  # type: ignore[func-returns-value, arg-type]
    abar = process.schedule.alpha_bar
    torch.testing.assert_close(seen[-1], x * (abar[0] / abar[99]).sqrt().item(), rtol=1e-4, atol=0)
    assert result.abs().max() == 1


def test_the_step_of_paper_is_equation_11_of_ddpm() -> None:
    """Two steps, 60 -> 40 -> the image, from x = 0.2 with an estimated noise of 0.1 and then -0.3."""
    x = torch.full((1, 1, 1, 1), 0.2, dtype=torch.float64)
    estimates = {60: 0.1, 40: -0.3}
    seen: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(x))
        return torch.full_like(x, estimates[int(t)])

    result = ddpm(Process(cosine_schedule(100), "paper"), denoise, x, [60, 40], lambda i: 0.5 + 0 * x)
    a, b = COSINE.schedule.alpha_bar[[60, 40]].tolist()
    mean = (0.2 - (1 - a / b) / (1 - a) ** 0.5 * 0.1) / (a / b) ** 0.5
    assert seen[1] == pytest.approx(mean + 0.5 * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5, rel=1e-12)
    assert result.item() == pytest.approx((seen[1] + 0.3 * (1 - b) ** 0.5) / b**0.5, rel=1e-12)


# --- what every sampler promises --------------------------------------------------------------------------------------

WAYS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.7), ("dpm_solver_2m", 0.0)]


@pytest.mark.parametrize(("sampler", "eta"), WAYS)
def test_an_image_is_the_same_alone_in_a_batch_and_again(sampler: str, eta: float) -> None:
    x, noise = start([1, 2, 3])
    kept = x.clone()
    together = run_sampler(COSINE, pixelwise, x, noise, sampler, 12, eta)
    assert torch.equal(x, kept)
    assert torch.equal(run_sampler(COSINE, pixelwise, x, noise, sampler, 12, eta), together)
    for i, seed in enumerate((1, 2, 3)):
        alone, its = start([seed])
        assert torch.equal(run_sampler(COSINE, pixelwise, alone, its, sampler, 12, eta)[0], together[i])


@pytest.mark.parametrize(("sampler", "eta"), WAYS)
def test_a_tiled_network_gives_the_whole_canvas(sampler: str, eta: float) -> None:
    x, noise = start([1])

    def tiled(x: Tensor, t: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for rows in (slice(0, 3), slice(3, 7)):
            for columns in (slice(0, 4), slice(4, 9)):
                out[..., rows, columns] = pixelwise(x[..., rows, columns], t)
        return out

    whole = run_sampler(COSINE, pixelwise, x, noise, sampler, 9, eta)
    assert torch.equal(run_sampler(COSINE, tiled, x, noise, sampler, 9, eta), whole)


@pytest.mark.parametrize(("sampler", "eta"), WAYS)
def test_steps_are_told_and_leave_no_gradient(sampler: str, eta: float) -> None:
    x, noise = start([1])
    told: list[tuple[int, int]] = []
    weight = torch.ones((), requires_grad=True)
    result = run_sampler(
        COSINE, lambda x, t: weight * pixelwise(x, t), x, noise, sampler, 4, eta, lambda *at: told.append(at)
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not result.requires_grad
    assert result.shape == x.shape
    assert result.abs().max() <= 1


@pytest.mark.parametrize(("sampler", "eta"), WAYS)
def test_no_step_reads_values_back_from_the_device(sampler: str, eta: float) -> None:
    """Tensors on the meta device have no values: whatever asked for one would raise."""
    x = torch.zeros(2, *SHAPE, device="meta")
    assert run_sampler(COSINE, pixelwise, x, lambda i: x, sampler, 5, eta).device.type == "meta"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_step_draws_no_noise(sampler: str) -> None:
    x, noise = start([1])
    asked: list[int] = []
    run_sampler(COSINE, pixelwise, x, lambda i: (asked.append(i), noise(i))[1], sampler, 5)  # type: ignore[func-returns-value]
    assert asked == ([0, 1, 2, 3] if sampler == "ddpm" else [])


@pytest.mark.parametrize("spacing", ["uniform", "logsnr"])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_times_are_distinct_falling_and_reach_both_ends(spacing: Spacing, total: int) -> None:
    schedule = cosine_schedule(total)
    for steps in range(1, total + 1):
        for first in {None, total // 2}:
            times = timesteps(total, steps, spacing, schedule, first)
            assert times == sorted(set(times), reverse=True)
            assert len(times) == steps
            assert times[0] == (total - 1 if first is None else max(first, steps - 1))
            assert steps == 1 or times[-1] == 0
    assert timesteps(total, total, spacing, schedule) == list(range(total - 1, -1, -1))


def test_spacings_follow_their_rule_where_there_is_room() -> None:
    assert timesteps(100, 10) == [99, 88, 77, 66, 55, 44, 33, 22, 11, 0]
    assert timesteps(100, 4, first=60) == [60, 40, 20, 0]
    schedule = linear_schedule(4000, 2.5e-5, 0.005, last_beta=None)
    gaps = schedule.log_snr[timesteps(4000, 10, "logsnr", schedule)].diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(9), rtol=0.03, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0, expected 1 to 100"),
        ({"steps": 101}, "steps is 101, expected 1 to 100"),
        ({"sampler": "euler"}, "ddpm, ddim, dpm_solver_2m"),
        ({"sampler": "ddim", "eta": 1.5}, "eta is 1.5"),
        ({"sampler": "ddim", "eta": 0.5, "noise": None}, "no noise"),
        ({"sampler": "ddpm", "noise": None}, "needs noise"),
        ({"sampler": "ddpm", "eta": 0.5}, "only 'ddim'"),
        ({"spacing": "karras"}, "uniform, logsnr"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused(arguments: dict[str, object], message: str) -> None:
    x, noise = start([1])
    with pytest.raises(ValueError, match=message):
        run_sampler(COSINE, pixelwise, x, **{"noise": noise, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampler", "steps", "eta", "message"),
    [
        ("ddpm", 101, 0.0, "steps is 101"),
        ("ddpm", 10, 0.1, "only 'ddim'"),
        ("ddim", 10, -0.1, "eta"),
        ("", 1, 0.0, "ddim"),
    ],
)
def test_settings_can_be_checked_before_there_is_an_image(sampler: str, steps: int, eta: float, message: str) -> None:
    check_sampling(COSINE, "ddim", 100, 1.0)
    with pytest.raises(ValueError, match=message):
        check_sampling(COSINE, sampler, steps, eta)


@pytest.mark.parametrize("times", [[], [100, 0], [5, 5, 0], [0, 5], [3, -1]])
def test_times_that_do_not_fall_within_the_process_are_refused(times: list[int]) -> None:
    x, noise = start([1])
    for run in (ddpm, ddim, dpm_solver_2m):
        with pytest.raises(ValueError, match="falling"):
            run(COSINE, pixelwise, x, times, noise)


def test_log_snr_spacing_needs_the_schedule_of_its_steps_and_a_time_within_it() -> None:
    with pytest.raises(ValueError, match="first time is 100"):
        timesteps(100, 10, first=100)
    for schedule in (None, cosine_schedule(50)):
        with pytest.raises(ValueError, match="needs the noise schedule of 100"):
            timesteps(100, 10, "logsnr", schedule)


def test_paper_is_sampled_by_ddpm_alone() -> None:
    process = Process(cosine_schedule(100), "paper")
    x, noise = start([1])
    assert run_sampler(process, pixelwise, x, noise, "ddpm", 10).isfinite().all()
    for name in ("ddim", "dpm_solver_2m"):
        with pytest.raises(ValueError, match="paper"):
            run_sampler(process, pixelwise, x, noise, name, 10)
