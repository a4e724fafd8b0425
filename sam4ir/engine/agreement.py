"""What all processes of a run must see alike: options, code, versions, data sets, masks, weights.

Processes on several machines may read other copies of a file, and would train on without a word. Each gathers facts,
and `agree` compares them: their digests in one exchange, and where those differ what lies behind them in a second one.
A process by itself computes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
import torch
from torch import nn

from sam4ir import __version__
from sam4ir.config.load import option_values
from sam4ir.config.schema import Options
from sam4ir.data.sample import Dataset
from sam4ir.data.sources import ImageSource, read
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.dist import World
from sam4ir.utils.files import sha256_of
from sam4ir.utils.rng import generator

if TYPE_CHECKING:  # sam4ir test and sam4ir restore work without the mask store
    from sam4ir.data.masks.store import MaskStore

SAMPLED = 8  # images of a set whose pixels are compared, and records of a mask store
_PATIENCE = 1.0  # seconds after which no further image of a set is read
_TOLERANCE = 1e-5  # of means and deviations of pixels in [0, 1]: machines may differ in the last bits of a sum
_SHOWN = 3  # differences that a message shows
_PACKAGE = Path(__file__).resolve().parents[1]

# Last words of keys that may differ: what a process computes on, and places whose content is compared instead.
_FREE_KEYS = ("device", "num_worker_per_gpu", "meta_info_file", "store", "root", "resume_state", "use_tb_logger")
_FREE_BEGINNINGS = ("dataroot", "pretrain_network")
_FREE_BLOCKS = ("plugins", "num_gpu")
_FREE_META = ("versions", "made_on", "told", "counts")  # of a mask store

Form = Literal["values", "names", "content"]


class AgreementError(UserError):
    """Processes of one run that see other options, code, data, masks or weights; the message names the difference."""


@dataclass(frozen=True)
class Facts:
    """Facts of one kind.

    subject: how a message names them, such as 'data set train'. items: {name: value}. form: a difference shows values;
    or it counts names, and names an image of other content; or it only names what has other content.
    numbers: {image: means and deviations of its pixels}, compared where two processes have the same image.
    remedy: what would make the processes agree.
    """

    subject: str
    items: Mapping[str, str]
    form: Form
    remedy: str
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a digest of all items."""
        text = json.dumps(sorted(self.items.items()))
        return hashlib.sha256(text.encode()).hexdigest()


def agree(world: World, *makers: Callable[[], Facts]) -> None:
    """Raise AgreementError, the same in all processes, unless all make the same facts.

    makers: functions, called only where there are several processes. An error in one of them is raised in its process,
    and reaches the others as a PeerError when that process ends.
    """
    if world.size == 1:
        return
    own = [make() for make in makers]
    sketches = world.gather(list(map(_sketch, own)))
    lines = []
    for facts, of_ranks in zip(own, zip(*sketches, strict=True), strict=True):
        digests, numbers = zip(*of_ranks, strict=True)
        line = None
        if len(set(digests)) > 1:
            line = _first_difference(facts, world.gather(dict(facts.items)))
        if line is None:
            line = _first_other_pixels(facts, numbers)
        if line is not None:
            lines.append(f"{line}; {facts.remedy}")
    if lines:
        raise AgreementError("the processes of this run do not see the same: " + ". ".join(lines))


def _sketch(facts: Facts) -> tuple[str, dict[str, tuple[float, ...]]]:
    """Return what processes exchange first: the digest of the items, and the numbers."""
    return facts.digest(), dict(facts.numbers)


def _first_difference(facts: Facts, items: Sequence[Mapping[str, str]]) -> str | None:
    """Return the difference of the first process that has other items than process 0."""
    main = items[0]
    for rank, own in enumerate(items):
        if own != main:
            return _difference(facts, rank, own, main)
    return None


def _difference(facts: Facts, rank: int, own: Mapping[str, str], main: Mapping[str, str]) -> str:
    if facts.form == "names" and own.keys() != main.keys():
        first = min(own.keys() ^ main.keys())
        return f"rank {rank} lists {len(own)} images in {facts.subject}, rank 0: {len(main)}; first difference: {first}"
    names = []
    for name in sorted({**own, **main}):
        if own.get(name) != main.get(name):
            names.append(name)
    shown = []
    for name in names[:_SHOWN]:
        text = name
        if facts.form == "values":
            text += f" {own.get(name, 'missing')}, rank 0: {main.get(name, 'missing')}"
        shown.append(text)
    more = ""
    if len(names) > _SHOWN:
        more = f" and {len(names) - _SHOWN} more"
    return f"rank {rank} sees other {facts.subject}: {', '.join(shown)}{more}"


def _first_other_pixels(facts: Facts, numbers: Sequence[Mapping[str, tuple[float, ...]]]) -> str | None:
    """Return the first image whose pixels differ from those of process 0."""
    main = numbers[0]
    for rank, own in enumerate(numbers):
        for name, values in own.items():
            if name in main and not _close(values, main[name]):
                return f"rank {rank} reads other pixels in {facts.subject}: {name}"
    return None


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE, equal_nan=True))


def run_facts(options: Options) -> list[Callable[[], Facts]]:
    """Return what makes the facts of a run that need no data set: options, code, versions and weights."""
    path = options.path
    weights = {
        "path.pretrain_network_g": path.pretrain_network_g,
        "path.pretrain_network_c": path.pretrain_network_c,
    }
    return [
        lambda: option_facts(options),
        lambda: code_facts(options.plugins),
        version_facts,
        lambda: weights_facts(weights),
    ]


