"""A trained network that restores images: `sam4ir.load`.

>>> import numpy as np, torch, sam4ir
>>> from sam4ir.archs.nafnet import NAFNet
>>> tiny = NAFNet(width=4, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1])
>>> torch.save({"params": tiny.state_dict()}, "tiny.pth")
>>> network = sam4ir.load("tiny.pth", device="cpu")
>>> network
TrainedNetwork('tiny.pth', NAFNet, scale=1, channels=3, device=cpu)
>>> network(np.zeros((20, 30, 3), np.uint8)).shape
(20, 30, 3)
>>> network(torch.rand(2, 3, 20, 30)).dtype
torch.float32
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from sam4ir.api.images import Picture, restore_object
from sam4ir.config.schema import Block, Options
from sam4ir.engine.evaluate.candidates import weights_of
from sam4ir.engine.restore.build import restore_recipe
from sam4ir.engine.restore.images import LARGEST_WHOLE, ImageRestorer, LoadedNetwork, image_form, load_network
from sam4ir.engine.restore.pictures import restore_picture
from sam4ir.engine.restore.settings import (
    RestoreSettings,
    network_options,
    settled_recipe,
    with_settings,
)
from sam4ir.engine.restore.within_memory import WithinMemory
from sam4ir.engine.restore.work import files_of_folder
from sam4ir.errors import UserError
from sam4ir.utils.faults import fault_of_file
from sam4ir.utils.image import ExifOrientation, file_bytes, size_of
from sam4ir.utils.picture import read_picture
from sam4ir.utils.picture_formats import encode_picture

log = logging.getLogger(__name__)

R = TypeVar("R")
Precision = Literal["auto", "fp32", "bf16", "fp16"]
_OPTION_FILES = (".yml", ".yaml")


class ComputingThreads:
    """The threads that compute for a network, as many as calls may compute at a time.

    A calling thread does not compute by itself: torch and its libraries keep buffers for each thread that has computed,
    so that the memory of a service would grow with the number of its threads.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._count = count
        self._device = device
        self._process = os.getpid()
        self._pool = self._new_pool()

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, thread_name_prefix="sam4ir")

    def run(self, task: Callable[[], R]) -> R:
        """Return what a task returns, computed when a thread is free, with the caller's CUDA stream and CPU threads."""
        if self._process != os.getpid():  # a forked process has none of the threads
            self._process, self._pool = os.getpid(), self._new_pool()
        stream = None
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
        return self._pool.submit(_as_the_caller, task, torch.get_num_threads(), stream).result()


