"""The modules that become graphs: a network with its padding and crop, for images of every size.

A module of this file works on a copy of the network whose own padding is switched off, because it chooses by `if`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.archs.nafnet import LocalMean, SubsampledLocalMean
from sam4ir.archs.size import SizeRule
from sam4ir.errors import UserError
from sam4ir.export.convolutions import as_convolutions
from sam4ir.export.padding import Padding, smaller
from sam4ir.models.restoration import last_output

Precision = Literal["fp32", "fp16"]


class ExportError(UserError):
    """A network that cannot be exported, or a file of one that is not as it should be; the message says why."""


class RestoringGraph(nn.Module):
    """Images (b, c, h, w) float32 in [0, 1] -> restored images (b, c', h scale, w scale) float32, for all h and w.

    network: a network in evaluation mode, which stays as it is. scale: output pixels per input pixel. window: images
    are padded to a multiple of it first, as val.window_size asks. precision: of weights and activations. clamp: whether
    the output is limited to [0, 1]; the restore path limits it when it writes a file.
    Raises ExportError for a network whose graph depends on the size of the image.
    """

    def __init__(
        self, network: nn.Module, scale: int = 1, window: int = 1, precision: Precision = "fp32", clamp: bool = False
    ) -> None:
        super().__init__()
        self.scale = scale
        self.clamp = clamp
        self.in_half = precision == "fp16"
        multiple = math.lcm(window, int(getattr(network, "unshuffle", 1)))
        self.paddings = [Padding(multiple, mode="together")]
        rule = getattr(network, "size", None)
        if isinstance(rule, SizeRule):
            self.paddings.append(Padding.of_rule(rule))
        self.network = _without_branches(network, self.in_half)

    @property
    def multiple(self) -> int:
        """The number of pixels that the sides of padded images are multiples of."""
        return math.lcm(*(padding.multiple for padding in self.paddings))

    def forward(self, image: Tensor) -> Tensor:
        """Return the restored images."""
        x = image
        for padding in self.paddings:
            x = padding(x)
        if self.in_half:
            x = x.half()
        restored = last_output(self.network(x)).float()
        height, width = image.shape[-2] * self.scale, image.shape[-1] * self.scale
        restored = restored[..., :height, :width]
        if self.clamp:
            restored = restored.clamp(0, 1)
        return restored


class ConditionGraph(nn.Module):
    """The condition of a diffusion network, which serves all steps of an image.

    LR images (b, 3, h, w) float32 in [0, 1] -> (b, hidden_size, H, W) float32. H and W are the sides of the HR image
    whose LR image is padded to what the network takes; the finished HR image is cut to h scale x w scale.
    """

    def __init__(self, network: DiffSR, precision: Precision = "fp32") -> None:
        super().__init__()
        self.in_half = precision == "fp16"
        self.padding = Padding(network.multiple, least=network.smallest, mode="together")
        self.network = _without_branches(network, self.in_half)

    @property
    def multiple(self) -> int:
        """The number of pixels that the sides of padded LR images are multiples of."""
        return self.padding.multiple

    def forward(self, image: Tensor) -> Tensor:
        """Return the condition."""
        x = self.padding(image)
        if self.in_half:
            x = x.half()
        condition: Tensor = self.network.condition(x)  # type: ignore[operator]
        return condition.float()


class StepGraph(nn.Module):
    """One step of a diffusion network: the estimate of its target, such as the noise, eps(x_t, t, condition).

    x_t: (b, 3, H, W) float32; t: (b,) int64; condition: (b, hidden_size, H, W) float32 of ConditionGraph; lq_up: the
    up-sampled LR image (b, 3, H, W) in [-1, 1], for a network with up_input alone. Returns (b, 3, H, W) float32.
    """

    def __init__(self, network: DiffSR, precision: Precision = "fp32") -> None:
        super().__init__()
        self.in_half = precision == "fp16"
        self.multiple = network.denoise_fn.multiple
        self.up_input = network.denoise_fn.up_proj is not None
        self.network = _without_branches(network, self.in_half)

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor | None = None) -> Tensor:
        """Return the estimate."""
        if self.in_half:
            x_t, condition = x_t.half(), condition.half()
            if lq_up is not None:
                lq_up = lq_up.half()
        estimate: Tensor = self.network.denoise(x_t, t, condition, lq_up)  # type: ignore[operator]
        return estimate.float()


class _MeanAroundEachPixel(nn.Module):
    """LocalMean with the border that the network replicates: (b, c, h, w) -> (b, c, h, w), without a choice by size."""

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the window around each pixel, in x's type."""
        mean = x.float()
        for dim, length in zip((2, 3), self.window, strict=True):
            mean = _means_along(mean, length, dim)
        return mean.to(x.dtype)


def _means_along(x: Tensor, length: int, dim: int) -> Tensor:
    """Return the mean over `length` entries around each entry of a dimension; at its ends that of the last window."""
    side = x.shape[dim]
    length = smaller(length, side)
    sums = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.cumsum(dim)], dim)  # sums[i]: of the first i entries
    first = torch.arange(side, device=x.device) - (length - 1) // 2
    first = torch.minimum(first.clamp(min=0), torch.zeros_like(first) + (side - length))
    return (sums.index_select(dim, first + length) - sums.index_select(dim, first)) / length


def _without_branches(network: nn.Module, half: bool) -> nn.Module:
    """Return a copy in evaluation mode, of convolutions, that neither pads nor chooses by the size of the image."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if isinstance(getattr(network, "size", None), SizeRule):
        network.size = SizeRule()  # type: ignore[assignment]
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SubsampledLocalMean):
                raise ExportError(
                    f"{type(network).__name__}: fast_imp: true averages over rows and columns that depend on the "
                    "divisors of the image's sides, which no graph for all sizes can do; export it with fast_imp: "
                    "false, whose averages are exact"
                )
            if isinstance(child, LocalMean):
                setattr(parent, name, _MeanAroundEachPixel(child.window))
    as_convolutions(network)
    if half:
        network.half()
    return network


def input_names(graph: nn.Module) -> Sequence[str]:
    """Return the names of a graph's inputs, in order."""
    if not isinstance(graph, StepGraph):
        return ("image",)
    names = ["x_t", "t", "condition"]
    if graph.up_input:
        names.append("lq_up")
    return names


def output_name(graph: nn.Module) -> str:
    """Return the name of a graph's output."""
    if isinstance(graph, StepGraph):
        return "estimate"
    if isinstance(graph, ConditionGraph):
        return "condition"
    return "restored"
