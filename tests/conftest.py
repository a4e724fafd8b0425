"""A small world for tests of whole runs: photographs with regions, their mask store, option files."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two cores, and tiny tensors

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pycocotools import mask as coco

from sam4ir.config.load import load_options
from sam4ir.config.schema import Options
from sam4ir.data.masks.store import MaskStoreWriter
from sam4ir.utils.image import write_image

NETWORK = {"type": "NAFNet", "width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Seed torch, so that a test without a seed does not depend on the tests before it."""
    torch.manual_seed(0)


@dataclass(frozen=True)
class World:
    """The folder of the small world, and option files that read it."""

    root: Path

    def values(self, sam: bool = False, **changes: object) -> dict:
        """Return the plain values of an option file; `changes` replace whole top-level keys."""
        data: dict = {"type": "GaussianDenoisingDataset", "sigma_range": 50}
        model_type = "ImageRestorationModel"
        if sam:
            data["masks"] = {"store": str(self.root / "masks.lmdb")}
            model_type = "SAM4IRModel"
        values: dict = {
            "name": "small",
            "model_type": model_type,
            "device": "cpu",
            "datasets": {
                "train": {
                    **data,
                    "dataroot_gt": str(self.root / "gt"),
                    "gt_size": 24,
                    "use_hflip": True,
                    "use_rot": True,
                    "batch_size_per_gpu": 2,
                },
                "val": {**data, "name": "small_val", "dataroot_gt": str(self.root / "gt"), "noise_seed": 1},
            },
            "network_g": NETWORK,
            "path": {"root": str(self.root)},
            "train": {
                "total_iter": 8,
                "ema_decay": 0.9,
                "optim_g": {"type": "AdamW", "lr": 2e-3, "betas": [0.9, 0.9]},
                "scheduler": {"type": "TrueCosineAnnealingLR", "T_max": 8, "eta_min": 1e-7},
                "pixel_opt": {"type": "PSNRLoss"},
            },
            "val": {"val_freq": 4, "metrics": {"psnr": {"type": "psnr"}, "ssim": {"type": "ssim"}}},
            "logger": {"print_freq": 2, "save_checkpoint_freq": 4, "use_tb_logger": False},
        }
        if sam:
            values["train"] |= {
                "spd_opt": {"balance": 0.3},
                "sgr_opt": {"balance": 0.05, "weights": "random", "layers": ["relu1_2", "relu2_2"]},
                "distill": {"start_iter": 2},
            }
            values["val"]["refiner"] = True
        return {**values, **changes}

    def write(self, values: dict, name: str = "options.yml") -> Path:
        """Write an option file with these values; return its path."""
        path = self.root / name
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def options(self, sam: bool = False, overrides: tuple[str, ...] = ()) -> Options:
        """Return options as they are loaded from a file, sam.yml or plain.yml."""
        name = "plain.yml"
        if sam:
            name = "sam.yml"
        return load_options(self.write(self.values(sam), name), overrides)


def photograph(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    """Return a smooth picture with two blocks, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([128 + 60 * np.sin(x / 7 + seed), 128 + 60 * np.cos(y / 5), 100 + y + x], axis=-1)
    base[4:20, 6:30] = rng.integers(0, 255, 3)
    base[22:36, 20:48] = rng.integers(0, 255, 3)
    return base.clip(0, 255).astype(np.uint8)


def sam_masks(height: int = 40, width: int = 52) -> list[dict]:
    """Return masks of the two blocks and an overlapping one, as segment-anything's generator lists them."""
    boxes = [(4, 6, 20, 30), (22, 20, 36, 48), (10, 10, 30, 40)]
    masks = []
    for i, (top, left, bottom, right) in enumerate(boxes):
        area = np.zeros((height, width), np.uint8, order="F")
        area[top:bottom, left:right] = 1
        rle = coco.encode(area)
        rle["counts"] = rle["counts"].decode()
        box = [left, top, right - left, bottom - top]
        masks.append(
            {
                "segmentation": rle,
                "area": int(area.sum()),
                "bbox": box,
                "predicted_iou": 0.95 - 0.01 * i,
                "stability_score": 0.96,
            }
        )
    return masks


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Make five photographs with masks in a temporary folder."""
    with MaskStoreWriter(tmp_path / "masks.lmdb", {"generator": "drawn", "source": "gt"}) as store:
        for i in range(5):
            write_image(tmp_path / "gt" / f"photo_{i}.png", photograph(i))
            store.put(f"photo_{i}", sam_masks())
    return World(tmp_path)
