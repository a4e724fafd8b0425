"""Mish piece by piece against its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.archs import mish as module
from sam4ir.archs.mish import mish

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps in several pieces, the last of them shorter."""
    monkeypatch.setattr(module, "LEAST", 100)
    monkeypatch.setattr(module, "PIECE", 128)


def values(dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, 5, 7, 9): everything from where mish vanishes to where it is x, with what would overflow squared."""
    x = torch.linspace(-30, 30, 630)
    x[:8] = torch.tensor([-1e30, -200.0, -88.0, 0.0, 45.0, 89.0, 1e4, 1e30])
    return x[torch.randperm(630)].view(2, 5, 7, 9).to(dtype)


def by_definition(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(mish, its gradient to x) in float64."""
    x = x.detach().double().requires_grad_()
    y = x * torch.tanh(F.softplus(x))
    y.backward(gradient.double())
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)]
)
def test_values_and_gradients_are_those_of_the_definition(dtype, tolerance, layout):
    x = values(dtype).nan_to_num(posinf=6e4, neginf=-6e4).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(x.shape).to(dtype)
    y = mish(x)
    assert type(y.grad_fn).__name__ == "_PieceByPieceBackward"
    y.backward(gradient)
    expected, slope = by_definition(x, gradient)
    assert y.dtype is x.grad.dtype is dtype
    assert y.is_contiguous(memory_format=layout)
    assert torch.allclose(y.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(x.grad.double(), slope, rtol=tolerance, atol=4 * tolerance)


def test_small_values_keep_their_relative_precision():
    x = torch.linspace(-25, -5, 200)
    expected, _ = by_definition(x, torch.ones(200))
    assert torch.allclose(mish(x).double(), expected, rtol=1e-5, atol=0)


def test_a_gradient_in_another_layout_is_understood():
    x = values().requires_grad_()
    gradient = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
    mish(x).backward(gradient)
    assert torch.allclose(x.grad.double(), by_definition(x, gradient)[1], rtol=1e-5, atol=1e-5)


def test_an_expanded_gradient_is_understood():
    x = values().requires_grad_()
    mish(x).sum().backward()
    assert torch.allclose(x.grad.double(), by_definition(x, torch.ones(x.shape))[1], rtol=1e-5, atol=1e-5)


def test_a_part_of_a_larger_tensor_is_read_in_its_place():
    whole = values()
    assert torch.equal(mish(whole[1:]), mish(whole)[1:])
    for view in (whole[:, 1:3], whole[..., ::2], whole.transpose(2, 3)):
        assert torch.allclose(mish(view).double(), by_definition(view, torch.ones(view.shape))[0], rtol=1e-6, atol=1e-6)


def test_inputs_and_gradients_are_not_changed():
    x = values().requires_grad_()
    before, gradient = x.detach().clone(), torch.randn(x.shape)
    kept = gradient.clone()
    mish(x).backward(gradient)
    assert torch.equal(x, before)
    assert torch.equal(gradient, kept)


def test_nan_is_not_hidden():
    x = values()
    x[0, 0, 0, 0] = float("nan")
    assert mish(x).isnan().sum() == 1


def test_small_maps_and_other_types_are_left_to_the_kernel():
    small, double = torch.randn(3, 3), values(torch.float64)
    assert torch.equal(mish(small), F.mish(small))
    assert torch.equal(mish(double), F.mish(double))