def _as_the_caller(task: Callable[[], R], threads: int, stream: torch.cuda.Stream | None) -> R:
    """Run a task with this number of CPU threads, on this stream."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.cuda.stream(stream):
        return task()


class TrainedNetwork:
    """A network with its weights, which restores images; `load` makes it.

    It may be called from any thread. It computes in `concurrency` threads of its own, and further calls wait, so that
    memory is bounded. Restored images depend on the image, the settings and the device alone.

    weights: the file or name that it was loaded from. architecture: the type of the network, such as NAFNet. scale:
    output pixels per input pixel. channels: of the images of the network, 3 (RGB) or 1 (grey). device: that of the
    network.
    options: the options that describe it, frozen. settings: tiles, number format and sampling that were asked for.
    """

    def __init__(
        self,
        loaded: LoadedNetwork,
        options: Options,
        weights: str,
        settings: RestoreSettings,
        threads: ComputingThreads,
        memory: WithinMemory,
    ) -> None:
        self.weights = weights
        self.architecture = options.network_g.type
        self.scale = loaded.scale
        self.channels = loaded.channels
        self.device: torch.device = loaded.device
        self.settings = settings
        self._described = options
        self._loaded = loaded
        self._threads = threads
        self._memory = memory
        self.options = with_settings(options, settings)
        settled = settled_recipe(self.options, settings.precision, loaded.device)
        for line in settled.lines:
            log.info(line)
        restorer = loaded.restorer(settled.recipe)
        whole_up_to: int | None = LARGEST_WHOLE
        if settings.tile == 0:
            whole_up_to = None
        self._restorer = ImageRestorer(restorer, loaded.device, loaded.channels, memory, whole_up_to)

    def __repr__(self) -> str:
        return (
            f"TrainedNetwork({self.weights!r}, {self.architecture}, scale={self.scale}, channels={self.channels}, "
            f"device={self.device})"
        )

    def __call__(
        self,
        image: Picture,
        *,
        name: str = "",
        sample: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        seed: int | None = None,
    ) -> Picture:
        """Restore an image; the result has the kind, the type of numbers, the channels and the device of the image.

        image: an array (h, w), (h, w, 1) or (h, w, 3) RGB; a tensor (c, h, w) or (b, c, h, w) with 1 or 3 channels; or
        a PIL image of mode RGB, L or I;16. Pixels are uint8, uint16, or float in [0, 1]; floats come back clamped.
        A batch goes through the network at once where it needs no tiles and memory suffices. A grey network restores
        the luma of an RGB image; a network of RGB images restores a grey one three times repeated.
        name, sample: a diffusion network draws its noise from the seed, this name and this number; name is the file
        name without suffix in sam4ir restore. Image i of a batch is called <name>_<i>.
        sampler, steps, eta, seed: of a diffusion network, in place of those of `load`, for this call.
        Raises UserError for an image that cannot be restored; where memory runs out, smaller tiles are tried first.
        """
        if (sampler, steps, eta, seed) != (None, None, None, None):
            changed = self.with_settings(sampler=sampler, steps=steps, eta=eta, seed=seed)
            return changed(image, name=name, sample=sample)
        name, sample = _name_of_noise(name), _whole("sample", sample)
        return self._threads.run(lambda: restore_object(self._restorer, image, name, sample))

    def samples(self, image: Picture, count: int, *, name: str = "") -> list[Picture]:
        """Return several results of a diffusion network, with sample numbers 0 to count - 1; see a call."""
        count = _whole("count", count, 1)
        if count > 1 and not self.options.diffuses:
            raise UserError(f"samples: are for diffusion networks; {self.architecture} restores in one pass")
        results = []
        for sample in range(count):
            results.append(self(image, name=name, sample=sample))
        return results

    def with_settings(
        self,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        self_ensemble: bool | None = None,
        precision: Precision | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        seed: int | None = None,
    ) -> TrainedNetwork:
        """Return the same network with other settings; it shares weights and threads with this one.

        None leaves a setting as it is; other tiles share an eighth again. The arguments are those of `load`.
        """
        changes: dict[str, Any] = {
            "tile": tile,
            "overlap": overlap,
            "self_ensemble": self_ensemble,
            "precision": precision,
            "sampler": sampler,
            "steps": steps,
            "eta": eta,
            "seed": seed,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        if tile is not None:
            given["overlap"] = overlap  # that of other tiles has no meaning for these
        settings = _checked(dataclasses.replace(self.settings, **given))
        return TrainedNetwork(self._loaded, self._described, self.weights, settings, self._threads, self._memory)

    def folder(
        self, place: str | os.PathLike[str], *, skip_faulty: bool = False, exif_orientation: ExifOrientation = "apply"
    ) -> Iterator[tuple[Path, np.ndarray]]:
        """Yield (path, restored image) of each image below a folder, sorted by path, as sam4ir restore restores it.

        A restored image is (h, w, channels) of the file's type of numbers; channels are those of the network.
        skip_faulty: log an image that cannot be read or restored as a warning, and go on with the next.
        Raises UserError for a folder without images, and for an image at fault.
        """
        faults: list[str] = []
        files = files_of_folder(Path(place), faults)
        if faults and not skip_faulty:
            raise UserError(faults[0])
        for fault in faults:
            log.warning("skipped: %s", fault)
        for file, _ in files:
            restored = self._of_file(file, skip_faulty, exif_orientation)
            if restored is not None:
                yield file, restored

    def _of_file(self, file: Path, skip_faulty: bool, exif_orientation: ExifOrientation) -> np.ndarray | None:
        """Return the restored image of a file; None where it is at fault and may be skipped."""

        def task() -> np.ndarray:
            picture = read_picture(file_bytes(file), str(file), self.channels, exif_orientation)
            return self._restorer(picture.pixels, file.stem)

        try:
            return self._threads.run(task)
        except Exception as error:
            fault = fault_of_file(error, str(file))
            if fault is None:
                raise
            if not skip_faulty:
                raise UserError(fault) from error
            log.warning("skipped: %s", fault)
        return None

    def restore_file(self, data: bytes, *, name: str = "image", most_pixels: int | None = None) -> bytes:
        """Restore the bytes of an image file (PNG, JPEG, BMP, TIFF, WebP, GIF, AVIF) to the bytes of a PNG.

        The PNG is that of sam4ir restore: with the transparency, colour profile, EXIF block and greyness of the file.
        The image is decoded by the thread that restores it, so that a service holds no decoded images that wait.
        name: of the image in messages, and for the noise of a diffusion network. most_pixels: the largest height times
        width to take. Raises UserError for data that is no image, and for an image that is too large.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            kind = type(data).__name__
            raise UserError(f"restore_file takes the bytes of an image file, not {kind}: Path(file).read_bytes()")
        if most_pixels is not None:
            height, width = size_of(data, name)
            if height * width > most_pixels:
                raise UserError(f"{name}: {height}x{width} pixels are more than the {most_pixels} that are taken here")

        def task() -> bytes:
            restored = restore_picture(self._restorer, read_picture(data, name, self.channels), Path(name).stem)
            return encode_picture(restored, "png")[0]

        return self._threads.run(task)


