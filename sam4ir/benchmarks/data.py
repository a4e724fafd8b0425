"""Contests of sam4ir benchmark between ways to read samples and masks, on synthetic images."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor, device

from sam4ir import regions
from sam4ir.benchmarks import reference_forms
from sam4ir.benchmarks.timing import Agreement, Aim, Contest, Form
from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.masks.from_sam import read_sam_json, record_from_sam
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.transforms import Placement, augmentation
from sam4ir.engine.make_masks.run import Place, generate_masks
from sam4ir.priors.spe import spe_map, spe_of_runs
from sam4ir.utils.image import encode_png, write_image
from sam4ir.utils.memory import in_words, peak_memory, reset_peak
from sam4ir.utils.rng import generator
from sam4ir.utils.shipped import shipped

QUICKSTART = "datasets/quickstart/masks.lmdb"
HD = 720, 1280
SUB_IMAGE = 512
PATCH = 256
MASK_PATCH = 128
# image size, number of masks, aim for the stack: 720p with many and few masks; photographs of BSDS500's size with the
# median number that SAM finds in real sets and with very few
MASK_SETS = [(HD, 80, Aim(100)), (HD, 11, Aim(1)), ((481, 321), 16, Aim(1)), ((481, 321), 3, Aim(1))]
LOADER_AIM = Aim(300)
SPE_SIZE, SPE_MASKS, SPE_AIM = (800, 1000), 80, Aim(10)


def photograph(size: tuple[int, int], seed: int) -> np.ndarray:
    """Return (h, w, 3) uint8 with the 1/f spectrum of natural images and a little grain, so that PNG works as usual."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    amplitude = 1 / np.maximum(frequency, 1 / max(size)) ** 1.2
    planes = []
    for _ in range(3):
        spectrum = amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape))
        planes.append(np.fft.irfft2(spectrum, size))
    grey = planes[0] / planes[0].std()
    colour = np.stack([grey + 0.3 * plane / plane.std() for plane in planes], axis=-1)
    return (120 + 45 * colour + rng.normal(0, 2, colour.shape)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Pairs:
    """The same pairs three times: as a folder of PNG files, an LMDB of PNG sub-images and our raw LMDB."""

    root: Path
    names: Sequence[str]
    size: tuple[int, int]
    sub_image: int

    @classmethod
    def make(cls, root: Path, size: tuple[int, int], number: int) -> Pairs:
        """Make `number` pairs; LQ is GT with noise."""
        sub_image = min(SUB_IMAGE, *size)
        pairs = cls(root, [f"{i:04}" for i in range(number)], size, sub_image)
        for i, name in enumerate(pairs.names):
            gt = photograph(size, i)
            noise = np.random.default_rng(1000 + i).normal(0, 10, gt.shape)
            pairs._write("gt", name, gt)
            pairs._write("lq", name, (gt + noise).clip(0, 255).astype(np.uint8))
        for kind in ("gt", "lq"):
            pairs._write_raw(kind)
        return pairs

    def _write(self, kind: str, name: str, image: np.ndarray) -> None:
        write_image(self.root / kind / f"{name}.png", image)
        environment = lmdb.open(str(self.root / f"{kind}_sub"), map_size=2**31, subdir=True)
        with environment.begin(write=True) as transaction:
            transaction.put(name.encode(), encode_png(image[: self.sub_image, : self.sub_image]))
        environment.close()

    def _write_raw(self, kind: str) -> None:
        with LmdbWriter(self.root / f"{kind}.lmdb") as store:
            for name in self.names:
                pixels: Any = cv2.imread(str(self.root / kind / f"{name}.png"))
                store.put(name, np.ascontiguousarray(pixels[..., ::-1]))

    def placement(self, number: int, size: tuple[int, int], patch: int) -> Placement:
        """Return the window and flips of sample `number`, as our data set draws them."""
        return augmentation(patch, True, None, True).draw(size, generator(0, number))


def loader(root: Path, quick: bool) -> Contest:
    """Return the contest of loading one training sample, patch 256: two ways of the reference form against ours."""
    size, patch = ((96, 128), 32) if quick else (HD, PATCH)
    pairs = Pairs.make(root, size, 2 if quick else 8)
    ours = PairedImageDataset(
        dataroot_gt=str(root / "gt.lmdb"),
        dataroot_lq=str(root / "lq.lmdb"),
        gt_size=patch,
        use_hflip=True,
        use_rot=True,
    )
    environments = [lmdb.open(str(root / f"{kind}_sub"), readonly=True, lock=False) for kind in ("gt", "lq")]

    def from_files(number: int) -> list[Tensor]:
        name = pairs.names[number % len(pairs.names)]
        images = reference_forms.read_png_pair(root / "gt" / f"{name}.png", root / "lq" / f"{name}.png")
        return _cut(images, pairs.placement(number, size, patch))

    def from_sub_images(number: int) -> list[Tensor]:
        name = pairs.names[number % len(pairs.names)].encode()
        images = []
        for environment in environments:
            with environment.begin(write=False) as transaction:
                images.append(reference_forms.decode_whole(bytes(transaction.get(name, b""))))
        return _cut(images, pairs.placement(number, (pairs.sub_image, pairs.sub_image), patch))

    def from_raw(number: int) -> list[Tensor]:
        sample = ours.get(number % len(pairs.names), generator(0, number))
        assert sample.gt is not None
        return [sample.gt, sample.lq]

    differences = [_largest_difference(from_raw(i), from_files(i)) for i in range(8)]
    forms = [
        _repeated("PNG folder, whole images", from_files, 2),
        _repeated(f"LMDB of {pairs.sub_image} PNG sub-images", from_sub_images, 8),
        _repeated("raw LMDB, PairedImageDataset", from_raw, 20 if quick else 200),
    ]
    agreement = {"pixels": Agreement(max(differences), 1e-7)}
    forms[-1] = replace(forms[-1], aim=None if quick else LOADER_AIM, agreement=agreement)
    settings = {"images": f"{size[0]}x{size[1]}", "patch": patch, "pairs": len(pairs.names)}
    return Contest("loading one sample of a pair", settings, forms, forms[-1].name)


def _cut(images: Sequence[np.ndarray], placement: Placement) -> list[Tensor]:
    """Return the crops of aligned images at one placement, by the reference form."""
    flips = placement.flip.horizontal, placement.flip.vertical, placement.flip.transpose
    window = placement.window
    return [reference_forms.crop_and_turn(image, window.top, window.left, window.height, flips) for image in images]


def _largest_difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))


