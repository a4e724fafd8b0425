"""Noise of sampling: a function of the image's seed and the step, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from sam4ir.diffusion.noise import SeededNoise

SHAPE = (3, 7, 9)


def test_an_image_has_its_noise_in_any_batch_and_order() -> None:
    together = SeededNoise([5, -1, 2**62], SHAPE)
    late = together(7)
    for i, seed in enumerate((5, -1, 2**62)):
        alone = SeededNoise([seed], SHAPE)
        assert torch.equal(alone.start()[0], together.start()[i])
        assert torch.equal(alone(7)[0], late[i])
    assert torch.equal(together(7), late)


def test_seeds_and_steps_have_streams_of_their_own() -> None:
    draws = [draw for seed in (0, 1, 2**32) for n in [SeededNoise([seed], SHAPE)] for draw in (n.start(), n(0), n(1))]
    rows = torch.stack(draws).flatten(1)
    assert torch.equal(torch.cov(rows).abs().gt(0.5), torch.eye(9, dtype=torch.bool))


def test_the_start_is_the_draw_before_the_first_step() -> None:
    noise = SeededNoise([5], SHAPE)
    assert torch.equal(noise.start(), noise(-1))
    assert not torch.equal(noise.start(), noise(0))


def test_it_is_standard_normal_contiguous_float32_and_leaves_other_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    noise = SeededNoise([3, 4], (3, 64, 64))
    values = noise.start()
    assert torch.equal(torch.rand(1), expected)
    assert values.shape == noise(0).shape == (2, 3, 64, 64)
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    assert values.mean().abs() < 0.03
    assert (values.std() - 1).abs() < 0.03


def test_no_seed_or_no_image_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="0 seeds"):
        SeededNoise([], SHAPE)
    for shape in ((1, 3, 7, 9), (7, 9)):
        with pytest.raises(ValueError, match=r"\(c, h, w\)"):
            SeededNoise([1], shape)  # type: ignore[arg-type]
