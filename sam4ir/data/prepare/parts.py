"""What a job prepares: images that belong together, the LMDB folders they go to, and the user's choices."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sam4ir.data.lmdb_io import Encoding
from sam4ir.data.prepare.tree import File
from sam4ir.data.windows import Crop
from sam4ir.errors import UserError
from sam4ir.utils.files import encode_text

Phase = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Store:
    """One LMDB folder of a part.

    name: without .lmdb. option: the key of an option file that names this folder, e.g. dataroot_gt. divisor: GT size
    over the size of its images. shrunk: its images have no files; they are shrunk from the GT (utils.resize).
    """

    name: str
    option: str
    divisor: int = 1
    shrunk: bool = False


@dataclass(frozen=True)
class Item:
    """The files of images that belong together, e.g. a pair, under one key.

    files: one for each store whose images are not shrunk from the GT; the first is the GT.
    """

    key: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Part:
    """A part of a data set that becomes one folder below --output.

    folder: its path below --output. items: sorted by key, keys unique. crop: None keeps images whole. problems: how the
    items differ from the published set, one sentence each; empty where counts and names are right.
    """

    phase: Phase
    folder: str
    stores: tuple[Store, ...]
    items: tuple[Item, ...]
    crop: Crop | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeChoice:
    """The user's changes to a recipe.

    crop_size, step, thresh: replace the recipe's values for the training part, in pixels of GT; None keeps them.
    no_crop: the training images stay whole. scales: of super-resolution. make_lq: LR images are shrunk from the HR
    images instead of read. blur: GoPro's folder of blurred images, 'blur' or 'blur_gamma'.
    """

    crop_size: int | None = None
    step: int | None = None
    thresh: int | None = None
    no_crop: bool = False
    scales: tuple[int, ...] = (4,)
    make_lq: bool = False
    blur: str = "blur"

    def crop(self, recipe: Crop | None) -> Crop | None:
        """Return the recipe's crop with the user's changes, None for whole images.

        Raises UserError where the changes contradict each other.
        """
        changed = any(value is not None for value in (self.crop_size, self.step, self.thresh))
        if self.no_crop and changed:
            raise UserError("--no-crop goes without --crop-size, --step and --thresh")
        if self.no_crop or not (recipe or changed):
            return None
        if recipe is None and self.crop_size is None:
            raise UserError("--step and --thresh need --crop-size: without it images stay whole")
        base = recipe or Crop(self.crop_size or 1, self.crop_size or 1)
        return replace(
            base,
            size=base.size if self.crop_size is None else self.crop_size,
            step=base.step if self.step is None else self.step,
            thresh=base.thresh if self.thresh is None else self.thresh,
        )


@dataclass(frozen=True)
class Job:
    """One part to prepare and how.

    folder: where the part goes. recipe, sources: its origin as prepared.json records it: the recipe's name and the
    paths that the user gave.
    """

    part: Part
    folder: Path
    encoding: Encoding
    recipe: str
    sources: tuple[str, ...] = ()

    def stores(self) -> list[Path]:
        """Return the paths of the LMDB folders, GT first."""
        return [self.folder / f"{store.name}.lmdb" for store in self.part.stores]

    def settings(self) -> dict[str, Any]:
        """Return the settings that must be equal for a run to continue an earlier one, as JSON reads them back."""
        crop = self.part.crop
        stores: list[list[Any]] = []
        for store in self.part.stores:
            method = ["bicubic"] if store.shrunk else []
            stores.append([store.name, store.divisor, *method])
        return {
            "recipe": self.recipe,
            "part": self.part.folder,
            "encoding": self.encoding,
            "crop": crop.settings() if crop else None,
            "stores": stores,
        }

    def digest(self) -> str:
        """Return a checksum of the images' keys and file names, in hexadecimal."""
        lines = []
        for item in self.part.items:
            names = [Path(file.member or file.path).name for file in item.files]
            lines.append(f"{item.key} {names}")
        return hashlib.sha256(encode_text("\n".join(lines))).hexdigest()


@dataclass(frozen=True)
class Summary:
    """What the folder of a finished job holds.

    images: of the source. sub_images: in each LMDB folder. bytes: of all LMDB folders. fresh: this run finished it, not
    an earlier one.
    """

    job: Job
    images: int
    sub_images: int
    bytes: int
    fresh: bool
