"""Every part that reads a folder lists it in the same way: links once, nothing hidden, nothing that is no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sam4ir.data.masks.formats import find_masks, read_masks
from sam4ir.data.masks.labels import LabelRules
from sam4ir.data.prepare.tree import Tree
from sam4ir.data.sources import FolderSource
from sam4ir.utils.image import write_image


def keys_of_images(folder: Path) -> list[str]:
    return FolderSource(folder).keys


def keys_of_a_download(folder: Path) -> list[str]:
    return [name.removesuffix(".png") for name in sorted(Tree([folder]).files)]


def keys_of_label_maps(folder: Path) -> list[str]:
    return [file.key for file in find_masks(folder, "labels").files]


def keys_of_mask_folders(folder: Path) -> list[str]:
    files = find_masks(folder, "binary").files
    return [f"{file.key}/{number}" for file in files for number in range(len(read_binary(file.path)))]


def read_binary(folder: Path) -> list[object]:
    return read_masks("binary", folder, LabelRules())[0]


@pytest.mark.parametrize("keys", [keys_of_images, keys_of_a_download, keys_of_label_maps, keys_of_mask_folders])
def test_a_folder_is_listed_alike_everywhere(
    keys: Callable[[Path], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    mask = np.zeros((6, 8, 1), np.uint8)
    mask[2:, 3:] = 255
    for place in (root / "a" / "0.png", root / "a" / "1.PNG", elsewhere / "0.png"):
        write_image(place.with_suffix(".png"), mask)
        place.with_suffix(".png").rename(place)
    for hidden in ("a/._0.png", ".trash/0.png", "__MACOSX/a/0.png", "a.lmdb/0.png"):
        (root / hidden).parent.mkdir(exist_ok=True, parents=True)
        (root / hidden).write_bytes(b"no image")
    (root / "b").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "a" / "up").symlink_to(root)
    assert [key.lower().removesuffix(".png") for key in keys(root)] == ["a/0", "a/1", "b/0"]
    links = "2 links to folders that are listed already (a/up, b/back)"
    assert f"{root}: left out: 1 LMDB folder (a.lmdb), 1 hidden file, 2 hidden folders, {links}" in caplog.text
