"""The time of an image's masks, measured by some of its points."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sam4ir.engine.make_masks import estimate
from sam4ir.priors.sam.automatic_masks import AutomaticMaskSettings
from sam4ir.priors.sam.kinds import build_sam


@pytest.mark.parametrize(
    ("settings", "encodings", "points"),
    [
        (AutomaticMaskSettings(points_per_side=6, points_per_batch=4), 1, 36),
        (AutomaticMaskSettings(points_per_side=6, points_per_batch=4, crop_n_layers=1), 5, 180),
        (AutomaticMaskSettings(points_per_side=None, point_grids=[[[0.5, 0.5]]], points_per_batch=4), 1, 1),
    ],
)
def test_the_time_is_that_of_the_encodings_and_of_all_points(
    settings: AutomaticMaskSettings, encodings: int, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that counts 100 s for an embedding and 2 s for a point."""
    clock = [0.0]
    embed, generator = estimate.image_embedding, estimate.AutomaticMaskGenerator

    class Counting(generator):  # type: ignore[misc, valid-type]
        def generate(self, image: np.ndarray) -> list:
            (grid,) = self.settings.point_grids
            assert len({tuple(point) for point in grid}) == len(grid)
            clock[0] += 2 * len(grid)
            return []

    def counted(*arguments: object, **more: object) -> object:
        clock[0] += 100
        return embed(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(estimate, "AutomaticMaskGenerator", Counting)
    monkeypatch.setattr(estimate, "image_embedding", counted)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    image = np.zeros((30, 40, 3), np.uint8)
    seconds = estimate.seconds_per_image(build_sam("mobile_sam"), settings, "fp32", image)
    assert seconds == encodings * 100 + 2 * points


def test_real_points_of_a_model_are_timed() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    settings = dataclasses.replace(AutomaticMaskSettings(), points_per_side=2)
    assert estimate.seconds_per_image(build_sam("mobile_sam"), settings, "fast", image) > 0
