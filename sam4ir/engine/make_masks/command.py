"""Make the masks of a folder of images, by one process or many, and print what was made (`sam4ir make-masks`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from sam4ir.data.masks.meta import read_meta, reading_orientation
from sam4ir.data.sources import open_source, select_keys
from sam4ir.engine.agreement import agree, code_facts, flag_facts, provenance_facts, source_facts, version_facts
from sam4ir.engine.devices import choose_device, wants_cuda
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.make_masks.build import load_generator, load_restorer, meta_of
from sam4ir.engine.make_masks.run import LESS_MEMORY, ImageShare, MaskReport, Place, RecordMaker, generate_masks
from sam4ir.engine.make_masks.settings import OF_MODELS, settings_for
from sam4ir.engine.precision import settle_format
from sam4ir.errors import UserError, first_line
from sam4ir.utils.cli import MOST
from sam4ir.utils.dist import World, restarted, world
from sam4ir.utils.durations import in_time
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import read_json
from sam4ir.utils.memory import out_of_memory
from sam4ir.utils.shell import command_words, yaml_line

_FREE_FLAGS = ("device", "input", "keys", "local_rank", "launcher", "threads")  # that processes may give otherwise
SHOWN = 20  # bad images that are listed


@dataclass(frozen=True)
class MaskRequest:
    """What masks to make and how: the flags of `sam4ir make-masks`, which has a sentence for each.

    shard: index and count of processes that run by themselves. settings: of the generator, beside its defaults.
    """

    input: Path
    store: Path
    sam: str
    keys: Path | None
    image: str
    restore_opt: Path | None
    restore_weights: str | None
    max_side: int | None
    scale: int
    device: str
    precision: str
    shard: tuple[int, int] | None
    parts: bool
    new: bool
    overwrite: bool
    ignore_exif: bool
    threads: int | None
    launcher: Literal["none", "pytorch", "slurm"]
    local_rank: int | None
    settings: Mapping[str, Any]


def make_masks(request: MaskRequest) -> int:
    """Make the masks that the store lacks; return the exit status.

    It is 1 where images have no masks yet, 130 or 143 after Ctrl-C or SIGTERM.
    """
    _check(request)
    if request.threads:
        torch.set_num_threads(request.threads)
        cv2.setNumThreads(request.threads)
    main_process = True
    try:
        with world(request.launcher, wants_cuda(request.device)) as joined, Signals(patient=joined.size > 1) as signals:
            main_process = joined.main
            return _make_masks(request, joined, signals)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"memory ran out ({first_line(error)}); {LESS_MEMORY}") from error
    except Interrupted as stopped:  # behind world(), which would wait for the others
        if main_process:
            print(f"stopped by {stopped}; the same command goes on from here", file=sys.stderr, flush=True)
        return stopped.exit_code


def _settings_of(request: MaskRequest) -> dict[str, Any]:
    """Return the settings beside the package's: those of the SAM and of the user; points come from their file."""
    settings = settings_for(request.sam, request.settings)
    if "point_grids" in settings:
        try:
            settings["point_grids"] = read_json(settings["point_grids"])
        except OSError as error:
            raise UserError(
                f"--point-grids: {request.settings['point_grids']} cannot be read ({error.strerror})"
            ) from None
        except UserError as error:  # it names the file
            raise UserError(f"--point-grids: {error}") from None
    return _as_begun(request, settings)


