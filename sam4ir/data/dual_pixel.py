"""Dual-pixel images and their all-in-focus ground truth (Restormer's Dataset_DefocusDeblur_DualPixel_16bit)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sam4ir.data.paired import AlignedDataset
from sam4ir.errors import UserError


@dataclass(kw_only=True, eq=False)
class DualPixelDataset(AlignedDataset):
    """Left and right view of a defocused image, and the sharp image; 16-bit PNG files, or 8-bit ones.

    lq is (6, h, w): the left view's RGB, then the right view's, as Abuolaim & Brown's network (ECCV 2020) takes them.
    Flips turn both views alike; they stay left and right in lq. filename_tmpl names both views.

    Args:
        dataroot_lqL: Folder of the left views, or an LMDB folder (*.lmdb).
        dataroot_lqR: Folder of the right views, or an LMDB folder (*.lmdb).
        scale: 1; defocus changes no size.
    """

    dataroot_lqL: str
    dataroot_lqR: str

    channels = 6
    lq_views = 2

    def __post_init__(self) -> None:
        if self.scale != 1:
            raise UserError(f"scale: {self.scale} must be 1 for defocus deblurring")
        super().__post_init__()

    def lq_roots(self) -> Mapping[str, str]:
        """Return the folders of the left and the right views."""
        return {"dataroot_lqL": self.dataroot_lqL, "dataroot_lqR": self.dataroot_lqR}
