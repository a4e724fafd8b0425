"""Regions of the restored image itself, made in each step (ours; docs/method.md#schedules)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCALE, SIGMA, MIN_SIZE = 1000.0, 0.8, 20  # of Felzenszwalb and Huttenlocher's method, for images in [0, 1]


def own_segments(images: Tensor) -> tuple[Tensor, int]:
    """Cut images (b, c, h, w), nominally in [0, 1], into segments of similar colour.

    Returns labels (b, h, w) int64 on the images' device, dense from 1 on in each image, and the largest label. A
    segment is a function of its image alone, so a student that sees the degraded image can know it. Source:
    Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation (IJCV 2004), as scikit-image computes it, on
    the CPU.
    """
    from skimage.segmentation import felzenszwalb  # a second; most trainings read a store

    pixels = images.detach().float().nan_to_num().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    labels = []
    for image in pixels:
        segments = felzenszwalb(image.astype(np.float64), scale=SCALE, sigma=SIGMA, min_size=MIN_SIZE, channel_axis=-1)
        labels.append(np.unique(segments, return_inverse=True)[1].reshape(segments.shape) + 1)
    stacked = torch.from_numpy(np.stack(labels).astype(np.int64))
    return stacked.to(images.device), int(stacked.max())