def _repeated(name: str, sample: Callable[[int], object], repeat: int, aim: Aim | None = None) -> Form:
    """Return a form that makes the next `repeat` samples in each call."""
    numbers = itertools.count()

    def run() -> None:
        for _ in range(repeat):
            sample(next(numbers))

    return Form(name, run, repeat, aim)


def drawn_masks(size: tuple[int, int], number: int) -> list[dict[str, Any]]:
    """Return overlapping masks of many sizes with ragged outlines, as segment-anything's generator lists them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    ragged: Any = cv2.GaussianBlur(rng.normal(size=size).astype(np.float32), (0, 0), 4)
    ragged /= ragged.std()
    masks = []
    for _ in range(number):
        radius = np.exp(rng.uniform(np.log(0.02), np.log(0.4))) * min(size)
        top, left, squeeze = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0.4, 1)
        outline = radius * (1 + 0.06 * np.roll(ragged, rng.integers(0, 1000, 2), (0, 1)))
        inside = np.hypot((y - top) / squeeze, x - left) < outline
        rle = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
        rle["counts"] = rle["counts"].decode()
        scores: dict[str, Any] = {"predicted_iou": 0.95, "point_coords": [[left, top]], "stability_score": 0.97}
        scores["crop_box"] = [0, 0, size[1], size[0]]
        masks.append({"segmentation": rle, "area": int(inside.sum()), "bbox": coco.toBbox(rle).tolist(), **scores})
    return masks


def masks(root: Path, size: tuple[int, int], number: int, quick: bool, aim: Aim | None = None) -> Contest:
    """Return the contest of reading the masks of one patch: a JSON file decoded whole against the mask store.

    The settings also give the bytes that one image takes in both.
    """
    patch = 32 if quick else MASK_PATCH
    listed = drawn_masks(size, number)
    file = root / f"masks_{size[0]}_{number}.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    folder = root / f"masks_{size[0]}_{number}.lmdb"
    with MaskStoreWriter(folder, {"generator": "drawn", "source": "gt"}) as writer:
        writer.put("image", listed, size)
    store = MaskStore(folder)

    def window(sample: int) -> tuple[int, int, int, int]:
        return _window(sample, size, patch)

    def from_json(sample: int) -> np.ndarray:
        top, left, h, w = window(sample)
        decoded = [coco.decode(mask["segmentation"]) for mask in json.loads(file.read_text(encoding="utf-8"))]
        return np.stack([mask[top : top + h, left : left + w] for mask in decoded])

    def stack(sample: int) -> np.ndarray:
        return store.read("image").stack(*window(sample))

    def region_map(sample: int) -> np.ndarray:
        return store.read("image").region_map(*window(sample))

    def labels(sample: int) -> np.ndarray:
        return store.read("image").labels(*window(sample))

    fast = 5 if quick else 50
    forms = [
        _repeated("JSON, all RLE decoded, then cropped", from_json, 2 if quick or number > 40 else 20),
        _agreeing(_repeated("mask store, stack", stack, fast, aim), _unequal(stack, from_json)),
        _agreeing(
            _repeated("mask store, region map", region_map, fast, aim),
            _unequal(region_map, _painted(from_json, listed)),
        ),
        _repeated("mask store, labels", labels, fast, aim),
    ]
    settings = {"image": f"{size[0]}x{size[1]}", "masks": number, "patch": patch}
    settings |= {"bytes_json": file.stat().st_size, "bytes_record": len(store.record_bytes("image"))}
    return Contest("masks of one patch", settings, forms, forms[1].name)


def _window(sample: int, size: tuple[int, int], patch: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a sample's window, as our data set draws it."""
    window = augmentation(patch, False, None, False).draw(size, generator(0, sample)).window
    return window.top, window.left, patch, patch


