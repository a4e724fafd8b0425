"""Pairs of a degraded image and its ground truth (BasicSR's PairedImageDataset)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews, Sample
from sam4ir.data.sources import ImageSource, IoBackend, listed, open_source, select_keys
from sam4ir.data.transforms import augmentation, refuse_normalization
from sam4ir.utils.image import to_float_tensor


class PairedImageDataset:
    """LQ and GT images of two folders or LMDBs, paired by name.

    dataroot_gt, dataroot_lq: folders (read with their subfolders) or LMDB folders (*.lmdb).
    io_backend: {'type': 'disk' | 'lmdb'}; None goes by the folders' names.
    meta_info_file: names of the GT images to use, one a line; None uses all.
    filename_tmpl: LQ name from GT name, both without suffix, e.g. '{}x4'.
    gt_size: side of the GT crop in pixels, a multiple of scale; None gives whole images.
    use_hflip (use_flip is the same): random horizontal flip; use_rot: random vertical flip and transpose.
    scale: GT size over LQ size.
    mean, std: per channel, for LQ and GT; None leaves [0, 1].
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
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        self.scale = scale
        self._augmentation = augmentation(gt_size, use_hflip, use_flip, use_rot, scale)
        refuse_normalization(mean, std)
        self._masks = MaskReader(masks, mask_views)
        self._gt = open_source(dataroot_gt, io_backend, "dataroot_gt")
        self._lq = open_source(dataroot_lq, io_backend, "dataroot_lq")
        keys = select_keys(self._gt, meta_info_file)
        self._pairs = pair_keys(self._gt, self._lq, keys, filename_tmpl, spare_lq=meta_info_file is not None)

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """The GT key of image `index`; images are sorted by it."""
        return self._pairs[index][0]

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; window and flip are drawn from rng. Raises ValueError naming the files that do not fit."""
        gt_key, lq_key = self._pairs[index]
        with self._gt.open(gt_key) as gt, self._lq.open(lq_key) as lq:
            (h, w), gt_size = lq.shape[:2], (gt.shape[0], gt.shape[1])
            if gt_size != (h * self.scale, w * self.scale):
                raise ValueError(
                    f"{self._gt.where(gt_key)} is {gt_size[0]}x{gt_size[1]} (h x w), but {self._lq.where(lq_key)} is "
                    f"{h}x{w}, which with scale: {self.scale} makes {h * self.scale}x{w * self.scale}; "
                    "correct scale, or crop GT to a multiple of it"
                )
            try:
                on_lq = self._augmentation.draw((h, w), rng)
            except ValueError as error:
                raise ValueError(f"{self._lq.where(lq_key)}: {error}; make gt_size smaller") from error
            on_gt = on_lq.scaled(self.scale)
            lq_crop, gt_crop = to_float_tensor(on_lq.take(lq)), to_float_tensor(on_gt.take(gt))
        fields = self._masks.read(gt_key, self._gt.where(gt_key), gt_size, on_gt)
        return Sample(gt_key, lq_crop, gt_crop, **fields)


def pair_keys(
    gt: ImageSource, lq: ImageSource, gt_keys: Sequence[str], filename_tmpl: str, spare_lq: bool = False
) -> list[tuple[str, str]]:
    """(GT key, LQ key) of each GT key. spare_lq: LQ images without a GT are no error.

    Raises ValueError with the names that lack a partner and, where one is found, the template that would do.
    """
    if filename_tmpl.count("{}") != 1:
        raise ValueError(f"filename_tmpl: {filename_tmpl!r} must hold '{{}}' once, where the GT name goes")
    pairs = [(key, _fill(filename_tmpl, key)) for key in gt_keys]
    lq_keys = set(lq.keys)
    lonely_gt = [key for key, partner in pairs if partner not in lq_keys]
    lonely_lq = [] if spare_lq else sorted(lq_keys - {partner for _, partner in pairs})
    if not lonely_gt and not lonely_lq:
        return pairs
    lines = [f"dataroot_gt: {gt.root} and dataroot_lq: {lq.root} do not pair with filename_tmpl: {filename_tmpl!r}"]
    if lonely_gt:
        lines.append(f"  in dataroot_gt without LQ: {listed(lonely_gt)}")
    if lonely_lq:
        lines.append(f"  in dataroot_lq without GT: {listed(lonely_lq)}")
    better = _fitting_template(gt_keys, lq_keys)
    if better is not None and better != filename_tmpl:
        lines.append(f"  filename_tmpl: {better!r} would pair {_fits(better, gt_keys, lq_keys)} of {len(pairs)}")
    raise ValueError("\n".join(lines))


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
