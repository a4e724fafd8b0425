"""Fusions beside SPF, each against a plain computation with loops over regions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from sam4ir.distill.attention import RegionAttention
from sam4ir.distill.distance import SignedDistanceFusion, signed_distance
from sam4ir.distill.modulation import RegionModulation
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.errors import UserError
from sam4ir.registry import FUSIONS

KINDS = ("RegionModulation", "SignedDistance", "RegionAttention")


def fusion(kind: str, **arguments: object) -> nn.Module:
    """A fusion whose last convolution has left zero, as in training."""
    torch.manual_seed(3)
    module: nn.Module = FUSIONS.get(kind)(**arguments)
    nn.init.normal_(module.out.weight, std=0.1)
    return module


def batch(h: int = 20, w: int = 26, regions: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    labels = torch.zeros(2, h, w, dtype=torch.int64)
    for number in range(1, regions + 1):
        labels[0, number : number + 8, 3 * number : 3 * number + 9] = number
    labels[1, : h // 2] = 1
    return torch.rand(2, 3, h, w), labels, torch.rand(2, 3, h, w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_input", [False, True])
def test_a_fusion_begins_as_the_restored_image_and_learns(kind: str, with_input: bool) -> None:
    torch.manual_seed(0)
    restored, labels, degraded = batch()
    module: nn.Module = FUSIONS.get(kind)(with_input=with_input)
    fused = module(restored, labels, 4, degraded)
    assert torch.equal(fused, restored)
    fused.square().mean().backward()
    assert module.out.weight.grad.abs().sum() > 0
    module = fusion(kind, with_input=with_input)
    seen = module(restored, labels, 4, degraded)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, module(restored, labels, 4, degraded * 0)) != with_input
    assert not torch.equal(seen, module(restored, labels * 0, 0, degraded))


@pytest.mark.parametrize("kind", KINDS)
def test_numbering_spare_labels_and_the_other_images_do_not_matter(kind: str) -> None:
    module, (restored, labels, degraded) = fusion(kind), batch()
    plain = module(restored, labels, 4, degraded)
    turned = torch.tensor([0, 3, 1, 4, 2])[labels]
    assert torch.allclose(module(restored, turned, 4, degraded), plain, atol=1e-5)
    assert torch.allclose(module(restored, labels, 9, degraded), plain, atol=1e-5)
    alone = module(restored[1:], labels[1:], 1, degraded[1:])
    assert torch.allclose(alone, plain[1:], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bf16", [False, True])
def test_values_and_gradients_stay_finite_on_flat_and_dark_images(kind: str, bf16: bool) -> None:
    module, (restored, labels, degraded) = fusion(kind), batch()
    for image in (restored * 0, restored * 0 + 1, restored * 1e3 - 500):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            fused = module(image, labels, 4, degraded)
        assert fused.dtype == torch.float32
        assert fused.isfinite().all()
        module.zero_grad()
        fused.mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_all_fusions_have_the_same_number_of_parameters() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    usual = count(SemanticPriorsFusion())
    for kind in KINDS:
        assert abs(count(FUSIONS.get(kind)()) - usual) < 0.02 * usual


def caught(module: nn.Module, name: str, call: Callable[[], object]) -> torch.Tensor:
    """The input of a layer during a call."""
    seen: list[torch.Tensor] = []
    handle = getattr(module, name).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    call()
    handle.remove()
    return seen[0]


def test_modulation_brings_each_region_to_one_mean_and_deviation() -> None:
    module, (restored, labels, degraded) = fusion("RegionModulation", width=6), batch()
    mixed = caught(module, "mix", lambda: module(restored, labels, 4, degraded))
    e = module.embed(restored).detach()
    for image in range(2):
        for label in labels[image].unique():
            inside = labels[image] == label
            values = e[image, :, inside]
            mean, deviation = values.mean(1), values.var(1, unbiased=False).clamp(min=1e-4).sqrt()
            scale, shift = module.modulate(torch.cat([mean, deviation])).chunk(2)
            expected = (values - mean[:, None]) / deviation[:, None] * (1 + scale[:, None]) + shift[:, None]
            assert torch.allclose(mixed[image, :6, inside], expected, atol=2e-4)
    assert torch.equal(mixed[:, 6:], restored)


def test_attention_is_the_weighted_mean_of_each_region_and_head() -> None:
    module, (restored, labels, degraded) = fusion("RegionAttention", width=6, heads=2), batch()
    mixed = caught(module, "mix", lambda: module(restored, labels, 4, degraded))
    e = module.embed(restored).detach()
    weights = (module.weigh(e).tanh() * 4).exp().detach()
    for image in range(2):
        for label in labels[image].unique():
            inside = labels[image] == label
            for head in range(2):
                w = weights[image, head, inside]
                values = e[image, 3 * head : 3 * head + 3, inside]
                mean = (values * w).sum(1) / w.sum()
                if label == 0:
                    mean = mean * 0
                shown = mixed[image, 3 + 6 + 3 * head : 3 + 6 + 3 * head + 3, inside]
                assert torch.allclose(shown, mean[:, None].expand_as(shown), atol=1e-5)


def test_equal_weights_are_the_region_mean_of_spf() -> None:
    attention, (restored, labels, degraded) = RegionAttention(width=8), batch()
    nn.init.zeros_(attention.weigh.weight)
    nn.init.zeros_(attention.weigh.bias)
    spf = SemanticPriorsFusion(width=8)
    spf.embed = attention.embed
    ours = caught(attention, "mix", lambda: attention(restored, labels, 4, degraded))
    theirs = caught(spf, "mix", lambda: spf(restored, labels, 4, degraded))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("reach", [1, 3, 16])
def test_the_signed_distance_is_that_of_a_search(reach: int) -> None:
    _, labels, _ = batch()
    seen = signed_distance(labels, reach)[:, 0].numpy()
    maps = labels.numpy()
    for image in range(2):
        near = np.zeros(maps.shape[1:], bool)
        for axis in (0, 1):
            changes = np.diff(maps[image], axis=axis) != 0
            pad = [(0, 0), (0, 0)]
            pad[axis] = (0, 1)
            near |= np.pad(changes, pad)
            pad[axis] = (1, 0)
            near |= np.pad(changes, pad)
        rows, columns = np.nonzero(near)
        for y in range(0, maps.shape[1], 3):
            for x in range(0, maps.shape[2], 3):
                distance = np.maximum(abs(rows - y), abs(columns - x)).min() if len(rows) else reach
                sign = 1 if maps[image, y, x] > 0 else -1
                assert seen[image, y, x] == pytest.approx(sign * min(distance, reach) / reach)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="width 30 must be a multiple of heads 4"):
        RegionAttention(width=30)
    with pytest.raises(UserError, match="reach is 0"):
        SignedDistanceFusion(reach=0)
    assert RegionModulation(width=7)(*batch()[:2], 4, batch()[2]).shape == (2, 3, 20, 26)
