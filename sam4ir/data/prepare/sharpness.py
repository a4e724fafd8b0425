"""The selection of sharp sub-images: Restormer's rule for defocus deblurring (DPDD), which drops the blurriest ones."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

KERNELS = (3, 7, 11, 15)


def sharpest(patches: Sequence[np.ndarray], blunt: float) -> list[int]:
    """Return the ascending indices of the patches that remain when the least sharp ones are dropped.

    patches: (h, w, 3) RGB, all from one image. blunt: share to drop, 0 to 1; int(blunt * n) of n patches go. A patch's
    sharpness is the product over Sobel kernels of 3, 7, 11 and 15 pixels. Each factor is the sum of the gradient
    magnitudes of the patch's luma, scaled to [0, 1] over the image's patches, and 0 where all patches are alike
    (Restormer, Defocus_Deblurring/generate_patches_dpdd.py, which drops int(0.3 n) of n).
    """
    greys = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY) for patch in patches]
    sharpness = np.ones(len(greys))
    for kernel in KERNELS:
        gradients = np.array([_gradient_sum(grey, kernel) for grey in greys])
        spread = gradients.max() - gradients.min()
        if spread:
            sharpness *= (gradients - gradients.min()) / spread
        else:
            sharpness *= 0.0
    dropped = np.argsort(sharpness, kind="stable")[: int(blunt * len(greys))]
    return sorted(set(range(len(greys))) - set(dropped.tolist()))


def _gradient_sum(grey: np.ndarray, kernel: int) -> float:
    """Return the sum of an image's gradient magnitudes, by Sobel filters of `kernel` pixels."""
    x = cv2.Sobel(grey, cv2.CV_64F, 1, 0, ksize=kernel)
    y = cv2.Sobel(grey, cv2.CV_64F, 0, 1, ksize=kernel)
    return float(np.sqrt(x * x + y * y).sum())
