"""Which sub-images of a picture are least sharp: Restormer's selection for defocus deblurring (DPDD)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

KERNELS = (3, 7, 11, 15)


def sharpest(patches: Sequence[np.ndarray], blunt: float) -> list[int]:
    """The numbers of the patches that are left when the share `blunt` of the least sharp ones is dropped, in order.

    patches: (h, w, 3) RGB of one picture. A patch's sharpness is the product, over Sobel kernels of 3, 7, 11 and 15
    pixels, of the sum of gradient magnitudes of its luma, each scaled to [0, 1] over the picture's patches (Restormer,
    Defocus_Deblurring/generate_patches_dpdd.py, which drops int(0.3 n) of n). Patches that are all alike score 0.
    """
    greys = [cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY) for patch in patches]
    score = np.ones(len(greys))
    for kernel in KERNELS:
        strength = np.array([_gradients(grey, kernel) for grey in greys])
        spread = strength.max() - strength.min()
        score *= (strength - strength.min()) / spread if spread else 0.0
    dropped = np.argsort(score, kind="stable")[: int(blunt * len(greys))]
    return sorted(set(range(len(greys))) - set(dropped.tolist()))


def _gradients(grey: np.ndarray, kernel: int) -> float:
    x, y = (cv2.Sobel(grey, cv2.CV_64F, dx, 1 - dx, ksize=kernel) for dx in (1, 0))
    return float(np.sqrt(x * x + y * y).sum())
