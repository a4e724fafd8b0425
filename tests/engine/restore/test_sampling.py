"""Images from a diffusion network: noise, tiles and padding around the samplers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.diffusion.noise import SeededNoise
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.samplers import run_sampler
from sam4ir.diffusion.schedule import cosine_schedule
from sam4ir.engine.restore.sampling import DiffusionRestorer, Sampling
from sam4ir.models.sam_diffsr import upsampled
from sam4ir.utils.rng import derived_seed

SCALE = 4


class Pixelwise(nn.Module):
    """A denoiser that looks at a pixel and its condition alone, so that tiles change nothing."""

    multiple = 2
    smallest = 4

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.conditions = 0

    def condition(self, lq: Tensor) -> Tensor:
        self.conditions += 1
        return lq.repeat_interleave(SCALE, -2).repeat_interleave(SCALE, -1)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor | None = None) -> Tensor:
        assert lq_up is not None
        self.seen.append(tuple(x_t.shape))
        return 0.9 * x_t + 0.05 * condition + 0.02 * lq_up + 0.001 * t.view(-1, 1, 1, 1)


def restorer(network: nn.Module | None = None, **how: object) -> DiffusionRestorer:
    sampling = dataclasses.replace(Sampling("ddim", 5), **how)  # type: ignore[arg-type]
    return DiffusionRestorer(network or Pixelwise(), Process(cosine_schedule(20)), SCALE, sampling)


def small() -> DiffSR:
    torch.manual_seed(3)
    return DiffSR(hidden_size=8, dim_mults=[1, 2], rrdb_num_feat=8, rrdb_num_block=2).eval()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver_2m"])
def test_tiles_see_the_canvas_of_the_whole_image(sampler: str) -> None:
    lq = torch.rand(1, 3, 22, 31)
    network = Pixelwise()
    tiled = restorer(network, sampler=sampler, tile=8, overlap=3, batch=4)(lq, "a")
    assert max(shape[-1] for shape in network.seen) == 8 * SCALE
    assert network.conditions == 1, "the condition is made once a chain"
    torch.testing.assert_close(tiled, restorer(sampler=sampler)(lq, "a"), atol=2e-5, rtol=0)


def test_an_image_depends_on_its_name_the_seed_and_the_number_of_the_sample_alone() -> None:
    lq = torch.rand(1, 3, 8, 8)
    first = restorer()(lq, "a")
    assert torch.equal(first, restorer()(lq, "a"))
    assert torch.equal(first, restorer()(lq, "a", 0))
    for other in (restorer()(lq, "b"), restorer(seed=1)(lq, "a"), restorer()(lq, "a", 1)):
        assert not torch.equal(first, other)


def test_a_chain_begins_with_the_start_and_adds_the_noise_of_its_steps() -> None:
    network = Pixelwise()
    seen: list[Tensor] = []
    denoise = network.denoise
    network.denoise = lambda x, *rest: (seen.append(x), denoise(x, *rest))[1]  # type: ignore[method-assign, assignment]
    lq = torch.rand(1, 3, 4, 4)
    how = dataclasses.replace(Sampling("ddpm", 5), seed=9, spacing="uniform")
    process = Process(cosine_schedule(20))
    result = DiffusionRestorer(network, process, SCALE, how)(lq, "a", 3)
    noise = SeededNoise([derived_seed(9, "sampling", "a", 3)], (3, 16, 16))
    assert torch.equal(seen[0], noise.start())
    lq_up = upsampled(lq, (16, 16))
    condition = network.condition(lq)
    x_0 = run_sampler(
        process,
        lambda x, t: denoise(x, t, condition, lq_up),
        noise.start(),
        noise,
        "ddpm",
        5,
        spacing="uniform",
    )
    torch.testing.assert_close(result, ((x_0 / 2 + lq_up) + 1) / 2)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 7), (17, 6)])
def test_any_size_is_padded_and_cut_again(size: tuple[int, int]) -> None:
    network = small()
    restored = restorer(network)(torch.rand(1, 3, *size), "a")
    assert restored.shape == (1, 3, SCALE * size[0], SCALE * size[1])
    assert restored.isfinite().all()


def test_a_network_that_sees_no_residual_gives_the_bicubic_image() -> None:
    class Silent(Pixelwise):
        def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x_t)

    lq = torch.rand(1, 3, 6, 6)
    still = dataclasses.replace(restorer(Silent()), process=Process(cosine_schedule(20), target="x_0"))
    torch.testing.assert_close(still(lq, "a"), (upsampled(lq, (24, 24)) + 1) / 2)


def test_steps_are_told() -> None:
    told: list[tuple[int, int]] = []
    dataclasses.replace(restorer(), on_step=lambda done, total: told.append((done, total)))(torch.rand(1, 3, 4, 4), "a")
    assert told == [(i, 5) for i in range(1, 6)]


def test_tiles_of_a_real_network_differ_little_from_the_whole_and_bf16_as_well() -> None:
    network = small()
    lq = torch.rand(1, 3, 24, 24)
    whole = restorer(network)(lq, "a")
    tiled = restorer(network, tile=16, overlap=8)(lq, "a")
    assert 0 < (tiled - whole).abs().max() < 0.1
    assert (restorer(network, precision="bf16")(lq, "a") - whole).abs().mean() < 0.02
