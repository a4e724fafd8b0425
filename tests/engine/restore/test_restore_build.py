"""From the keys of `val` and `diffusion` to tiles and samplers: every key arrives, defaults are the stated ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from sam4ir.config.load import load_options
from sam4ir.config.schema import DiffusionOptions, ValOptions
from sam4ir.engine.build import BuildError
from sam4ir.engine.restore import build
from sam4ir.engine.restore.build import RestoreRecipe, build_inference, build_restorer, build_sampling
from sam4ir.engine.restore.images import ImageRestorer, image_form, image_restorer
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer
from sam4ir.engine.restore.sampling import DiffusionRestorer, Sampling
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS

CPU = torch.device("cpu")
WHOLE = Inference(tile=None, overlap=0, batch=8, multiple=1, self_ensemble=False, scale=1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, WHOLE),
        ({"crop_size": 64}, WHOLE),  # without grids
        ({"crop_size": 64, "grids": True}, replace(WHOLE, tile=64, overlap=8)),
        ({"crop_size": 65, "grids": True, "overlap": 0}, replace(WHOLE, tile=65)),
        (
            {"crop_size": 64, "grids": True, "overlap": 20, "max_minibatch": 2},
            replace(WHOLE, tile=64, overlap=20, batch=2),
        ),
        ({"window_size": 16, "self_ensemble": True}, replace(WHOLE, multiple=16, self_ensemble=True)),
    ],
)
def test_the_keys_of_val_are_those_of_the_pass(keys: dict[str, Any], expected: Inference) -> None:
    assert build_inference(RestoreRecipe(ValOptions(**keys))) == expected
    assert build_inference(RestoreRecipe(ValOptions(**keys), scale=4)) == replace(expected, scale=4)


@pytest.mark.parametrize(
    ("timesteps", "sampler", "steps"),
    [(100, None, 20), (100, "ddim", 20), (100, "dpm_solver_2m", 15), (12, "ddpm", 12), (12, "dpm_solver_2m", 12)],
)
def test_a_chain_has_the_stated_steps_and_no_more_than_the_process(
    timesteps: int, sampler: str | None, steps: int
) -> None:
    recipe = RestoreRecipe(ValOptions(sampling={"sampler": sampler}))
    assert build_sampling(recipe, DiffusionOptions(timesteps=timesteps)).steps == steps


def test_an_option_file_without_keys_samples_as_the_defaults_do() -> None:
    sampling = build_sampling(RestoreRecipe(ValOptions()), DiffusionOptions())
    assert replace(sampling, overlap=Sampling.overlap) == Sampling()
    assert (sampling.sampler, sampling.steps, sampling.spacing, sampling.eta) == ("ddpm", 20, "logsnr", 0.0)


class Denoiser(nn.Module):
    """What the tiles of a diffusion network depend on."""

    multiple, smallest = 6, 12


@pytest.mark.parametrize(
    ("crop", "overlap", "tile"), [(None, None, None), (12, 0, 12), (30, 6, 30), (35, 6, 30), (17, 11, 12)]
)
def test_tiles_of_a_diffusion_network_are_multiples_of_what_it_needs(
    crop: int | None, overlap: int | None, tile: int | None
) -> None:
    recipe = RestoreRecipe(ValOptions(crop_size=crop, overlap=overlap, grids=crop is not None), 4, DiffusionOptions())
    restorer = build_restorer(recipe, Denoiser())
    assert isinstance(restorer, DiffusionRestorer)
    assert (restorer.sampling.tile, restorer.sampling.overlap, restorer.scale) == (tile, overlap or 0, 4)


@pytest.mark.parametrize(("crop", "overlap", "tile"), [(11, 0, 6), (5, 0, 6), (17, 12, 12), (17, 13, 12)])
def test_tiles_that_are_too_small_for_the_network_or_the_overlap_are_refused(
    crop: int, overlap: int, tile: int
) -> None:
    recipe = RestoreRecipe(ValOptions(crop_size=crop, overlap=overlap, grids=True), 4, DiffusionOptions())
    with pytest.raises(
        BuildError, match=rf"val.crop_size: tiles of {crop} become {tile}, .*multiples of 6.*12 at least"
    ):
        build_restorer(recipe, Denoiser())


def test_a_plain_network_is_restored_in_one_pass() -> None:
    network = nn.Identity()
    assert build_restorer(RestoreRecipe(ValOptions()), network) == PlainRestorer(network, WHOLE)


@pytest.mark.parametrize(
    ("trained", "asked", "key"),
    [
        ({}, {"timesteps": 50}, "timesteps"),
        ({}, {"target": "v"}, "target"),
        ({}, {"schedule": "linear"}, "schedule"),
        ({}, {"s": 0.01}, "s"),
        ({"schedule": "linear"}, {"schedule": "linear", "beta_start": 0.001}, "beta_start"),
        ({"schedule": "linear"}, {"schedule": "linear", "beta_end": 0.03}, "beta_end"),
        ({"modulation": "paper"}, {"modulation": "none"}, "modulation"),
        ({"modulation": "none"}, {"modulation": "paper"}, "modulation"),
        ({}, {}, ""),
        ({"schedule": "linear"}, {"schedule": "linear", "s": 0.01}, ""),  # a line has no s
        ({}, {"beta_end": 0.03}, ""),  # and a cosine no ends
        ({"modulation": "released"}, {"modulation": "none", "strength": 3.0}, ""),  # masks are not read in sampling
    ],
)
def test_images_are_sampled_by_the_process_of_the_training(
    monkeypatch: pytest.MonkeyPatch, trained: dict[str, Any], asked: dict[str, Any], key: str
) -> None:
    held = DiffusionOptions(**trained).model_dump()
    monkeypatch.setattr(build, "metadata_of", lambda source, entry: held)
    if not key:
        build.check_diffusion(DiffusionOptions(**asked), "net.pth")
        return
    with pytest.raises(BuildError, match=rf"^diffusion\.{key} is .* net\.pth was trained with"):
        build.check_diffusion(DiffusionOptions(**asked), "net.pth")


def test_weights_that_hold_no_process_are_sampled_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "metadata_of", lambda source, entry: {})
    build.check_diffusion(DiffusionOptions(timesteps=7), "net.pth")


# whole networks and arrays

DIFFUSION = {"type": "DiffSR", "hidden_size": 8, "dim_mults": [1, 2], "rrdb_num_feat": 8, "rrdb_num_block": 2}
PLAIN = {"type": "NAFNet", "width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


def of_diffusion(folder: Path, *overrides: str, block: dict[str, Any] = DIFFUSION) -> ImageRestorer:
    """A restorer by an option file of a diffusion model, whose weights were trained with 20 times."""
    weights = folder / "net.pth"
    network = ARCHS.get(block["type"])(**{key: value for key, value in block.items() if key != "type"})
    torch.save({"params": network.state_dict(), "diffusion": DiffusionOptions(timesteps=20).model_dump()}, weights)
    content = {"name": "x", "model_type": "SAMDiffSRModel", "scale": 4, "device": "cpu", "network_g": block}
    content["diffusion"] = {"timesteps": 20}
    (folder / "x.yml").write_text(yaml.safe_dump(content))
    return image_restorer(load_options(folder / "x.yml", overrides), str(weights))


def test_a_diffusion_network_restores_colour_in_eval_mode(tmp_path: Path) -> None:
    restorer = of_diffusion(tmp_path, "val={sampling: {steps: 2}}")
    assert restorer.channels == 3
    assert isinstance(restorer.restorer, DiffusionRestorer)
    assert not restorer.restorer.network.training
    image = torch.zeros(4, 6, 3, dtype=torch.uint8).numpy()
    assert restorer(image).shape == (16, 24, 3)


def test_another_process_and_a_network_of_another_kind_are_refused_before_an_image_is_restored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diffusion\.timesteps is 10, but .* with 20"):
        of_diffusion(tmp_path, "diffusion:timesteps=10")
    with pytest.raises(UserError, match="NAFNet is no diffusion network"):
        of_diffusion(tmp_path, block=PLAIN)


def of_channels(channels: int) -> nn.Conv2d:
    """A network of so many channels that gives its image back, 1/255 brighter."""
    network = nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        network.weight.copy_(torch.eye(channels).view(channels, channels, 1, 1))
        network.bias.fill_(1 / 255)
    return network


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_of_a_network_are_found(channels: int) -> None:
    assert image_form(of_channels(channels), CPU, RestoreRecipe(ValOptions())) == (channels, 1)


def test_a_network_of_neither_colour_nor_grey_images_is_named() -> None:
    with pytest.raises(UserError, match=r"Conv2d restores neither RGB nor grey images \(.*1 channels"):
        image_form(of_channels(4), CPU, RestoreRecipe(ValOptions()))


@pytest.mark.parametrize(("colours", "channels"), [(3, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_an_array_comes_back_in_its_type_and_colour(colours: int, channels: Any, dtype: str) -> None:
    step = 1 if dtype == "uint8" else 257
    image = (torch.arange(5 * 4 * colours).view(5, 4, colours).numpy() * step).astype(dtype)
    restore = ImageRestorer(PlainRestorer(of_channels(channels), WHOLE), CPU, channels)
    restored = restore(image)
    assert restored.dtype == image.dtype
    assert restored.shape == image.shape
    if (colours, channels) == (3, 1):  # BT.601 luma, in all three channels
        luma = (image @ [0.299, 0.587, 0.114]).round()
        assert abs(restored - (luma + step)[..., None]).max() <= step
        assert (restored == restored[..., :1]).all()
    else:
        assert (restored == image + step).all()


def test_key_and_sample_reach_the_restorer() -> None:
    calls: list[tuple[str, int]] = []

    class Noted:
        network = nn.Identity()

        def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
            calls.append((key, sample))
            assert torch.is_inference_mode_enabled()
            return lq

    image = torch.zeros(2, 2, 3, dtype=torch.uint8).numpy()
    ImageRestorer(Noted(), CPU, 3)(image, "a", 4)
    ImageRestorer(Noted(), CPU, 3)(image)
    assert calls == [("a", 4), ("", 0)]
