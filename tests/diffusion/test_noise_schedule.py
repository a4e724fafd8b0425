"""Noise schedules against the tables of the released code and against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam4ir.diffusion.schedule import NoiseSchedule, cosine_schedule, linear_schedule, noise_schedule

# float32 tables of SAM-DiffSR a18eaf6, cosine schedule of 100 steps
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden_diffusion.npz")


@pytest.mark.parametrize(
    ("ours", "released"),
    [
        ("betas", "betas"),
        ("alpha_bar", "alphas_cumprod"),
        ("alpha_bar_prev", "alphas_cumprod_prev"),
        ("posterior_variance", "posterior_variance"),
        ("posterior_mean_x0", "posterior_mean_coef1"),
        ("posterior_mean_xt", "posterior_mean_coef2"),
        ("mask_coefficient", "mask_coefficient"),
    ],
)
def test_cosine_tables_equal_the_released_ones(ours: str, released: str) -> None:
    table = getattr(cosine_schedule(100), ours)
    assert table.dtype == torch.float64
    np.testing.assert_allclose(table.float().numpy(), GOLDEN[released], rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_phi_is_its_sum_and_the_mean_of_the_markov_chain(name: str) -> None:
    """phi_t = sum_{i<=t} sqrt(abar_t beta_i / abar_i); each step adds sqrt(beta_t) E to sqrt(alpha_t) x."""
    schedule = noise_schedule(name, 100)  # type: ignore[arg-type]
    abar, betas = schedule.alpha_bar, schedule.betas
    direct = torch.stack([(abar[t] * betas[: t + 1] / abar[: t + 1]).sqrt().sum() for t in range(100)])
    torch.testing.assert_close(schedule.phi, direct, rtol=1e-11, atol=0)


def test_phi_stays_of_order_one_where_abar_vanishes() -> None:
    phi = cosine_schedule(1000).phi
    assert phi.isfinite().all()
    assert phi[-1] < 2
    assert cosine_schedule(100).phi.max() == pytest.approx(6.5591, abs=1e-4)  # as documented


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_tables_are_consistent_for_any_number_of_steps(name: str, steps: int) -> None:
    schedule = noise_schedule(name, steps)  # type: ignore[arg-type]
    assert schedule.timesteps == steps
    assert (schedule.alpha_bar.diff() < 0).all()
    assert (schedule.log_snr.diff() < 0).all()
    assert schedule.log_snr.isfinite().all()
    assert schedule.posterior_mean_x0[0].item() == pytest.approx(1, rel=1e-9)
    assert schedule.posterior_mean_xt[0] == schedule.posterior_variance[0] == 0
    # a noiseless x_t = sqrt(abar_t) x_0 goes to sqrt(abar_{t-1}) x_0
    mean = schedule.posterior_mean_x0 + schedule.posterior_mean_xt * schedule.alpha_bar.sqrt()
    torch.testing.assert_close(mean, schedule.alpha_bar_prev.sqrt())


def test_the_linear_schedule_ends_in_noise_unless_asked_not_to() -> None:
    assert linear_schedule(100).alpha_bar[-1] < 1e-3
    plain = linear_schedule(100, last_beta=None)
    torch.testing.assert_close(plain.betas, torch.linspace(1e-4, 0.02, 100, dtype=torch.float64))
    assert plain.alpha_bar[-1] > 0.3


@pytest.mark.parametrize(
    "betas", [torch.zeros(3), torch.ones(3), torch.full((2, 2), 0.1), torch.ones(0), [0.1, torch.nan]]
)
def test_betas_that_are_no_schedule_are_refused(betas: object) -> None:
    with pytest.raises(ValueError, match="betas"):
        NoiseSchedule(torch.as_tensor(betas))


def test_wrong_names_and_sizes_are_refused() -> None:
    for name in ("cosin", "linear2"):
        with pytest.raises(ValueError, match=rf"'{name}'.*cosine, linear"):
            noise_schedule(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timesteps is 0"):
        noise_schedule("linear", 0)