def load(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    precision: Precision | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    self_ensemble: bool | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    seed: int | None = None,
    concurrency: int = 1,
) -> TrainedNetwork:
    """Load a trained network.

    source: a weights file (.pth, .safetensors), a name of the zoo or of a hub (hf:owner/name), the folder of a run
    (experiments/<name>: its latest weights), an option file (.yml), whose plugins are then imported, or an .onnx file
    of sam4ir export, which ONNX Runtime runs on the CPU in its own number format.
    weights: with an option file, in place of its path.pretrain_network_g.
    device: auto, cpu, cuda, cuda:1 ... or mps. precision: fp32, bf16, fp16 (CUDA), or auto for bf16 where the device is
    fast in it; None is fp32, and for a diffusion network what its option file says.
    tile: restore in blended tiles of this side in pixels of the input; 0 takes whole images; None does as the option
    file says, and where it says nothing images of more than 4 megapixels go in tiles of 512. overlap: pixels that tiles
    share, an eighth by default.
    self_ensemble: take the mean over the eight flips and rotations.
    sampler, steps, eta, seed: of a diffusion network, as in sam4ir restore.
    concurrency: threads that compute, each for one call at a time. One image already uses all cores, or the whole GPU,
    and each further one needs as much memory again, so the default is 1.
    Raises UserError where source names no network that can be loaded, or a setting does not suit it.
    """
    settings = _checked(RestoreSettings(tile, overlap, self_ensemble, precision, sampler, steps, eta, seed))
    concurrency = _whole("concurrency", concurrency, 1)
    if isinstance(device, torch.device):
        device = str(device)
    if Path(source).suffix == ".onnx":
        options, loaded = _exported(Path(source), settings, weights, device)
        threads = ComputingThreads(concurrency, loaded.device)
        return TrainedNetwork(loaded, options, os.fspath(source), settings, threads, WithinMemory())
    file, option_file = weights_and_options(os.fspath(source), weights)
    described = network_options(file, option_file, device)
    for line in described.notes:
        log.info(line)
    options = described.options
    file = file or options.path.pretrain_network_g
    if not file:
        raise UserError(f"{source}: path.pretrain_network_g names no weights; give `weights`")
    with_settings(options, settings)  # before the weights are read
    loaded = load_network(options, file)
    device_of = loaded.device
    if device_of.type == "cuda" and device_of.index is None:  # `cuda` alone is another device in another thread
        loaded = dataclasses.replace(loaded, device=torch.device("cuda", torch.cuda.current_device()))
    threads = ComputingThreads(concurrency, loaded.device)
    return TrainedNetwork(loaded, options, file, settings, threads, WithinMemory())


