"""The networks that the page offers, and the restoration of one image; it needs no gradio."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam4ir.api.network import TrainedNetwork, load
from sam4ir.errors import UserError
from sam4ir.utils.image import decode_image, eight_bits, resize_for_display, size_of

HELD = 2  # networks that stay in memory


class BeforeAndAfter(NamedTuple):
    """A restored image.

    before, after: (h, w, 3) uint8 of one size, for the slider; `before` is enlarged where the network enlarges.
    png: the restored image as a file, with the depth of the input. words: what was done, in a sentence.
    """

    before: np.ndarray
    after: np.ndarray
    png: bytes
    words: str


class Networks:
    """The networks of the page by the names of its list. Those used last stay loaded.

    sources: each a weights file, the folder of a run, an option file or a name of the zoo or of a hub; the list shows
    them by short names (`named`). device: that all run on. most_pixels: the largest height times width of an image.
    loader: makes a network of a source and a device. Calls from several threads follow one another.
    """

    def __init__(
        self,
        sources: Sequence[str],
        device: str,
        most_pixels: int,
        loader: Callable[[str, str], TrainedNetwork] | None = None,
    ) -> None:
        self._sources = named(sources)
        self.names = list(self._sources)
        self.device = device
        self.most_pixels = most_pixels
        self._loader = loader or (lambda source, place: load(source, device=place))
        self._held: OrderedDict[str, TrainedNetwork] = OrderedDict()
        self._lock = threading.Lock()

    def restore(self, file: Path, name: str, tile: int, shown_name: str = "image") -> BeforeAndAfter:
        """Restore an image file.

        name: one of the list; other names are refused, so that a visitor reads no files of this machine.
        tile: side of tiles in pixels of the input; 0 takes the whole image. shown_name: the file's, for messages.
        Raises UserError for a file that is no image, for one that is too large, and what `load` raises.
        """
        if name not in self._sources:
            raise UserError(f"{name!r} is not in the list of weights of this page; sam4ir demo --weights adds to it")
        with self._lock:
            data = file.read_bytes()
            height, width = size_of(data, shown_name)
            if height * width > self.most_pixels:
                raise UserError(
                    f"{shown_name}: {width} x {height} pixels are more than the {self.most_pixels:,} that this page "
                    "takes; sam4ir demo --most-pixels sets the bound"
                )
            network = self._network(name).with_settings(tile=tile)
            begun = time.perf_counter()
            png = network.restore_file(data, name=shown_name)
            seconds = time.perf_counter() - begun
        before = eight_bits(decode_image(data, shown_name, 3))
        after = eight_bits(decode_image(png, shown_name, 3))
        if before.shape != after.shape:
            before = resize_for_display(before, *after.shape[:2])
        size = f"{width} x {height} pixels"
        if network.scale != 1:
            size += f" to {after.shape[1]} x {after.shape[0]}"
        words = f"{network.architecture} ({name}), {size}, {seconds:.1f} s on {network.device}"
        return BeforeAndAfter(before, after, png, words)

    def _network(self, name: str) -> TrainedNetwork:
        """Return a network, loaded if it was not; the one that was not used for longest is dropped."""
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        while len(self._held) >= HELD:
            self._held.popitem(last=False)
        self._held[name] = self._loader(self._sources[name], self.device)
        return self._held[name]


def named(sources: Sequence[str]) -> dict[str, str]:
    """Return {short name: source}: the last parts of a path that no other source has, so that no folders are shown."""
    names: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        parts = Path(source).parts
        name = source
        if Path(source).exists():
            for count in range(1, len(parts) + 1):
                name = "/".join(parts[-count:])
                if not _shared(name, source, sources):
                    break
        names[name] = source
    return names


def _shared(name: str, source: str, sources: Sequence[str]) -> bool:
    """Return whether another source ends with the same parts."""
    others = [f"/{other}" for other in sources if other != source]
    return any(other.endswith(f"/{name}") for other in others)


def zoo_networks() -> list[str]:
    """Return the names of the zoo's restoration networks; those whose file is here come first."""
    from sam4ir.priors.zoo.weights import ENTRIES, WeightsError, cached

    here, elsewhere = [], []
    for name, entry in ENTRIES.items():
        if entry.network is None:
            continue
        try:
            fetched = cached(name) is not None
        except WeightsError:  # another file has its name; choosing it shows the message
            fetched = False
        if fetched:
            here.append(name)
        else:
            elsewhere.append(name)
    return here + elsewhere
