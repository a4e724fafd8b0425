"""Write the degraded images of a data set that degrades on the fly: fixed pairs, and images to make masks of."""

from __future__ import annotations

from pathlib import Path

from sam4ir.config.schema import Options
from sam4ir.data.loader import eval_sample
from sam4ir.engine.build import build_dataset
from sam4ir.errors import UserError
from sam4ir.utils.files import output_path
from sam4ir.utils.image import to_uint8, write_image


def write_degraded(options: Options, key: str, folder: Path) -> tuple[int, int]:
    """Write the degraded images of one data set as folder/KEY.png, 8 bits, where they are not there yet.

    key: of the set below `datasets`. Each image is a function of the file, manual_seed and the image's name, as in a
    validation. Returns how many were written and how many were there. Raises UserError for a set that is not there, and
    for one that cuts patches.
    """
    if key not in options.datasets:
        raise UserError(f"--set {key}: the file has no such data set; it has {', '.join(options.datasets)}")
    block = options.datasets[key]
    if block.arguments.get("gt_size") is not None or block.gt_sizes is not None:
        raise UserError(f"--set {key}: cuts patches (gt_size); name a set of whole images, such as val")
    data = build_dataset(key, block, options.scale)
    written, there = 0, 0
    for index in range(len(data)):
        path = output_path(folder, data.key(index), ".png", f"data set {key}")
        if path.exists():
            there += 1
            continue
        write_image(path, to_uint8(eval_sample(data, options.manual_seed, index).lq))
        written += 1
    return written, there