def _exported(
    file: Path, settings: RestoreSettings, weights: str | os.PathLike[str] | None, device: str
) -> tuple[Options, LoadedNetwork]:
    """Return the options and the network of an .onnx file. Raises UserError where it cannot restore images."""
    from sam4ir.export.runtime import OnnxNetwork  # it needs the extra [onnx]

    if weights is not None:
        raise UserError(f"weights: {file} holds its own; leave the argument out")
    if device not in ("auto", "cpu"):
        raise UserError(f"device: {file} runs on the CPU, in ONNX Runtime; give cpu, or the .pth file for {device}")
    if settings.precision is not None:
        raise UserError(f"precision: {file} has a number format of its own; leave the argument out")
    network = OnnxNetwork(file)
    described = network.description.get("network")
    if not isinstance(described, dict) or "type" not in described:
        raise UserError(f"{file}: does not say which network it holds; write it with sam4ir export")
    if network.description.get("graph", "restoring") != "restoring":
        raise UserError(f"{file}: holds a part of a diffusion network, which restores no image alone; give its weights")
    options = Options(name="restore", network_g=Block(**described), device="cpu")
    channels, scale = image_form(network, torch.device("cpu"), restore_recipe(options))
    return options, LoadedNetwork(network, torch.device("cpu"), channels, scale)


def weights_and_options(source: str, weights: str | os.PathLike[str] | None) -> tuple[str | None, Path | None]:
    """Return the weights and the option file that a source means; None for what it leaves open."""
    path = Path(source)
    if path.suffix in _OPTION_FILES:
        if weights is None:
            return None, path
        return weights_of(os.fspath(weights)), path
    if weights is not None:
        raise UserError(f"weights: go with an option file (.yml), and {source} is none; give one of the two")
    return weights_of(source), None


def _checked(settings: RestoreSettings) -> RestoreSettings:
    """Return the settings with Python's numbers for NumPy's; raise UserError for values of another type."""
    changes: dict[str, Any] = {}
    for name in ("tile", "overlap"):
        if getattr(settings, name) is not None:
            changes[name] = _whole(name, getattr(settings, name))
    for name in ("steps", "seed", "eta"):  # their ranges are those of the option file
        value = getattr(settings, name)
        if isinstance(value, np.generic):
            changes[name] = value.item()
    if not isinstance(settings.self_ensemble, (bool, np.bool_, type(None))):
        raise UserError(f"self_ensemble: {settings.self_ensemble!r} is none; give True or False")
    if settings.precision not in (None, "auto", "fp32", "bf16", "fp16"):
        raise UserError(f"precision: {settings.precision!r} is none; give auto, fp32, bf16 or fp16")
    return dataclasses.replace(settings, **changes)


def _whole(name: str, value: Any, least: int = 0) -> int:
    """Return an argument as a number of Python; raise UserError where it is no whole number, or below the least."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name}: {value!r} must be a whole number, {least} or more")
    return int(value)


def _name_of_noise(name: Any) -> str:
    """Return the name of an image, of which noise is drawn; raise UserError where it is no text."""
    if not isinstance(name, str):
        raise UserError(f"name: {name!r} is no text; give the name of the image, such as 'photo'")
    return name