def option_facts(options: Options) -> Facts:
    """Return the options that must be the same in all processes."""
    items = {}
    for place, value in option_values(options).items():
        last = place[-1]
        free = last in _FREE_KEYS or last.startswith(_FREE_BEGINNINGS) or place[0] in _FREE_BLOCKS
        if not free:
            items[".".join(place)] = str(value)
    return Facts("options", items, "values", "start all processes with the same option file and flags")


def flag_facts(flags: Mapping[str, Any], free: Iterable[str]) -> Facts:
    """Return the flags of a script. free: names of those that may differ."""
    items = {}
    for name, value in flags.items():
        if name not in free:
            items[f"--{name.replace('_', '-')}"] = str(value)
    return Facts("flags", items, "values", "start all processes with the same flags")


def code_facts(plugins: Iterable[str] = ()) -> Facts:
    """Return the digests of sam4ir's modules and of the plugins of an option file."""
    items = {}
    for file in sorted(_PACKAGE.rglob("*.py")):
        items[f"sam4ir/{file.relative_to(_PACKAGE).as_posix()}"] = sha256_of(file)
    for name in plugins:
        module = sys.modules.get(Path(name).stem if name.endswith(".py") else name)
        source = getattr(module, "__file__", None)
        if source is not None:
            items[f"plugin {Path(source).name}"] = sha256_of(Path(source))
    return Facts("code", items, "content", "install the same version of it for all processes")


def version_facts() -> Facts:
    """Return the versions of Python and of the libraries that compute."""
    items = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    return Facts("versions", items, "values", "install the same versions for all processes")


def version_line() -> str:
    """Return the versions of sam4ir, of Python and of the libraries that compute: 'sam4ir 0.1.0, python 3.11, ...'."""
    versions = {"sam4ir": __version__, **version_facts().items}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def dataset_facts(name: str, data: Dataset, seed: int) -> Facts:
    """Return the keys of a data set and, of some images that are spread evenly, figures of their pixels and maps."""
    keys = list(map(data.key, range(len(data))))
    numbers = {}
    for index in _in_time(_spread(len(keys))):
        try:
            sample = data.get(index, generator(seed, "agreement", index))
            tensors = [sample.lq, *sample.maps.values()]
            if sample.gt is not None:
                tensors.append(sample.gt)
            figures: tuple[float, ...] = ()
            for tensor in tensors:
                figures += _figures(tensor.double().numpy())
        except Exception:  # whatever it is, training meets it again and names it; here it must be the same everywhere
            figures = (math.nan,)
        numbers[keys[index]] = figures
    return Facts(f"data set {name}", dict.fromkeys(keys, ""), "names", _SAME_DATA, numbers)


def source_facts(title: str, source: ImageSource, keys: Sequence[str]) -> Facts:
    """Return the keys of images, and figures of the pixels of some of them."""
    numbers: dict[str, tuple[float, ...]] = {}
    for index in _in_time(_spread(len(keys))):
        try:
            image = read(source, keys[index])
            numbers[keys[index]] = (*map(float, image.shape), *_figures(image / np.iinfo(image.dtype).max))
        except Exception:  # a bad image is listed by the run itself
            numbers[keys[index]] = (math.nan,)
    return Facts(title, dict.fromkeys(keys, ""), "names", _SAME_DATA, numbers)


def mask_facts(name: str, store: MaskStore, keys: Sequence[str]) -> Facts:
    """Return how the masks of a data set were made, and checksums of some of their records. keys: its images."""
    items = _provenance(store.meta)
    for index in _spread(len(keys)):
        try:
            items[keys[index]] = str(zlib.crc32(store.record_bytes(keys[index])))
        except UserError as error:  # the run itself decides what it does about it
            items[keys[index]] = type(error).__name__
    return Facts(f"masks of data set {name}", items, "content", _SAME_DATA)


def provenance_facts(meta: Mapping[str, Any]) -> Facts:
    """Return how masks are made, by the metadata of their store."""
    return Facts("settings and weights of the masks", _provenance(meta), "values", "start all processes alike")


def _provenance(meta: Mapping[str, Any]) -> dict[str, str]:
    items = {}
    for key, value in meta.items():
        if key not in _FREE_META:
            items[key] = json.dumps(value, sort_keys=True, default=str)
    return items


def weights_facts(files: Mapping[str, str | None]) -> Facts:
    """Return digests of weights. files: {key of the option file: a file or a name of the zoo, None for none}."""
    items = {}
    for key, source in files.items():
        if source:
            items[key] = sha256_of(locate(source))
    return Facts("weights", items, "content", "copy the same file to all machines")


def network_facts(networks: Mapping[str, nn.Module], progress: Mapping[str, Any]) -> Facts:
    """Return the progress of a checkpoint and checksums of the weights that were loaded from it."""
    items = {name: str(value) for name, value in progress.items()}
    for label, network in networks.items():
        checksum = 0
        for tensor in network.state_dict().values():
            checksum = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), checksum)
        items[f"net_{label}"] = str(checksum)
    return Facts("checkpoint", items, "content", "put path.root on a file system that all machines share")


_SAME_DATA = "let all processes read the same files"


def _spread(count: int) -> list[int]:
    """Return SAMPLED indices that are spread evenly, the first and the last among them; all where there are fewer."""
    if count <= SAMPLED:
        return list(range(count))
    return [round(step * (count - 1) / (SAMPLED - 1)) for step in range(SAMPLED)]


def _in_time(indices: Iterable[int]) -> Iterator[int]:
    """Yield indices until the time for them is over; one at least."""
    end = time.monotonic() + _PATIENCE
    for index in indices:
        yield index
        if time.monotonic() > end:
            return


def _figures(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """Return the shape, the mean and the deviation of values."""
    return (*map(float, values.shape), float(values.mean()), float(values.std()))
