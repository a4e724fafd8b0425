"""Make masks of everything in an image from a grid of points (automatic mask generation, arXiv 2304.02643, appendix B).

The settings, the results and their order are those of segment_anything.SamAutomaticMaskGenerator. In precision fp32 the
masks are the same pixel for pixel, for the same embedding and the same number of points a batch. It is faster, because
the decoder repeats nothing (decoder.py), masks with a low predicted IoU are dropped before masks are enlarged, and
masks are enlarged a few at a time, without the padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    build_all_layer_point_grids,
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
)
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops import batched_nms

from sam4ir import regions
from sam4ir.errors import UserError
from sam4ir.priors.sam.decoder import Arithmetic, ExactArithmetic, FoldedArithmetic, PointDecoder
from sam4ir.priors.sam.load import image_embedding
from sam4ir.registry import near_miss

Precision = Literal["fp32", "fast", "bf16"]
Box = tuple[int, int, int, int]

PRECISIONS: dict[str, str] = {
    "fp32": "the sums of the segment-anything package, in its order",
    "fast": "float32, with projections folded together: masks differ by rounding only",
    "bf16": "bfloat16 in the encoder and for everything that is computed at each image token",
}
MOST_POINTS = 10_000  # a side; the points of such a grid take 1.6 GB
POINTS_PER_BATCH = {"cpu": 8, "cuda": 64}
_ENLARGED_VALUES = 1 << 24  # values of the masks that are enlarged together, 64 MB


@dataclass(frozen=True)
class AutomaticMaskSettings:
    """Settings of segment_anything.SamAutomaticMaskGenerator, by its names and with its defaults.

    points_per_side: points along a side of the grid. points_per_batch: points that the decoder computes at once; None
        takes 8 on a CPU and 64 on CUDA.
    pred_iou_thresh, stability_score_thresh: masks below this are dropped; 0 keeps all. stability_score_offset: the
        stability is the IoU of the masks where the logits are above +offset and above -offset.
    box_nms_thresh: if the boxes of two masks have a larger IoU, only the mask with the better predicted IoU stays.
    crop_n_layers: SAM also sees the image in 4^i crops for i = 1 .. crop_n_layers. They overlap by crop_overlap_ratio
        of the shorter side and have crop_n_points_downscale_factor^i times fewer points a side. crop_nms_thresh: as
        box_nms_thresh, between crops.
    point_grids: grids instead of points_per_side, one for each layer: (points, 2) x, y in [0, 1].
    min_mask_region_area: holes of fewer pixels are filled and islands removed; 0 leaves them.
    Raises UserError naming the setting.
    """

    points_per_side: int | None = 32
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[Sequence[Sequence[float]]] | None = None
    min_mask_region_area: int = 0

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UserError("give either points_per_side or point_grids, and the other one as None")
        least = {"points_per_side": 1, "points_per_batch": 1, "crop_n_layers": 0, "min_mask_region_area": 0}
        for name, lowest in {**least, "crop_n_points_downscale_factor": 1}.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                raise UserError(f"{name} is {value!r}, must be a whole number from {lowest}")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)!r}, must lie between 0 and 1")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise UserError(f"crop_overlap_ratio is {self.crop_overlap_ratio!r}, must be at least 0 and below 1")
        if not self.stability_score_offset >= 0:
            raise UserError(f"stability_score_offset is {self.stability_score_offset!r}, must be at least 0")
        for number, grid in enumerate(self.grids()):
            if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid) or not ((grid >= 0) & (grid <= 1)).all():
                raise UserError(f"point_grids: grid {number} must be points [x, y] between 0 and 1")

    def grids(self) -> list[NDArray[np.float64]]:
        """Return the points (n, 2), x and y in [0, 1], of each crop layer."""
        if self.point_grids is None:
            assert self.points_per_side is not None
            if self.points_per_side > MOST_POINTS:
                raise UserError(f"points_per_side is {self.points_per_side}, must be at most {MOST_POINTS}")
            factor = self.crop_n_points_downscale_factor
            if self.points_per_side < factor**self.crop_n_layers:
                raise UserError(
                    f"points_per_side is {self.points_per_side}: no point remains in layer {self.crop_n_layers} "
                    f"with crop_n_points_downscale_factor {factor}"
                )
            grids: list[NDArray[np.float64]] = build_all_layer_point_grids(
                self.points_per_side, self.crop_n_layers, factor
            )
            return grids
        if not isinstance(self.point_grids, Sequence) or isinstance(self.point_grids, str):
            raise UserError("point_grids: must be a list of grids, one for each crop layer")
        if len(self.point_grids) != self.crop_n_layers + 1:
            raise UserError(
                f"point_grids holds {len(self.point_grids)} grids, crop_n_layers {self.crop_n_layers} needs "
                f"{self.crop_n_layers + 1}"
            )
        try:
            return [np.asarray(grid, np.float64) for grid in self.point_grids]
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"point_grids: must be points [x, y] between 0 and 1 ({error})") from None

    def provenance(self) -> dict[str, Any]:
        """Return the settings that decide which masks come out, as plain values: all but points_per_batch."""
        settings = asdict(self)
        del settings["points_per_batch"]
        return settings


class _Masks(NamedTuple):
    """m masks in the order of their points.

    runs: run lengths over the whole image. boxes: (m, 4) XYXY; iou, stability: (m,) float32; points: (m, 2);
    crops: (m, 4) XYXY.
    """

    runs: list[regions.Runs]
    boxes: Tensor
    iou: Tensor
    stability: Tensor
    points: Tensor
    crops: Tensor

    def pick(self, keep: Tensor) -> _Masks:
        """Return the masks that `keep` selects: indices, in their order, or (m,) bool."""
        indices = keep
        if keep.dtype == torch.bool:
            indices = keep.nonzero()[:, 0]
        return _Masks([self.runs[i] for i in indices.tolist()], *(tensor[indices] for tensor in self[1:]))

    @classmethod
    def join(cls, parts: Sequence[_Masks]) -> _Masks:
        """Return the masks of all parts, one part after the other."""
        runs: list[regions.Runs] = []
        for part in parts:
            runs += part.runs
        columns = zip(*(part[1:] for part in parts), strict=True)
        return cls(runs, *(torch.cat(tensors) for tensors in columns))


class AutomaticMaskGenerator:
    """Make masks of images with a SAM.

    sam: a model of priors/sam/load.py; it stays on its device. precision: one of PRECISIONS. encoder: turns an image
    (h, w, 3) uint8 into its embedding (1, 256, 64, 64) float32; default image_embedding of priors/sam/load.py.
    Raises UserError for another precision.
    """

    def __init__(
        self,
        sam: Sam,
        settings: AutomaticMaskSettings | None = None,
        precision: Precision = "fp32",
        encoder: Callable[[np.ndarray], Tensor] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            known = f"{near_miss(precision, PRECISIONS) or ';'} known: {', '.join(PRECISIONS)}"
            raise UserError(f"no precision is called {precision!r}{known}")
        self.settings = settings or AutomaticMaskSettings()
        self._sam = sam
        self._device = torch.device(sam.device)
        self._grids = self.settings.grids()
        self._batch = self.settings.points_per_batch or POINTS_PER_BATCH.get(self._device.type, 64)
        self._transform = ResizeLongestSide(sam.image_encoder.img_size)
        self._decoder = PointDecoder(sam, _arithmetic(precision))
        encoder_precision = "bf16" if precision == "bf16" else "fp32"
        self._encoder = encoder or functools.partial(image_embedding, sam, precision=encoder_precision)

    @torch.inference_mode()
    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Return the image's masks as SamAutomaticMaskGenerator lists them, best predicted IoU first.

        image: (h, w, 3) uint8 RGB. Each mask: segmentation {size [h, w], counts [run lengths, column by column]},
        area, bbox [x, y, width, height], predicted_iou, point_coords [[x, y]], stability_score, crop_box.
        """
        h, w = image.shape[:2]
        crops, layers = generate_crop_boxes((h, w), self.settings.crop_n_layers, self.settings.crop_overlap_ratio)
        parts = []
        for (x0, y0, x1, y1), layer in zip(crops, layers, strict=True):
            parts.append(self._crop(image, (int(x0), int(y0), int(x1), int(y1)), self._grids[layer]))
        masks = _Masks.join(parts)
        if len(crops) > 1:  # masks of smaller crops first
            sides = (masks.crops[:, 2:] - masks.crops[:, :2]).float()
            masks = masks.pick(_nms(masks.boxes, 1 / sides.prod(dim=1), self.settings.crop_nms_thresh))
        if self.settings.min_mask_region_area:
            masks = self._without_small_regions(masks, (h, w))
        return [_as_dictionary(masks, i, (h, w)) for i in range(len(masks.runs))]

    def _crop(self, image: np.ndarray, crop: Box, grid: NDArray[np.float64]) -> _Masks:
        """Return the masks of one crop (XYXY)."""
        x0, y0, x1, y1 = crop
        size = y1 - y0, x1 - x0
        shared = self._decoder.begin(self._encoder(image[y0:y1, x0:x1]))
        points = grid * np.array(size[::-1])[None]
        parts = []
        for first in range(0, len(points), self._batch):
            batch = points[first : first + self._batch]
            parts.append(self._masks_of_points(shared, batch, crop, image.shape[:2]))
        masks = _Masks.join(parts)
        masks = masks.pick(_nms(masks.boxes, masks.iou, self.settings.box_nms_thresh))
        offset = torch.tensor([x0, y0, x0, y0])
        return masks._replace(
            boxes=masks.boxes + offset,
            points=masks.points + offset[:2],
            crops=torch.tensor(crop).repeat(len(masks.runs), 1),
        )

    def _masks_of_points(self, shared: Tensor, points: NDArray[np.float64], crop: Box, size: tuple[int, int]) -> _Masks:
        """Return the masks of points (b, 2) in a crop of an image of `size`; boxes and points in the crop's frame."""
        crop_size = crop[3] - crop[1], crop[2] - crop[0]
        inputs = torch.as_tensor(self._transform.apply_coords(points, crop_size), device=self._device)
        decoded = self._decoder.decode(shared, inputs)
        good = decoded.iou > self.settings.pred_iou_thresh
        if not self.settings.pred_iou_thresh:
            good = torch.ones_like(good)
        keeps, stabilities = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0)]
        runs: list[regions.Runs] = []
        for logits in self._enlarged(decoded, good, crop_size):
            keep, stability, stable_runs = self._stable_masks(logits, crop, size)
            keeps.append(keep)
            stabilities.append(stability)
            runs += stable_runs
        keep = torch.cat(keeps)
        masks = _Masks(
            runs,
            _boxes_in_crop(runs, crop, size),
            decoded.iou[good].cpu()[keep],
            torch.cat(stabilities)[keep],
            torch.from_numpy(points).repeat_interleave(good.shape[1], dim=0)[good.flatten().cpu()][keep],
            torch.empty(len(runs), 0),
        )
        near_edge = is_box_near_crop_edge(masks.boxes, list(crop), [0, 0, size[1], size[0]])
        if near_edge.any():
            return masks.pick(~near_edge)
        return masks

    def _enlarged(self, decoded: Any, good: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """Yield logits (1, some, h, w) of the masks that `good` (b, 3) marks, at the crop's size, a few at a time.

        The package enlarges to 1024 x 1024, cuts off the padding and shrinks to the crop's size. Here the rows and
        columns that lie wholly in the padding are cut off first; no other value changes.
        """
        if not good.any():
            return
        small = self._decoder.masks(decoded, good)
        side = self._sam.image_encoder.img_size
        factor = side // small.shape[1]
        inner = self._transform.get_preprocess_shape(*size, side)
        rows, columns = (min(small.shape[1], length // factor + 2) for length in inner)
        small = small[None, :, :rows, :columns]
        largest = max(rows * columns * factor**2, size[0] * size[1])
        for some in small.split(max(1, _ENLARGED_VALUES // largest), dim=1):
            large = F.interpolate(some, (rows * factor, columns * factor), mode="bilinear", align_corners=False)
            yield F.interpolate(large[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)

    def _stable_masks(
        self, logits: Tensor, crop: Box, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, list[regions.Runs]]:
        """Return which masks (1, m, h, w) are stable, (m,) bool; the stability of all; the runs of the stable ones."""
        settings, threshold = self.settings, self._sam.mask_threshold
        high = (logits[0] > threshold + settings.stability_score_offset).flatten(1).sum(dim=1, dtype=torch.int32)
        low = (logits[0] > threshold - settings.stability_score_offset).flatten(1).sum(dim=1, dtype=torch.int32)
        stability = high / low
        keep = stability >= settings.stability_score_thresh
        if not settings.stability_score_thresh:
            keep = torch.ones_like(keep)
        masks = logits[0, keep] > threshold
        h, w = size
        if crop != (0, 0, w, h):
            masks = F.pad(masks, (crop[0], w - crop[2], crop[1], h - crop[3]))
        return keep.cpu(), stability.cpu(), mask_runs(masks)

    def _without_small_regions(self, masks: _Masks, size: tuple[int, int]) -> _Masks:
        """Fill small holes and remove small islands; of masks that become alike, those without a change stay."""
        smallest = self.settings.min_mask_region_area
        runs, boxes, unchanged = list(masks.runs), masks.boxes.clone(), []
        for i, old in enumerate(masks.runs):
            mask, filled = remove_small_regions(regions.runs_to_mask(old, size), smallest, mode="holes")
            mask, removed = remove_small_regions(mask, smallest, mode="islands")
            unchanged.append(not (filled or removed))
            if filled or removed:
                runs[i] = regions.mask_to_runs(mask)
                x, y, width, height = regions.box(runs[i], size)
                boxes[i] = torch.tensor([x, y, x + width, y + height])
        thresh = max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh)
        return masks._replace(runs=runs, boxes=boxes).pick(_nms(boxes, torch.tensor(unchanged).float(), thresh))


def _boxes_in_crop(runs: Sequence[regions.Runs], crop: Box, size: tuple[int, int]) -> Tensor:
    """Return the boxes (m, 4) XYXY of masks in the frame of a crop; the box of an empty mask is all zeros."""
    corners = []
    for mask in runs:
        x, y, width, height = regions.box(mask, size)
        corners.append((x, y, x + width, y + height))
    boxes = torch.tensor(corners, dtype=torch.int64).reshape(-1, 4)
    return boxes - torch.tensor([crop[0], crop[1], crop[0], crop[1]]) * (boxes != 0).any(dim=1, keepdim=True)


def mask_runs(masks: Tensor) -> list[regions.Runs]:
    """Return COCO's run lengths (column by column, the uncovered run first) of each of the masks (m, h, w) bool."""
    m, h, w = masks.shape
    if not m:
        return []
    flat = masks.transpose(1, 2).flatten(1)
    number, at = (flat[:, 1:] != flat[:, :-1]).nonzero(as_tuple=True)
    edges = np.split((at + 1).cpu().numpy(), torch.bincount(number, minlength=m).cumsum(0)[:-1].cpu().numpy())
    begins = flat[:, 0].cpu().numpy()
    runs = []
    for covered, inner in zip(begins, edges, strict=True):
        start = [0, 0] if covered else [0]
        runs.append(np.diff(np.concatenate((start, inner, [h * w]))))
    return runs


def _arithmetic(precision: Precision) -> Arithmetic:
    if precision == "fp32":
        return ExactArithmetic()
    if precision == "bf16":
        return FoldedArithmetic(torch.bfloat16)
    return FoldedArithmetic(torch.float32)


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices of the boxes (m, 4) XYXY that stay, best score first."""
    indices: Tensor = batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), threshold)
    return indices


def _as_dictionary(masks: _Masks, i: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "segmentation": {"size": list(size), "counts": masks.runs[i].tolist()},
        "area": regions.area(masks.runs[i]),
        "bbox": _xywh(masks.boxes[i]),
        "predicted_iou": masks.iou[i].item(),
        "point_coords": [masks.points[i].tolist()],
        "stability_score": masks.stability[i].item(),
        "crop_box": _xywh(masks.crops[i]),
    }


def _xywh(box: Tensor) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]
