"""Frechet distance of two sets of features: Heusel et al., GANs trained by a two time-scale update rule (2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frechet_distance(images: Tensor, references: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the Gaussians that fit two sets of features  (eq. 6).

    images: (n, d), references: (m, d), any floating type; computed in float64. Covariances are unbiased.
    With C = A^T A, the eigenvalues of C1 C2 are the squared singular values of A1 A2^T: their sum is the trace of the
    root. That is real and exact for any number of images. The root of a product of singular covariances, which fewer
    images than features have, is neither. Returns 0 for equal sets, and NaN if a set has less than two images or a
    value that is not finite.
    """
    first, second = images.to(torch.float64), references.to(torch.float64)
    if min(len(first), len(second)) < 2 or not (first.isfinite().all() and second.isfinite().all()):
        return math.nan
    means = first.mean(dim=0) - second.mean(dim=0)
    a, b = _factor(first), _factor(second)
    traces = a.square().sum() + b.square().sum()
    root = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(means.square().sum() + traces - 2 * root))


def _factor(features: Tensor) -> Tensor:
    """Return A (k, d) where A^T A is the unbiased covariance of (n, d) features, k = min(n, d)."""
    n, d = features.shape
    centred = (features - features.mean(dim=0)) / math.sqrt(n - 1)
    if n <= d:
        return centred
    return torch.linalg.qr(centred, mode="r").R
