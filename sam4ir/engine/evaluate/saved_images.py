"""The images that a test or a validation saves: each output as a file, and side by side with input and ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from sam4ir.config.schema import SaveOptions
from sam4ir.data.sample import Dataset, Sample
from sam4ir.engine.evaluate.panel import TITLES, whole_views
from sam4ir.engine.evaluate.report import Score
from sam4ir.errors import UserError
from sam4ir.utils.files import output_path, refuse_shared
from sam4ir.utils.image import caption, to_uint8, write_image

GAP = 4  # white pixels between two views
CAPTION = 18  # height of a title in pixels


@dataclass(frozen=True)
class SavedImages:
    """The files of one data set's images: folder/<key>[_<suffix>][_refined][_s<sample>].png, 8 bits.

    dataset: its name, for messages. samples: images of each input. refined: whether a refiner's images are saved too.
    panel: views that are written side by side to panels/<key>[_<suffix>][_s<sample>].png; empty for no such files.
    """

    dataset: str
    folder: Path
    suffix: str = ""
    samples: int = 1
    refined: bool = False
    panel: Sequence[str] = ()
    panels: Path = Path()

    def refuse_names(self, data: Dataset, *, shared_alone: bool = False) -> None:
        """Raise UserError where the outputs of an image cannot be a file, or two would be the same file.

        shared_alone: pass over keys that are no names of files.
        """
        paths: list[tuple[str, Path]] = []
        for index in range(len(data)):
            key = data.key(index)
            for output in ("restored", "refined")[: 1 + self.refined]:
                for number in range(self.samples):
                    try:
                        paths.append((key, self.file(key, output, number)))
                    except UserError:
                        if not shared_alone:
                            raise
        refuse_shared(paths, f"data set {self.dataset}")

    def file(self, key: str, output: str, number: int = 0) -> Path:
        """Return the file of an image's output. Raises UserError for a key that is no name of a file."""
        return self._path(self.folder, key, output, number)

    def write(self, sample: Sample, outputs: Mapping[str, Tensor], number: int, scores: Sequence[Score]) -> None:
        """Write the outputs (c, h, w) whose values are finite. scores: of the image, whose values the panel shows."""
        for output, image in outputs.items():
            if image.isfinite().all():
                write_image(self.file(sample.key, output, number), to_uint8(image))
        side_by_side = self._side_by_side(sample, outputs, number, scores)
        if side_by_side is not None:
            write_image(self._path(self.panels, sample.key, "restored", number), side_by_side)

    def _path(self, folder: Path, key: str, output: str, number: int) -> Path:
        parts = [""]
        if self.suffix:
            parts.append(self.suffix)
        if output == "refined":
            parts.append("refined")
        if self.samples > 1:
            parts.append(f"s{number}")
        return output_path(folder, key, f"{'_'.join(parts)}.png", f"data set {self.dataset}")

    def _side_by_side(
        self, sample: Sample, outputs: Mapping[str, Tensor], number: int, scores: Sequence[Score]
    ) -> np.ndarray | None:
        """Draw the views of an image that are there, each below its title and its scores; (h, w, 3) uint8 RGB.

        None where none of the wanted views is there, such as the refiner's image in a test.
        """
        if not self.panel:
            return None
        views = whole_views(sample, outputs)
        values = {"lq": _values(scores, "input", 0)}
        for output in outputs:
            values[output] = _values(scores, output, number)
        columns: list[np.ndarray] = []
        for name in self.panel:
            if name not in views:
                continue
            view = views[name]
            title = caption(f"{TITLES[name]}  {values.get(name, '')}", view.shape[1], CAPTION)
            if columns:
                columns.append(np.full((CAPTION + view.shape[0], GAP, 3), 255, np.uint8))
            columns.append(np.concatenate([title, view]))
        if not columns:
            return None
        return np.concatenate(columns, axis=1)


def saved_images(
    save: bool | SaveOptions,
    dataset: str,
    folder: Path,
    panels: Path,
    suffix: str = "",
    *,
    samples: int = 1,
    refined: bool = False,
) -> SavedImages | None:
    """Return what `val.save_img` asks for, None where it saves nothing; the other arguments as those of SavedImages."""
    if not save:
        return None
    views: Sequence[str] = ()
    if isinstance(save, SaveOptions):
        views = save.panel
    return SavedImages(dataset, folder, suffix, samples, refined, views, panels)


def _values(scores: Sequence[Score], output: str, number: int) -> str:
    """Return the metrics of an output as text, such as `psnr 25.63  ssim 0.694`; '' where it has none."""
    parts = []
    for score in scores:
        if score.output == output and score.sample == number:
            for name, value in score.values.items():
                parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)
