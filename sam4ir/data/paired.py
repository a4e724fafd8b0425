"""Pairs of a degraded image and its ground truth (BasicSR's PairedImageDataset)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews, Sample
from sam4ir.data.sources import ImageSource, IoBackend, listed, open_source, select_keys
from sam4ir.data.transforms import Augmentation, Placement, augmentation, refuse_normalization
from sam4ir.errors import UserError


class AlignedDataset(CroppedDataset):
    """GT images and one or several LQ views of each, paired by name; the views are stacked as channels of lq.

    dataroot_gt: the GT images; lq_roots: option name -> the LQ images, in the order of lq's channels.
    Raises ValueError listing the names without a partner, with the filename_tmpl that would fit if there is one.
    """

    def __init__(
        self,
        dataroot_gt: str,
        lq_roots: Mapping[str, str],
        io_backend: IoBackend | None,
        meta_info_file: str | None,
        filename_tmpl: str,
        augmentation: Augmentation,
        masks: MaskReader,
        scale: int,
        channels: Colour = 3,
    ) -> None:
        gt = open_source(dataroot_gt, io_backend, "dataroot_gt")
        self._lqs = [open_source(root, io_backend, option) for option, root in lq_roots.items()]
        keys = select_keys(gt, meta_info_file)
        spare = meta_info_file is not None
        columns = [
            pair_keys(gt, lq, keys, filename_tmpl, spare, option)
            for option, lq in zip(lq_roots, self._lqs, strict=True)
        ]
        self._lq_keys = list(zip(*columns, strict=True))
        super().__init__(gt, keys, augmentation, masks, scale, channels, lq_views=len(self._lqs))

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; window and flip are drawn from rng. Raises ValueError naming the files that do not fit."""
        key = self._keys[index]
        with self._gt.open(key) as image:
            size = (image.shape[0], image.shape[1])
            on_lq = self._augmentation.draw((max(1, size[0] // self.scale), max(1, size[1] // self.scale)), rng)
            on_gt = on_lq.scaled(self.scale)
            gt = self._pixels(image, on_gt)
        views = [
            self._view(source, lq_key, on_lq, key, size)
            for source, lq_key in zip(self._lqs, self._lq_keys[index], strict=True)
        ]
        fields = self._masks.read(key, self._gt.where(key), size, on_gt)
        return Sample(
            key, torch.cat(views) if len(views) > 1 else views[0], gt, fields.get("regions"), fields.get("spe")
        )

    def _view(
        self, source: ImageSource, lq_key: str, placement: Placement, gt_key: str, gt_size: tuple[int, int]
    ) -> Tensor:
        with source.open(lq_key) as image:
            self._compare(source, lq_key, (image.shape[0], image.shape[1]), gt_key, gt_size)
            return self._pixels(image, placement)

    def _compare(
        self, source: ImageSource, lq_key: str, lq_size: tuple[int, int], gt_key: str, gt_size: tuple[int, int]
    ) -> None:
        """Raise ValueError unless the GT image is `scale` times as large as its LQ image."""
        h, w = lq_size
        if gt_size != (h * self.scale, w * self.scale):
            raise UserError(
                f"{self._gt.where(gt_key)} is {gt_size[0]}x{gt_size[1]} (h x w), but {source.where(lq_key)} is "
                f"{h}x{w}, which with scale: {self.scale} makes {h * self.scale}x{w * self.scale}; "
                "correct scale, or crop GT to a multiple of it"
            )

    def examine(self, index: int) -> bool:
        large = super().examine(index)
        key = self._keys[index]
        for source, lq_key in zip(self._lqs, self._lq_keys[index], strict=True):
            self._compare(source, lq_key, source.size(lq_key), key, self._gt.size(key))
        return large


class PairedImageDataset(AlignedDataset):
    """LQ and GT images of two folders or LMDBs, paired by name.

    dataroot_gt, dataroot_lq: folders (read with their subfolders) or LMDB folders (*.lmdb).
    io_backend: {'type': 'disk' | 'lmdb'}; None goes by the folders' names.
    meta_info_file: names of the GT images to use, one a line; None uses all.
    filename_tmpl: LQ name from GT name, both without suffix, e.g. '{}x4'.
    gt_size: side of the GT crop in pixels, a multiple of scale; smaller images are mirrored at their bottom and right
        (transforms.Window). None gives whole images.
    use_hflip (use_flip is the same): random horizontal flip; use_rot: random vertical flip and transpose.
    scale: GT size over LQ size.
    mean, std: of no effect: 0 and 1 or None.
    channels: 3 for RGB, 1 for grey: luma of what the files hold (utils.image.to_grey).
    masks: the mask store, by GT key; mask_views: what to read of it (sample.MaskViews), on the GT grid.
    Raises ValueError listing the names without a partner, with the filename_tmpl that would fit if there is one.
    """

    def __init__(
        self,
        dataroot_gt: str,
        dataroot_lq: str,
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
        channels: Colour = 3,
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        refuse_normalization(mean, std)
        super().__init__(
            dataroot_gt,
            {"dataroot_lq": dataroot_lq},
            io_backend,
            meta_info_file,
            filename_tmpl,
            augmentation(gt_size, use_hflip, use_flip, use_rot, scale),
            MaskReader(masks, mask_views),
            scale,
            channels,
        )


def pair_keys(
    gt: ImageSource,
    lq: ImageSource,
    gt_keys: Sequence[str],
    filename_tmpl: str,
    spare_lq: bool = False,
    option: str = "dataroot_lq",
) -> list[str]:
    """The LQ key of each GT key. spare_lq: LQ images without a GT are no error; option: what messages call lq's root.

    Raises ValueError with the names that lack a partner and, where one is found, the template that would do.
    """
    if filename_tmpl.count("{}") != 1:
        raise UserError(f"filename_tmpl: {filename_tmpl!r} must hold '{{}}' once, where the GT name goes")
    pairs = [(key, _fill(filename_tmpl, key)) for key in gt_keys]
    lq_keys = set(lq.keys)
    lonely_gt = [key for key, partner in pairs if partner not in lq_keys]
    lonely_lq = [] if spare_lq else sorted(lq_keys - {partner for _, partner in pairs})
    if not lonely_gt and not lonely_lq:
        return [partner for _, partner in pairs]
    lines = [f"dataroot_gt: {gt.root} and {option}: {lq.root} do not pair with filename_tmpl: {filename_tmpl!r}"]
    if lonely_gt:
        lines.append(f"  in dataroot_gt without LQ: {listed(lonely_gt)}")
    if lonely_lq:
        lines.append(f"  in {option} without GT: {listed(lonely_lq)}")
    better = _fitting_template(gt_keys, lq_keys)
    if better is not None and better != filename_tmpl:
        lines.append(f"  filename_tmpl: {better!r} would pair {_fits(better, gt_keys, lq_keys)} of {len(pairs)}")
    raise UserError("\n".join(lines))


def _fill(template: str, key: str) -> str:
    """The template applied to the last part of the key: 'a/b' with '{}x4' is 'a/bx4'."""
    path = PurePosixPath(key)
    return path.with_name(template.replace("{}", path.name)).as_posix()


def _fits(template: str, gt_keys: Sequence[str], lq_keys: set[str]) -> int:
    return sum(_fill(template, key) in lq_keys for key in gt_keys)


def _fitting_template(gt_keys: Sequence[str], lq_keys: set[str]) -> str | None:
    """The template that pairs most names, found from those LQ names that contain one of the first GT names."""
    lq_names = {PurePosixPath(key).name for key in lq_keys}
    votes: Counter[str] = Counter()
    for gt_name in [PurePosixPath(key).name for key in gt_keys[:10]]:
        votes.update(lq_name.replace(gt_name, "{}", 1) for lq_name in lq_names if gt_name in lq_name)
    scored = [(_fits(template, gt_keys, lq_keys), template) for template, _ in votes.most_common(10)]
    most, template = max(scored, default=(0, ""))
    return template if most else None
