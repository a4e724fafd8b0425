"""Mish (Misra, BMVC 2020, arXiv 1908.08681): x tanh(softplus(x)), by one exponential where PyTorch's kernel has three.

With e = exp(x) and n = e^2 / 2 + e it is x n / (n + 1). As elementwise operations those are six passes over a map; a
CPU makes them piece by piece, while a piece lies in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 1 << 16  # values a thread: four float32 buffers of it are 1 MiB
LEAST = 1 << 17  # values; below, the kernel is as fast
LINEAR_FROM = 20.0  # mish(x) is x from here on in float32, and n^2 does not overflow up to here


def mish(x: Tensor) -> Tensor:
    """Return x tanh(softplus(x)) with x's shape, type and memory format; bfloat16 is computed in float32.

    The result equals F.mish up to rounding; only large maps on a CPU do not go through F.mish itself.
    """
    if x.is_cpu and x.numel() >= LEAST and not torch.compiler.is_compiling() and _dense(x):
        out: Tensor = _PieceByPiece.apply(x)
        return out
    return F.mish(x)


class _PieceByPiece(torch.autograd.Function):
    """mish of a dense float32, bfloat16 or float16 tensor on a CPU; it saves x alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x n / (n + 1) with e = exp(x) and n = e^2 / 2 + e."""
        ctx.save_for_backward(x)
        out = torch.empty_like(x)
        for (n, d, _, wide), (part, target) in _pieces(x, out):
            v = part
            if part.dtype is not torch.float32:
                v = wide.copy_(part)
            torch.clamp(v, max=LINEAR_FROM, out=n)
            n.exp_()
            n.addcmul_(n, n, value=0.5)
            torch.add(n, 1, out=d)
            _store(n.div_(d), v, target)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        """mish'(x) = r + x (2 r - e w) w with r = n / (n + 1), w = 1 / (n + 1)."""
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        gradient = gradients[0]
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        for (r, w, e, v), (part, upstream, target) in _pieces(x, gradient, out):
            if part.dtype is torch.float32:
                torch.clamp(part, max=LINEAR_FROM, out=v)
            else:
                v.copy_(part).clamp_(max=LINEAR_FROM)
            torch.exp(v, out=e)
            torch.addcmul(e, e, e, value=0.5, out=r)
            torch.add(r, 1, out=w)
            w.reciprocal_()
            r.mul_(w)
            e.mul_(w).sub_(r, alpha=2).mul_(w)
            r.addcmul_(e, v, value=-1)
            _store(r, upstream, target)
        return out


def _dense(x: Tensor) -> bool:
    """Return whether the memory of a map (b, c, h, w) is one piece in some order, and its type one of the three."""
    supported = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return supported and (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))


def _pieces(*tensors: Tensor) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield (four float32 buffers, a piece of each tensor) over tensors of one shape and one dense layout."""
    flat = [t.as_strided((t.numel(),), (1,)) for t in tensors]
    length = PIECE * torch.get_num_threads()
    buffers = torch.empty(4, min(length, flat[0].numel()), dtype=torch.float32).unbind()
    for start in range(0, flat[0].numel(), length):
        parts = [t[start : start + length] for t in flat]
        yield [b[: parts[0].numel()] for b in buffers], parts


def _store(a: Tensor, b: Tensor, target: Tensor) -> None:
    """Write a b into target; a is a float32 buffer that may be overwritten."""
    if target.dtype is torch.float32:
        torch.mul(a, b, out=target)
    else:
        target.copy_(a.mul_(b))
