"""Dual-pixel images and their all-in-focus ground truth (Restormer's Dataset_DefocusDeblur_DualPixel_16bit)."""

from __future__ import annotations

from collections.abc import Sequence

from sam4ir.data.paired import AlignedDataset
from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews
from sam4ir.data.sources import IoBackend
from sam4ir.data.transforms import augmentation, refuse_normalization
from sam4ir.errors import UserError


class DualPixelDataset(AlignedDataset):
    """lq (6, h, w): the left view's RGB, then the right view's, as Abuolaim & Brown's network (ECCV 2020) takes them.

    dataroot_lqL, dataroot_lqR: the two views of the defocused image; dataroot_gt: the sharp one. 16-bit PNG files, in
    folders or LMDBs; 8 bits are read as well. filename_tmpl: the name of both views from the GT name.
    Flips turn both views alike; they stay left and right in lq. The other arguments are PairedImageDataset's.
    """

    def __init__(
        self,
        dataroot_gt: str,
        dataroot_lqL: str,
        dataroot_lqR: str,
        io_backend: IoBackend | None = None,
        meta_info_file: str | None = None,
        filename_tmpl: str = "{}",
        gt_size: int | None = None,
        use_hflip: bool = False,
        use_flip: bool | None = None,
        use_rot: bool = False,
        scale: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        if scale != 1:
            raise UserError(f"scale: {scale} must be 1 for defocus deblurring")
        refuse_normalization(mean, std)
        super().__init__(
            dataroot_gt,
            {"dataroot_lqL": dataroot_lqL, "dataroot_lqR": dataroot_lqR},
            io_backend,
            meta_info_file,
            filename_tmpl,
            augmentation(gt_size, use_hflip, use_flip, use_rot),
            MaskReader(masks, mask_views),
            scale,
        )