def _agreeing(form: Form, unequal: float) -> Form:
    """Return the form with the share of its values that differ from the baseline."""
    return replace(form, agreement={"unequal": Agreement(unequal, 0.0)})


def _unequal(actual: Callable[[int], np.ndarray], expected: Callable[[int], np.ndarray]) -> float:
    """Return the share of values that differ in the first four samples."""
    return float(np.mean([(actual(i) != expected(i)).mean() for i in range(4)]))


def _painted(stack: Callable[[int], np.ndarray], listed: Sequence[dict[str, Any]]) -> Callable[[int], np.ndarray]:
    """Return a function that makes the region map by its definition: it paints masks from the largest to the smallest.

    stack: sample -> decoded masks (n, h, w). listed: the masks, with their runs and areas.
    """
    size = tuple(listed[0]["segmentation"]["size"])
    areas, first_pixels = [], []
    for mask in listed:
        areas.append(mask["area"])
        first_pixels.append(regions.first_pixel(regions.parse_counts(mask["segmentation"]["counts"], size), size))
    order = regions.paint_order(np.array(areas), np.array(first_pixels))

    def painted(sample: int) -> np.ndarray:
        masks = stack(sample)
        out = np.zeros(masks.shape[1:], np.int32)
        for index in order:
            out[masks[index] > 0] = index + 1
        return out

    return painted


