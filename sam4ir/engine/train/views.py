"""The maps that the models of this project read of masks: regions for SAM4IR, position encodings for SAM-DiffSR."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.transforms import Window
from sam4ir.data.views import LabelView, ValueView
from sam4ir.priors.spe import Mean, SpeRecord, spe_map


class RegionView(LabelView):
    """Visible parts of the masks after painting, one label each, which SPF, SPD and SGR read."""

    def read(self, record: MaskRecord, window: Window) -> np.ndarray:
        """Return the labels (h, w) of a window."""
        return record.region_map(window.top, window.left, window.height, window.width)


@dataclass(frozen=True)
class SpeView(ValueView):
    """Structural position encoding of SAM-DiffSR: one value for each mask, 0 where none lies.

    Args:
        mean: What a mask's sum is divided by, 'image' (pixels of the image) or 'region' (pixels of the mask).
    """

    mean: Mean = "image"

    def read(self, record: SpeRecord, window: Window) -> np.ndarray:
        """Return the encoding (h, w) of a window, float32."""
        return spe_map(record, window.top, window.left, window.height, window.width, self.mean)
