"""The test bed: test sets, metrics and device, built once, on which any number of weights is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sam4ir.config.schema import Block, PathOptions
from sam4ir.data.sample import Dataset
from sam4ir.engine import build
from sam4ir.engine.evaluate.metric import Metric
from sam4ir.engine.evaluate.report import Score, SetScore
from sam4ir.engine.evaluate.saved_images import saved_images
from sam4ir.engine.evaluate.validate import SHOWN_FAULTS, Outputs, evaluate
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.build import RestoreRecipe
from sam4ir.errors import UserError
from sam4ir.utils.dist import World


@dataclass(frozen=True)
class Scores:
    """The scores of one network on all test sets.

    notes: warnings about metrics of whole sets. faults: 'SET/KEY: reason' of images that could not be scored.
    """

    scores: Sequence[Score]
    sets: Sequence[SetScore]
    notes: Sequence[str]
    faults: Sequence[str] = ()


@dataclass(frozen=True)
class TestBed:
    """Test sets, metrics and device.

    network: the block network_g; its weights follow from `path`. seed: manual_seed. recipe: how images are restored,
    and whether they are saved. world: the processes that share the images. data: test sets by name.
    average: whether the average of the weights is scored where a file holds both and the path names no entry.
    """

    network: Block
    path: PathOptions
    recipe: RestoreRecipe
    seed: int
    channels_last: bool
    world: World
    device: torch.device
    data: Mapping[str, Dataset]
    metrics: Mapping[str, Metric]
    average: bool = True

    def score(self, weights: str | None, folder: Path, suffix: str) -> Scores:
        """Return the scores of these weights (a file or a name of the zoo), the same in each process.

        With val.save_img images go to folder/visualization/<data set>/<image>_<suffix>.png, panels to folder/panels.
        An image at fault is listed, and the others are scored. Raises BuildError for weights that are None, and for a
        network that does not suit the images; UserError where no image can be scored.
        """
        outputs = self._outputs(weights)
        val = self.recipe.val
        scores: list[Score] = []
        sets: list[SetScore] = []
        notes: list[str] = []
        faults: list[str] = []
        for name, dataset in self.data.items():
            place = folder / "visualization" / name
            saved = saved_images(val.save_img, name, place, folder / "panels" / name, suffix, samples=val.samples)
            evaluation = evaluate(
                name,
                dataset,
                outputs,
                self.metrics,
                seed=self.seed,
                world=self.world,
                saved=saved,
                samples=val.samples,
            )
            scores += evaluation.scores
            sets += evaluation.sets
            notes += evaluation.notes
            faults += [f"{name}/{key}: {reason}" for key, reason in evaluation.faults]
        if faults and len(faults) == sum(map(len, self.data.values())):
            raise UserError("\n  ".join(["none of the images can be scored", *faults[:SHOWN_FAULTS]]))
        return Scores(scores, sets, notes, faults)

    def _outputs(self, weights: str | None) -> Outputs:
        """Return the network with these weights, after checks that it suits the images."""
        network = build.build_network(self.network, "g", self.device, seed=self.seed, channels_last=self.channels_last)
        path = self.path.model_copy(update={"pretrain_network_g": weights})
        if not build.load_pretrained(network, path, self.average):
            raise build.BuildError(
                "path.pretrain_network_g: is required for a test; name the .pth file of the network, here or by "
                "sam4ir test --weights"
            )
        diffusion = self.recipe.diffusion
        if diffusion is not None:
            restore_build.check_diffusion(diffusion, weights or "")
        for dataset in self.data.values():
            channels = build.channels_of(dataset)
            build.check_images(
                network,
                self.recipe.scale,
                self.device,
                channels,
                diffusion=diffusion is not None,
                multiple=self.recipe.val.window_size or 1,
            )
        network = restore_build.for_inference(self.recipe, network)
        return Outputs(restore_build.build_restorer(self.recipe, network), self.device)