def spe_by_painting(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the SPE as SAM-DiffSR's released code makes it, one decoded mask after the other in PyTorch.

    Returns (h, w) float32.
    """
    h, w = rles[0]["size"]
    angle = torch.outer(torch.arange(h), 10000.0 ** (-torch.arange(0, w - 1, 2) / w)).repeat_interleave(2, dim=1)
    table = torch.ones(h, w)  # the released code has no odd widths; their last column stays 1
    table[:, : w - w % 2] = angle.cos() + torch.tensor([-1.0, 1.0]).repeat(w // 2) * angle.sin()
    out = torch.zeros(h, w)
    for rle in rles:
        mask = torch.tensor(coco.decode(rle))
        value = (table * mask).mean()
        out = torch.where(mask.bool(), torch.ones(h, w) * value, out)
    return out.numpy()


def spe(name: str, rles: Sequence[dict[str, Any]], aim: Aim | None = None) -> Contest:
    """Return the contest of making the SPE map of a whole image from its masks' COCO RLE.

    Each call computes the rotary table and its sums again.
    """
    h, w = rles[0]["size"]

    def from_runs(_: int = 0) -> np.ndarray:
        regions._rotary_columns.cache_clear()
        return spe_of_runs([regions.parse_counts(rle["counts"], (h, w)) for rle in rles], (h, w))

    painted = spe_by_painting(rles)
    error = float(np.abs(from_runs() - painted).max() / np.abs(painted).max())
    fast = _repeated("spe_of_runs", from_runs, 5)
    forms = [
        Form("masks decoded, painted in turn", lambda: spe_by_painting(rles)),
        Form(fast.name, fast.run, fast.repeat, aim, {"map": Agreement(error, 1e-6)}),
    ]
    settings = {"masks": len(rles), "image": f"{h}x{w}", "of": name}
    return Contest("SPE of an image", settings, forms, forms[1].name)


def spe_of_patch(root: Path, size: tuple[int, int], number: int, quick: bool) -> Contest:
    """Return the contest of reading the SPE of one patch: the whole map from a .npy file against the mask store."""
    patch = 32 if quick else MASK_PATCH
    listed = drawn_masks(size, number)
    with MaskStoreWriter(root / "spe.lmdb", {"generator": "drawn", "source": "gt"}) as writer:
        writer.put("image", listed, size)
    store = MaskStore(root / "spe.lmdb")
    np.save(root / "spe.npy", spe_map(store.read("image"), 0, 0, *size))

    def window(sample: int) -> tuple[int, int, int, int]:
        return _window(sample, size, patch)

    def from_file(sample: int) -> np.ndarray:
        top, left, h, w = window(sample)
        return np.load(root / "spe.npy")[top : top + h, left : left + w].copy()

    def from_store(sample: int) -> np.ndarray:
        return spe_map(store.read("image"), *window(sample))

    fast = 5 if quick else 50
    forms = [
        _repeated("whole map from .npy, then cropped", from_file, fast),
        _agreeing(_repeated("mask store, spe_map", from_store, fast), _unequal(from_store, from_file)),
    ]
    settings = {"image": f"{size[0]}x{size[1]}", "masks": number, "patch": patch}
    settings |= {"bytes_npy": (root / "spe.npy").stat().st_size, "bytes_record": len(store.record_bytes("image"))}
    return Contest("SPE of one patch", settings, forms, forms[1].name)


def spe_contests(root: Path, quick: bool, file: Path | None = None) -> Iterator[Contest]:
    """Yield the contests of `spe`. file: segment-anything's JSON of a real photograph; None: one of the quickstart."""
    size, number = ((64, 80), 5) if quick else (SPE_SIZE, SPE_MASKS)
    aim = None if quick else SPE_AIM
    yield spe("drawn masks", [mask["segmentation"] for mask in drawn_masks(size, number)], aim)
    if file is None:
        record = MaskStore(shipped(QUICKSTART)).read("astronaut")
        runs = regions.runs_of_atoms(regions.Atoms(record.labels(0, 0, *record.size), record.table))
        rles = []
        for mask_runs in runs:
            rles.append(coco.frPyObjects({"size": list(record.size), "counts": mask_runs.tolist()}, *record.size))
        yield spe("quickstart/astronaut", rles, aim)
    else:
        yield spe(file.name, [mask["segmentation"] for mask in read_sam_json(file)[0]], aim)
    yield spe_of_patch(root, (96, 128) if quick else HD, 5 if quick else 80, quick)


def contests(command: str, root: Path, quick: bool) -> Iterator[Contest]:
    """Yield the contests of the command `data` or `masks`. root: an empty folder."""
    if command == "data":
        yield loader(root, quick)
    elif quick:
        yield masks(root, (64, 80), 5, quick)
    else:
        for size, number, aim in MASK_SETS:
            yield masks(root, size, number, quick, aim)


def bookkeeping(root: Path, keys: int) -> dict[str, Any]:
    """Measure what the store and the loop over `keys` images cost besides reading images and making masks.

    root: an empty folder. The images are keys only and the records tiny. Returns, for each step, microseconds for each
    image by the clock and the peak memory of the process from the step's start. Each put is on disk when it returns.
    """
    store, names = root / "bookkeeping.lmdb", [f"folder/image_{i:09}" for i in range(keys)]
    meta = {"generator": "none", "source": "gt"}
    image = np.zeros((16, 16), bool)
    image[4:8, 4:12] = True
    runs = regions.mask_to_runs(image)
    record = record_from_sam([{"segmentation": {"size": [16, 16], "counts": runs}}])
    figures: dict[str, Any] = {"keys": keys, "record_bytes": len(record)}
    place = Place(store, meta)
    start, delays = time.perf_counter(), []

    def record_begin(*_: object) -> None:
        delays.append(time.perf_counter() - start)

    def step(name: str, work: Callable[[], object]) -> None:
        nonlocal start
        reset_peak(device("cpu"))
        start = time.perf_counter()
        work()
        figures[name] = 1e6 * (time.perf_counter() - start) / keys
        figures[f"{name}, peak"] = in_words(peak_memory(device("cpu")))

    step("whole run, put and fsync included", lambda: generate_masks(lambda _: record, names, place))
    step(
        "resumed run with nothing to do",
        lambda: generate_masks(_unexpected, names, place, begun=record_begin),
    )
    figures["of these until the work begins"] = 1e6 * delays[0] / keys
    with MaskStoreWriter(store, meta) as writer:
        step("asking whether a key is there", lambda: [name in writer for name in names])
        writer.put_record("one more", record)
        step("closing after a put, counting all", writer.close)
    step("opening and listing the keys", lambda: MaskStore(store).keys())
    figures["bytes a record on disk"] = (store / "data.mdb").stat().st_size / keys
    return figures


def _unexpected(key: str) -> bytes:
    raise AssertionError(f"{key} is in the store")