def _as_begun(request: MaskRequest, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, without those of the SAM where an earlier version began the store without them.

    Earlier versions took the package's settings for every SAM; so the same command goes on with such a store.
    """
    if request.new or not (request.store / "meta.json").is_file():
        return settings
    earlier = dict(settings)
    for name, value in OF_MODELS.get(request.sam, {}).items():
        if name not in request.settings and settings[name] == value:
            del earlier[name]
    if earlier == settings:
        return settings
    from sam4ir.priors.sam.automatic_masks import AutomaticMaskSettings

    if read_meta(request.store).get("settings") == AutomaticMaskSettings(**earlier).provenance():
        return earlier
    return settings


def _check(request: MaskRequest) -> None:
    """Raise UserError for options that contradict each other or lie out of range."""
    if (request.image == "restored") != (request.restore_opt is not None):
        raise UserError(
            "--image restored and --restore-opt belong together: the option file of the restoring network, for a run "
            "its options.yml"
        )
    if request.overwrite and request.keys is None:
        raise UserError("--overwrite needs --keys, the list of images to make again; --new begins a whole new store")
    if request.restore_weights and request.restore_opt is None:
        raise UserError("--restore-weights needs --restore-opt, the option file of their network, and --image restored")
    if request.max_side is not None and request.max_side < 1:
        raise UserError(f"--max-side: {request.max_side} must be above 0")
    if request.threads is not None and not 1 <= request.threads <= MOST:
        raise UserError(f"--threads: {request.threads} must be above 0 and at most {MOST}")
    if request.scale < 1 or (request.scale > 1 and request.image != "lq"):
        raise UserError(f"--scale: {request.scale} must be 1 or more, and is for --image lq")
    if request.store.suffix != ".lmdb":
        raise UserError(f"--store: {request.store} must end in .lmdb, so that it differs from a folder of files")


def _flags(request: MaskRequest) -> dict[str, Any]:
    """Return the flags that processes must have alike, the settings of the generator among them."""
    flags = {**vars(request), **request.settings}
    del flags["settings"]
    return flags


def _shard_of(request: MaskRequest, joined: World) -> ImageShare | None:
    """Return the share of a process that runs by itself, None for others. Raises UserError for it in a group."""
    if request.shard is None:
        return None
    if joined.size > 1:
        raise UserError("--shard is for processes that run by themselves; torchrun and Slurm share the images out")
    return ImageShare(*request.shard, "shard")


def _make_masks(request: MaskRequest, joined: World, signals: Signals) -> int:
    """Make what the store lacks, report it and return the exit status."""
    shard = _shard_of(request, joined)
    exif = reading_orientation(request.store, request.ignore_exif, request.new and not restarted())
    source = open_source(request.input, None, "--input", exif)
    keys = select_keys(source, request.keys)
    agree(
        joined,
        lambda: flag_facts(_flags(request), _FREE_FLAGS),
        code_facts,
        version_facts,
        lambda: source_facts(f"--input {request.input}", source, keys),
    )
    device = choose_device(request.device, joined, "--device")
    restored, restore = None, None
    if request.restore_opt:
        restored = load_restorer(request.restore_opt, request.restore_weights, device)
        restore = restored.restore
    precision, lines = settle_format("--precision", request.precision, device, joined)
    if joined.main:
        for line in lines:
            print(line)
    model = load_generator(request.sam, _settings_of(request), precision, device, joined)
    meta = meta_of(model, request.image, request.max_side, restored, request.scale)
    meta["exif_orientation"] = exif
    agree(joined, lambda: provenance_facts(meta))
    maker = RecordMaker(source, model.generate, restore, request.max_side, request.scale)
    if joined.main:
        print(f"{len(keys)} images of {request.input} ({request.image}), {model.summary}")

    def begun(images: int, stored: int, todo: Sequence[str]) -> None:
        """Print how much of the work is done already, and how long the rest takes."""
        line = f"{images} images, {stored} of them are in {request.store} already"
        if shard is not None:
            line = f"shard {shard.index} of {shard.count}: {line}"
        print(line, flush=True)
        if model.seconds is not None and todo:
            _print_estimate(model.seconds, maker, todo, images - stored, joined.size)

    report = generate_masks(
        maker,
        keys,
        Place(request.store, meta, request.new and not restarted(), request.parts, request.overwrite),
        shard=shard,
        world=joined,
        signals=signals,
        begun=begun,
    )
    if joined.main:
        _print_report(report, request)
    return int(bool(report.bad))


def _print_estimate(
    seconds: Callable[[np.ndarray], float], maker: RecordMaker, todo: Sequence[str], images: int, processes: int
) -> None:
    """Print the seconds of an image, by some points of the first one that can be read, and those of all images."""
    for key in todo[:3]:
        try:
            each = seconds(maker.image(key))
        except Exception as error:
            if fault_of_item(error) is None:
                raise
            continue  # the work lists it
        whole = in_time(each * -(-images // processes))
        how = f"by some points of {key}"
        if processes > 1:
            how += f", {processes} processes"
        print(f"about {in_time(each)} an image, {whole} for {images} images ({how})", flush=True)
        return


def _print_report(report: MaskReport, request: MaskRequest) -> None:
    """Print the figures, the images without masks, and the next commands."""
    duration = "nothing to do"
    if report.new:
        duration = f"{report.seconds:.1f} s, {report.rate:.3g} images/s"
    print(f"{report.new} images made ({duration}), {report.old} were there, {len(report.bad)} could not be done")
    content = f"{report.stored} images"
    if report.masks is not None:
        content += f", {report.masks} masks"
    print(f"{request.store}: {content}")
    for key, reason in report.bad[:SHOWN]:
        print(f"skipped: {key}: {reason}", file=sys.stderr)
    if len(report.bad) > SHOWN:
        print(f"skipped: {len(report.bad) - SHOWN} more", file=sys.stderr)
    if report.left:
        print(f"still being written by other processes: {', '.join(report.left)}; the last one merges them")
    images = str(request.input)
    if request.image == "restored":
        images = "GT_FOLDER"
    places = command_words(request.store, "--images", images, "--output", "PICTURES")
    print(f"look at them: sam4ir masks view {places}")
    print(f"train with them, in the YAML's datasets.train:\n  masks: {yaml_line({'store': str(request.store)})}")
