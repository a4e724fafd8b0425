"""Degraded images without ground truth (BasicSR's SingleImageDataset), to be restored and saved by sam4ir test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam4ir.data.cropped import Colour
from sam4ir.data.sample import Sample
from sam4ir.data.sources import IoBackend, open_source, select_keys
from sam4ir.data.transforms import refuse_normalization
from sam4ir.utils.image import ExifOrientation, to_float_tensor, to_grey


@dataclass(kw_only=True, eq=False)
class SingleImageDataset:
    """Whole LQ images of a folder or LMDB, without GT: a test set that is restored and not scored.

    Args:
        dataroot_lq: Folder of the degraded images, read with its subfolders, or an LMDB folder (*.lmdb).
        io_backend: How images are stored, {type: disk} or {type: lmdb}; left out, the name of the folder decides.
        meta_info_file: Text file with the names of the images to use, one a line; left out, all are used.
        channels: 3 for RGB; 1 for grey, the luma of what the files hold.
        exif_orientation: Images are turned as their EXIF orientation says (apply), or read as they are stored (ignore).
        mean: Accepted from other option files as zeros only; images stay in [0, 1].
        std: Accepted from other option files as ones only; images stay in [0, 1].
    """

    dataroot_lq: str
    io_backend: IoBackend | None = None
    meta_info_file: str | None = None
    channels: Colour = 3
    exif_orientation: ExifOrientation = "apply"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        refuse_normalization(self.mean, self.std)
        self.source = open_source(self.dataroot_lq, self.io_backend, "dataroot_lq", self.exif_orientation)
        self.keys = select_keys(self.source, self.meta_info_file)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        """Return the key of image `index`; images are sorted by it."""
        return self.keys[index]

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the image as a sample without GT; nothing is drawn from rng."""
        key = self.keys[index]
        with self.source.open(key) as image:
            pixels = np.asarray(image[:])
        if self.channels == 1:
            pixels = to_grey(pixels)
        return Sample(key, to_float_tensor(pixels))
