"""Pairs of a degraded image and its ground truth (BasicSR's PairedImageDataset)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import Sample
from sam4ir.data.sources import ImageSource, listed, open_source
from sam4ir.data.transforms import Placement
from sam4ir.errors import UserError


@dataclass(kw_only=True, eq=False)
class AlignedDataset(CroppedDataset):
    """GT images and one or several LQ images of each, paired by name; these are stacked as channels of lq.

    A data set derives from it with a field for each folder of LQ images, which lq_roots lists.
    Raises ValueError listing the names without a partner, with the filename_tmpl that would fit if there is one.

    Args:
        filename_tmpl: Name of an LQ image, with {} in place of the GT name, both without suffix, such as '{}x4'.
    """

    filename_tmpl: str = "{}"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lqs: list[ImageSource] = []
        columns: list[list[str]] = []
        spare = self.meta_info_file is not None
        for option, root in self.lq_roots().items():
            self._lqs.append(open_source(root, self.io_backend, option, self.exif_orientation))
            columns.append(pair_keys(self.source, self._lqs[-1], self.keys, self.filename_tmpl, spare, option))
        self._lq_keys = list(zip(*columns, strict=True))

    def lq_roots(self) -> Mapping[str, str]:
        """Return option name -> folder of LQ images, in the order of lq's channels."""
        raise NotImplementedError

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a sample; window and flip are drawn from rng. Raise ValueError naming the files that do not fit."""
        key = self.keys[index]
        with self.source.lend(key) as image:
            size = (image.shape[0], image.shape[1])
            on_lq = self.draw((max(1, size[0] // self.scale), max(1, size[1] // self.scale)), rng)
            on_gt = on_lq.scaled(self.scale)
            gt = self.pixels(image, on_gt)
        images = []
        for source, lq_key in zip(self._lqs, self._lq_keys[index], strict=True):
            images.append(self._lq(source, lq_key, on_lq, key, size))
        lq = images[0]
        if len(images) > 1:
            lq = torch.cat(images)
        return Sample(key, lq, gt, self.maps(key, size, on_gt))

    def _lq(
        self, source: ImageSource, lq_key: str, placement: Placement, gt_key: str, gt_size: tuple[int, int]
    ) -> Tensor:
        """Return the placement's part of an LQ image; raise ValueError where its size does not fit GT's."""
        with source.lend(lq_key) as image:
            self._compare(source, lq_key, (image.shape[0], image.shape[1]), gt_key, gt_size)
            return self.pixels(image, placement)

    def _compare(
        self, source: ImageSource, lq_key: str, lq_size: tuple[int, int], gt_key: str, gt_size: tuple[int, int]
    ) -> None:
        """Raise ValueError unless the GT image is `scale` times as large as its LQ image."""
        h, w = lq_size
        if gt_size != (h * self.scale, w * self.scale):
            raise UserError(
                f"{self.source.where(gt_key)} is {gt_size[0]}x{gt_size[1]} (h x w), but {source.where(lq_key)} is "
                f"{h}x{w}, which with scale: {self.scale} makes {h * self.scale}x{w * self.scale}; "
                "correct scale, or crop GT to a multiple of it"
            )

    def examine(self, index: int) -> bool:
        """Compare GT, LQ and masks of image `index` by headers, as CroppedDataset does."""
        large = super().examine(index)
        key = self.keys[index]
        for source, lq_key in zip(self._lqs, self._lq_keys[index], strict=True):
            self._compare(source, lq_key, source.size(lq_key), key, self.source.size(key))
        return large


@dataclass(kw_only=True, eq=False)
class PairedImageDataset(AlignedDataset):
    """LQ and GT images of two folders or LMDBs, paired by name.

    Args:
        dataroot_lq: Folder of the degraded images, read with its subfolders, or an LMDB folder (*.lmdb).
        channels: 3 for RGB; 1 for grey, the luma of what the files hold.
    """

    dataroot_lq: str
    channels: Colour = 3

    def lq_roots(self) -> Mapping[str, str]:
        """Return the folder of the degraded images."""
        return {"dataroot_lq": self.dataroot_lq}


def pair_keys(
    gt: ImageSource,
    lq: ImageSource,
    gt_keys: Sequence[str],
    filename_tmpl: str,
    spare_lq: bool = False,
    option: str = "dataroot_lq",
) -> list[str]:
    """Return the LQ key of each GT key.

    spare_lq: accept LQ images without a GT. option: the name of lq's folder in messages.
    Raises ValueError with the names that lack a partner and, if there is one, the template that fits.
    """
    if filename_tmpl.count("{}") != 1:
        raise UserError(f"filename_tmpl: {filename_tmpl!r} must hold '{{}}' once, where the GT name goes")
    lq_keys = set(lq.keys)
    partners, lonely_gt = [], []
    for key in gt_keys:
        partner = partner_of(key, filename_tmpl)
        partners.append(partner)
        if partner not in lq_keys:
            lonely_gt.append(key)
    lonely_lq = lq_keys.difference(partners)
    if spare_lq:
        lonely_lq.clear()
    if not lonely_gt and not lonely_lq:
        return partners
    lines = [f"dataroot_gt: {gt.root} and {option}: {lq.root} do not pair with filename_tmpl: {filename_tmpl!r}"]
    if lonely_gt:
        lines.append(f"  in dataroot_gt without LQ: {listed(lonely_gt)}")
    if lonely_lq:
        lines.append(f"  in {option} without GT: {listed(lonely_lq)}")
    better = fitting_template(gt_keys, lq_keys)
    if better is not None and better != filename_tmpl:
        lines.append(f"  filename_tmpl: {better!r} would pair {_fits(better, gt_keys, lq_keys)} of {len(gt_keys)}")
    raise UserError("\n".join(lines))


def partner_of(key: str, template: str) -> str:
    """Return the LQ key of a GT key, the template applied to its last part: 'a/b' with '{}x4' gives 'a/bx4'."""
    path = PurePosixPath(key)
    return path.with_name(template.replace("{}", path.name)).as_posix()


def _fits(template: str, gt_keys: Sequence[str], lq_keys: set[str]) -> int:
    """Return how many GT keys have a partner by the template."""
    return sum(partner_of(key, template) in lq_keys for key in gt_keys)


def fitting_template(gt_keys: Sequence[str], lq_keys: set[str]) -> str | None:
    """Return the template that pairs most names, from those LQ names that contain one of the first GT names."""
    lq_names = {PurePosixPath(key).name for key in lq_keys}
    votes: Counter[str] = Counter()
    for key in gt_keys[:10]:
        gt_name = PurePosixPath(key).name
        for lq_name in lq_names:
            if gt_name in lq_name:
                votes[lq_name.replace(gt_name, "{}", 1)] += 1
    most, best = 0, ""
    for template, _ in votes.most_common(10):
        fits = _fits(template, gt_keys, lq_keys)
        if (fits, template) > (most, best):
            most, best = fits, template
    if most == 0:
        return None
    return best
