"""Pixel losses: the official PSNRLoss values, closed forms, gradients."""

import math

import numpy as np
import pytest
import torch

from sam4ir.losses.pixel import CharbonnierLoss, L1Loss, MSELoss, PSNRLoss

ALL = [L1Loss, MSELoss, CharbonnierLoss, PSNRLoss]


def uniform(seed, shape=(2, 3, 9, 11)):
    return torch.from_numpy(np.random.RandomState(seed).uniform(0, 1, shape).astype(np.float32))


# values of the official PSNRLoss (HINet 4e72315, NAFNet 2b4af71) on these inputs
@pytest.mark.parametrize(
    ("arguments", "value"),
    [({}, -7.5284271240234375), ({"toY": True}, -12.515165328979492), ({"loss_weight": 0.5}, -3.7642135620117188)],
)
def test_psnr_loss_equals_the_official_one(arguments, value):
    assert PSNRLoss(**arguments)(uniform(1), uniform(2)).item() == pytest.approx(value, rel=1e-6)


def test_psnr_loss_is_the_mean_over_images_not_of_the_batch():
    target = torch.zeros(2, 3, 8, 8)
    prediction = torch.stack([torch.full((3, 8, 8), 0.1), torch.full((3, 8, 8), 0.01)])
    assert PSNRLoss()(prediction, target).item() == pytest.approx(-30.0, abs=1e-3)


@pytest.mark.parametrize("toY", [False, True])
def test_psnr_loss_of_equal_images_is_finite_with_gradient_zero(toY):
    prediction = uniform(3).requires_grad_()
    loss = PSNRLoss(toY=toY)(prediction, prediction.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(-80.0, abs=1e-4)
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (L1Loss(), 0.5),
        (L1Loss(2.0), 1.0),
        (L1Loss(reduction="sum"), 0.5 * 24),
        (MSELoss(), 0.25),
        (MSELoss(reduction="sum"), 0.25 * 24),
        (CharbonnierLoss(), 0.5),
        (CharbonnierLoss(eps=0.75), 1.0),
        (CharbonnierLoss(3.0, "sum", 0.75), 72.0),
    ],
)
def test_values_on_a_constant_difference(loss, value):
    target = torch.rand(2, 3, 2, 2)
    assert loss(target + 0.5, target).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("loss", [L1Loss(), MSELoss(), CharbonnierLoss()])
def test_gradient_is_zero_at_equality(loss):
    prediction = uniform(4).requires_grad_()
    loss(prediction, prediction.detach().clone()).backward()
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize("make", ALL)
def test_gradients_equal_finite_differences(make):
    prediction, target = (uniform(s, (2, 3, 3, 4)).double() for s in (5, 6))
    assert torch.autograd.gradcheck(lambda p: make()(p, target), prediction.requires_grad_())


@pytest.mark.parametrize("make", ALL)
def test_bf16_autocast_and_inputs_are_computed_in_float32(make):
    prediction, target = uniform(7).bfloat16(), uniform(8).bfloat16()
    expected = make()(prediction.float(), target.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = make()(prediction, target)
    assert got.dtype == torch.float32
    assert got.shape == ()
    assert got.item() == expected.item()


def test_half_inputs_near_equality_do_not_underflow():
    target = torch.zeros(1, 3, 4, 4, dtype=torch.float16)
    prediction = torch.full_like(target, 1e-4)  # its square is 0 in float16
    assert PSNRLoss()(prediction, target).item() == pytest.approx(10 * math.log10(2e-8), abs=1e-2)


@pytest.mark.parametrize("make", ALL)
def test_different_shapes_are_refused_not_broadcast(make):
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\).*\(2, 3, 1, 1\)"):
        make()(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 1, 1))


@pytest.mark.parametrize("make", ALL)
def test_unknown_reductions_are_refused(make):
    with pytest.raises(ValueError, match="'none'"):
        make(reduction="none")


def test_psnr_loss_wants_batches_and_three_channels_for_luma():
    x = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="expected"):
        PSNRLoss()(x, x)
    with pytest.raises(ValueError, match=r"\(b, 3, h, w\)"):
        PSNRLoss(toY=True)(x[None, :1], x[None, :1])


def test_charbonnier_without_eps_is_refused():
    with pytest.raises(ValueError, match="eps is 0"):
        CharbonnierLoss(eps=0)
