"""Restore images with a student, and refine them by masks: the refiner as at validation, on any image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sam4ir.engine.refine.masks import Masks
from sam4ir.engine.restore.images import ImageRestorer
from sam4ir.engine.restore.one_pass import in_format
from sam4ir.engine.restore.within_memory import ImageTooLargeError
from sam4ir.errors import first_line
from sam4ir.models.restoration import last_output
from sam4ir.models.sam_distill import Refiner
from sam4ir.utils.image import eight_bits
from sam4ir.utils.memory import out_of_memory, release


@dataclass(frozen=True)
class RefinedRestorer:
    """A restorer of refined images: Y2 = f2(SPF(Y1, M)) of the student's Y1 and the masks M (docs/method.md#sam4ir).

    refiner: in eval mode, on the student's device. precision: the number format of its pass. Tiles and self-ensemble
    are the student's; the refiner takes the whole image once, as regions and their means reach across it.
    """

    student: ImageRestorer
    refiner: Refiner
    masks: Masks
    precision: str = "fp32"

    @property
    def channels(self) -> Literal[1, 3]:
        """The channels of its images, 3 (RGB) or 1 (grey)."""
        return self.student.channels

    @property
    def alone(self) -> ImageRestorer:
        """The student."""
        return self.student

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, key: str = "", sample: int = 0) -> np.ndarray:
        """Return the refined image, (h, w, c) of the same type and channels. key: by which a store has its masks.

        Raises UserError where the image has no masks, ImageTooLargeError where memory runs out.
        """
        degraded = self.student.to_tensor(image).unsqueeze(0).to(self.student.device)
        restored = self.student.tensors(degraded, key, sample)
        shown = eight_bits(self.student.to_array(restored[0], image))
        if shown.shape[2] == 1:
            shown = np.repeat(shown, 3, axis=2)
        labels = torch.from_numpy(self.masks.labels(key, shown, restored)).unsqueeze(0).to(restored.device)
        return self.student.to_array(self._refined(restored, labels, degraded)[0], image)

    def _refined(self, restored: Tensor, labels: Tensor, degraded: Tensor) -> Tensor:
        """Return the refined image (1, c, h, w), float32, unclamped."""
        try:
            with in_format(self.precision, restored.device):
                return last_output(self.refiner(restored, labels, int(labels.max()), degraded)).float()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = first_line(error)
        release()
        size = "x".join(map(str, restored.shape[-2:]))
        raise ImageTooLargeError(
            f"memory ran out in the refiner, which takes the whole image of {size} pixels at once ({reason}); "
            "give the process more memory, cut the image, or restore it without --refine"
        )
