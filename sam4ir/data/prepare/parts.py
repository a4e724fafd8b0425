"""What is to be prepared: images that belong together, the folders they go to, what the user changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sam4ir.data.lmdb_io import Encoding
from sam4ir.data.prepare.tree import File
from sam4ir.data.windows import Crop
from sam4ir.errors import UserError

Phase = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Store:
    """One LMDB folder of a part: its name without .lmdb, the option that it is for, GT size over its images' size.

    shrunk: its images are shrunk from the GT (utils.resize) and no files of their own.
    """

    name: str
    option: str
    divisor: int = 1
    shrunk: bool = False


@dataclass(frozen=True)
class Item:
    """Images that belong together, one for each store of the part that is not made; the first is the GT."""

    key: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Part:
    """What becomes one folder below --output.

    items: sorted by key, keys unique. crop: None keeps images whole. problems: how the items differ from the published
    set, one sentence each; empty where counts and names are right.
    """

    phase: Phase
    folder: str
    stores: tuple[Store, ...]
    items: tuple[Item, ...]
    crop: Crop | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What the user changes of a recipe.

    crop_size, step, thresh: instead of the recipe's, for its training part. no_crop: whole images there.
    scales: of super-resolution; make_lq: its LR images are made of the HR ones and not read.
    blur: GoPro's folder of blurred images, 'blur' or 'blur_gamma'.
    """

    crop_size: int | None = None
    step: int | None = None
    thresh: int | None = None
    no_crop: bool = False
    scales: tuple[int, ...] = (4,)
    make_lq: bool = False
    blur: str = "blur"

    def crop(self, recipe: Crop | None) -> Crop | None:
        """The recipe's crop with the user's changes."""
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
    """One part to prepare. folder: where it goes; recipe and sources: what prepared.json tells of its origin."""

    part: Part
    folder: Path
    encoding: Encoding
    recipe: str
    sources: tuple[str, ...] = ()

    def stores(self) -> list[Path]:
        """The LMDB folders, GT first."""
        return [self.folder / f"{store.name}.lmdb" for store in self.part.stores]

    def settings(self) -> dict[str, Any]:
        """What must be equal for a run to go on where another stopped, as JSON gives it back."""
        crop = self.part.crop
        return {
            "recipe": self.recipe,
            "part": self.part.folder,
            "encoding": self.encoding,
            "crop": crop.settings() if crop else None,
            "stores": [[s.name, s.divisor, *(["bicubic"] if s.shrunk else [])] for s in self.part.stores],
        }

    def digest(self) -> str:
        """A checksum of the images' keys and file names."""
        names = [
            f"{item.key} {[Path(file.member or file.path).name for file in item.files]}" for item in self.part.items
        ]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


@dataclass(frozen=True)
class Summary:
    """What a folder holds: images of the source, sub-images, the bytes of its LMDB folders; fresh: made just now."""

    job: Job
    images: int
    sub_images: int
    bytes: int
    fresh: bool
