"""Whole runs of RRDB and SAM-DiffSR in this process: training, resuming, scoring, restoring, with and without masks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import World
from test_training import assert_same_run, records

from sam4ir.config.load import OptionsError, load_options, notices
from sam4ir.config.schema import Options
from sam4ir.data.masks.meta import write_meta
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.transforms import Flip
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.schedule import cosine_schedule, linear_schedule
from sam4ir.engine import build
from sam4ir.engine.build import BuildError
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.sampling import Sampling
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train.loop import Trainer
from sam4ir.priors.spe import spe_map
from sam4ir.utils.image import read_image, write_image
from sam4ir.utils.resize import imresize

ROOT = Path(__file__).resolve().parents[3]
RRDB = {"type": "RRDBNet", "num_feat": 8, "num_block": 2, "num_grow_ch": 4}
NETWORK = {"type": "DiffSR", "hidden_size": 8, "dim_mults": [1, 2], "rrdb_num_feat": 8, "rrdb_num_block": 2}


def values(world: World, model: str, network: dict, **changes: object) -> dict:
    """Option values of super-resolution on the small world's photographs."""
    base = world.values()
    data = {"type": "SuperResolutionDataset", "dataroot_gt": str(world.root / "gt")}
    masks = {"masks": {"store": str(world.root / "masks.lmdb")}} if model == "SAMDiffSRModel" else {}
    train = {**data, **masks, "gt_size": 16, "use_hflip": True, "use_rot": True, "batch_size_per_gpu": 2}
    loss = {"pixel_opt": {"type": "L1Loss"}, "use_grad_clip": False}
    return {
        **base,
        "model_type": model,
        "scale": 4,
        "datasets": {"train": train, "val": {**data, "name": "small_val"}},
        "network_g": network,
        "train": {**base["train"], **loss},
        **changes,
    }


def train(world: World, content: dict, *overrides: str, resume: bool = False) -> Path:
    trainer = Trainer(load_options(world.write(content), overrides), resume)
    trainer.run()
    return trainer.paths.run


@pytest.fixture
def rrdb(world: World) -> Path:
    """Weights of an RRDB after two steps."""
    content = values(world, "SRModel", RRDB, name="rrdb")
    return train(world, content, "train:total_iter=2") / "models" / "net_g_latest.pth"


@pytest.fixture
def diffusion(world: World, rrdb: Path) -> dict:
    """Option values of a diffusion run that looks at masks."""
    return values(
        world,
        "SAMDiffSRModel",
        NETWORK,
        name="diffusion",
        path={"root": str(world.root), "pretrain_network_c": str(rrdb)},
        diffusion={"modulation": "invertible", "strength": 0.3, "timesteps": 20},
        val={
            "val_freq": 4,
            "sampling": {"sampler": "dpm_solver_2m", "steps": 3},
            "metrics": {"psnr": {"type": "psnr"}, "psnr_y": {"type": "psnr_y"}},
        },
    )


def test_a_resumed_run_equals_an_uninterrupted_one(world: World, diffusion: dict) -> None:
    straight = train(world, diffusion, "name=straight")
    assert all(r["spe_shift"] > 0 for r in records(straight) if "spe_shift" in r)
    train(world, diffusion, "name=stopped", "train:total_iter=4", "train:scheduler:T_max=8")
    stopped = train(world, diffusion, "name=stopped", resume=True)
    assert_same_run(straight, stopped, 8)
    state = torch.load(stopped / "training_states" / "8.state", weights_only=True)
    assert state["model"]["spe_rms"] > 0


@pytest.mark.slow
def test_accumulated_micro_batches_learn_what_the_large_batch_does(world: World, diffusion: dict) -> None:
    large = train(world, diffusion, "name=large")
    small = train(world, diffusion, "name=small", "datasets:train:batch_size_per_gpu=1", "train:total_batch=2")
    one, other = (torch.load(f / "models" / "net_g_8.pth", weights_only=True)["params"] for f in (large, small))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_only_the_denoiser_learns_and_the_file_holds_all_that_restoring_needs(
    world: World, diffusion: dict, rrdb: Path
) -> None:
    run = train(world, diffusion)
    weights = torch.load(run / "models" / "net_g_latest.pth", weights_only=True)["params"]
    before = torch.load(rrdb, weights_only=True)["params_ema"]
    assert torch.equal(weights["rrdb.conv_first.weight"], before["conv_first.weight"])
    network = build.build_network(options_of(world, diffusion).network_g, "g", CPU, seed=0)
    assert set(network.state_dict()) == set(weights)
    start = network.state_dict()["denoise_fn.final_conv.1.weight"]
    assert not torch.equal(start, weights["denoise_fn.final_conv.1.weight"])


CPU = torch.device("cpu")


def sampling_of(options: Options) -> Sampling:
    """The sampling that val describes."""
    return restore_build.build_sampling(restore_build.restore_recipe(options), options.process)


def options_of(world: World, content: dict, *overrides: str) -> Options:
    return load_options(world.write(content), overrides)


@pytest.mark.slow
def test_with_no_strength_or_no_masks_training_is_the_plain_control(world: World, diffusion: dict) -> None:
    still = train(world, diffusion, "name=still", "diffusion:strength=0")
    del diffusion["datasets"]["train"]["masks"]
    plain = train(world, diffusion, "name=plain", "diffusion:modulation=none")
    one, other = (torch.load(f / "models" / "net_g_8.pth", weights_only=True)["params"] for f in (still, plain))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_test_py_repeats_the_numbers_of_validation_and_restore_writes_the_same_images(
    world: World, diffusion: dict
) -> None:
    run = train(world, diffusion)
    tested = {
        **diffusion,
        "name": "tested",
        "train": None,
        "datasets": {"test": diffusion["datasets"]["val"]},
        "path": {"root": str(world.root), "pretrain_network_g": str(run / "models" / "net_g_latest.pth")},
        "val": {**diffusion["val"], "val_freq": None, "save_img": True},
    }
    score_network(options_of(world, tested))
    mine = (world.root / "results" / "tested" / "metrics.csv").read_text().splitlines()
    validated = (run / "validation.csv").read_text().splitlines()
    last = {line.split(",", 1)[1] for line in validated if line.startswith("8,") and ",restored," in line}
    assert {line for line in mine if ",restored," in line} == last
    low = world.root / "low"
    for file in sorted((world.root / "gt").glob("*.png")):
        pixels = torch.from_numpy(read_image(file)).permute(2, 0, 1).double()
        shrunk = imresize(pixels, 0.25).round().clamp(0, 255).byte()
        write_image(low / file.name, shrunk.permute(1, 2, 0).numpy())
    option_file = world.write(tested, "tested.yml")
    restore(world, "-opt", str(option_file), "--input", str(low), "--output", str(world.root / "high"))
    for file in sorted((world.root / "high").glob("*.png")):
        scored = world.root / "results" / "tested" / "visualization" / "small_val" / f"{file.stem}_tested.png"
        assert (read_image(file) == read_image(scored)).all()


def restore(world: World, *arguments: str) -> str:
    """scripts/restore.py in a Python that has no Segment Anything, in the world's folder."""
    code = (
        "import sys, runpy\n"
        "for name in ('segment_anything', 'pycocotools', 'tensorboard'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = str(ROOT / "scripts" / "restore.py")
    done = subprocess.run(
        [sys.executable, "-c", code, script, "--device", "cpu", *arguments],
        cwd=world.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_restore_draws_samples_by_seed_and_keeps_the_images_that_are_there(world: World, diffusion: dict) -> None:
    weights = train(world, diffusion, "train:total_iter=2") / "models" / "net_g_latest.pth"
    out = world.root / "out"
    write_image(world.root / "low" / "a.png", read_image(world.root / "gt" / "photo_0.png")[::4, ::4])
    given = ["--weights", str(weights), "--input", str(world.root / "low"), "--output", str(out), "--steps", "2"]
    assert "1 images restored" in restore(world, *given, "--samples", "2", "--tile", "8", "--overlap", "2")
    assert sorted(p.name for p in out.glob("*")) == ["a_s0.png", "a_s1.png"]
    assert (read_image(out / "a_s0.png") != read_image(out / "a_s1.png")).any()
    (out / "a_s1.png").unlink()
    first = (out / "a_s0.png").stat().st_mtime_ns
    restore(world, *given, "--samples", "2", "--seed", "7")
    assert (out / "a_s0.png").stat().st_mtime_ns == first
    assert (out / "a_s1.png").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion:modulation=papr", "paper"),
        ("datasets:train:masks=~", "masks"),
        ("path:pretrain_network_c=~", "rrdb_x4"),
        ("val:sampling:steps=21", "20 timesteps"),
        ("val:sampling:eta=0.5", "only sampler: ddim"),
        ("val:self_ensemble=true", "one pass"),
        ("compile=true", "compile"),
        ("scale=8", "sr_scale is 4"),
        ("train:pixel_opt:type=PSNRLoss", "not of noise"),
        ("train:pixel_opt={type: PerceptualLoss, layer_weights: {conv1_1: 1}}", "not of noise"),
        ("train:pixel_opt=~", "train.pixel_opt: is required by SAMDiffSRModel"),
        ("train:losses={l1: {type: L1Loss}}", "train.losses: compares restored images"),
        ("train:perceptual_opt={type: L1Loss}", "train.perceptual_opt: compares restored images"),
        ("val:window_size=8", "window_size"),
        ("model_type=SRModel", "SAMDiffSRModel"),
    ],
)
def test_options_that_cannot_be_are_named(world: World, diffusion: dict, override: str, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        options_of(world, diffusion, override)


def test_paper_cannot_be_sampled_by_solvers(world: World, diffusion: dict) -> None:
    with pytest.raises(OptionsError, match="ddpm"):
        options_of(world, diffusion, "diffusion:modulation=paper")
    options = options_of(world, diffusion, "diffusion:modulation=paper", "val:sampling:sampler=~")
    assert sampling_of(options).sampler == "ddpm"


def test_every_key_of_diffusion_and_sampling_arrives(world: World, diffusion: dict) -> None:
    given = {"schedule": "linear", "timesteps": 30, "beta_start": 1e-3, "beta_end": 0.05, "target": "v"}
    given |= {"modulation": "invertible", "strength": 0.7, "profile": "signal"}
    sampling = {"sampler": "ddim", "steps": 7, "spacing": "uniform", "eta": 0.5, "seed": 9, "precision": "bf16"}
    val = {"sampling": sampling, "grids": True, "crop_size": 16, "overlap": 5, "max_minibatch": 3}
    options = options_of(world, {**diffusion, "diffusion": given, "val": val})
    process = restore_build.build_process(options.process)
    wanted = Process(linear_schedule(30, 1e-3, 0.05), "invertible", 0.7, "v", "signal")
    assert torch.equal(process.schedule.betas, wanted.schedule.betas)
    assert [getattr(process, n) for n in FACTS] == [getattr(wanted, n) for n in FACTS]
    assert sampling_of(options) == Sampling("ddim", 7, "uniform", 0.5, 9, "bf16", 16, 5, 3)
    cosine = options_of(world, {**diffusion, "diffusion": {"modulation": "none", "s": 0.02, "timesteps": 30}})
    assert torch.equal(restore_build.build_process(cosine.process).schedule.betas, cosine_schedule(30, 0.02).betas)


@pytest.mark.parametrize(("tile", "at_once"), [(16, 8), (64, 4), (100, 1), (128, 1), (512, 1)])
def test_as_many_tiles_at_once_as_one_of_128_has_pixels(world: World, diffusion: dict, tile: int, at_once: int) -> None:
    val = {"grids": True, "crop_size": tile}
    assert sampling_of(options_of(world, {**diffusion, "val": val})).batch == at_once
    assert sampling_of(options_of(world, {**diffusion, "val": {**val, "max_minibatch": 5}})).batch == 5


FACTS = ("modulation", "strength", "target", "profile")


@pytest.mark.parametrize("mean", ["image", "region"])
def test_samples_carry_the_encoding_that_is_asked_for(
    world: World, diffusion: dict, mean: Literal["image", "region"]
) -> None:
    options = options_of(world, diffusion, f"diffusion:mean={mean}")
    data = train_data.data_sets(options).train.with_gt_size(None)
    found = data.get(2, np.random.default_rng(5)).maps["spe"][0].numpy()
    record = MaskStore(world.root / "masks.lmdb").read("photo_2")
    whole = spe_map(record, 0, 0, 40, 52, mean)
    turned = [flip.apply(whole) for flip in (Flip(h, v, t) for h in (0, 1) for v in (0, 1) for t in (0, 1))]
    assert any(a.shape == found.shape and np.array_equal(a, found) for a in turned)


def test_the_rrdb_s_own_file_is_not_needed_beside_the_weights_of_the_whole_network(
    world: World, diffusion: dict, rrdb: Path
) -> None:
    run = train(world, diffusion, "train:total_iter=2")
    rrdb.unlink()
    again = options_of(world, diffusion, f"path:pretrain_network_g={run / 'models' / 'net_g_latest.pth'}")
    assert build.load_pretrained(build.build_network(again.network_g, "g", CPU, seed=0), again.path)


@pytest.mark.slow
def test_weights_alone_tell_restore_their_diffusion(world: World, diffusion: dict) -> None:
    run = train(world, diffusion, "train:total_iter=2", "diffusion:target=v")
    alone = world.root / "alone.pth"
    alone.write_bytes((run / "models" / "net_g_latest.pth").read_bytes())
    write_image(world.root / "low" / "a.png", read_image(world.root / "gt" / "photo_0.png")[::4, ::4])
    given = ["--input", str(world.root / "low"), "--sampler", "ddim", "--steps", "2", "--output"]
    told = restore(world, "--weights", str(alone), *given, str(world.root / "alone"))
    assert "timesteps: 20" in told
    assert "target: v" in told
    restore(world, "--weights", str(run / "models" / "net_g_latest.pth"), *given, str(world.root / "with"))
    assert (read_image(world.root / "alone" / "a.png") == read_image(world.root / "with" / "a.png")).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion:target=v", "target is v, but .* with noise"),
        ("diffusion:timesteps=30", "timesteps is 30, but .* with 20"),
        ("diffusion:modulation=paper", "modulation is paper"),
    ],
)
def test_weights_are_not_sampled_by_another_process_than_theirs(
    world: World, diffusion: dict, override: str, message: str
) -> None:
    weights = train(world, diffusion, "train:total_iter=2") / "models" / "net_g_latest.pth"
    tested = {**diffusion, "train": None, "datasets": {"test": diffusion["datasets"]["val"]}}
    tested["path"] = {"root": str(world.root), "pretrain_network_g": str(weights)}
    with pytest.raises(BuildError, match=message):
        score_network(options_of(world, {**tested, "name": "t"}, override, "val:sampling:sampler=ddpm"))


def test_keys_that_another_key_switches_off_are_told(world: World, diffusion: dict) -> None:
    given = ("diffusion:modulation=none", "diffusion:mean=region", "diffusion:beta_end=0.5")
    told = "\n".join(notices(options_of(world, diffusion, *given)))
    for key in ("diffusion.strength", "diffusion.mean", "diffusion.beta_end", "datasets.train.masks"):
        assert f"{key} has no effect" in told
    assert notices(options_of(world, diffusion)) == []


def test_another_network_or_scale_is_refused_before_training(world: World, diffusion: dict) -> None:
    with pytest.raises(BuildError, match="has no RRDB"):
        train(world, {**diffusion, "network_g": RRDB})
    with pytest.raises(BuildError, match=r"rrdb_num_feat: 8 and rrdb_num_block: 2"):
        train(world, {**diffusion, "network_g": {**NETWORK, "rrdb_num_feat": 16}})


def test_tiles_that_leave_nothing_of_their_own_are_refused_before_any_work(world: World, diffusion: dict) -> None:
    tiles = {**diffusion["val"], "grids": True, "crop_size": 9, "overlap": 7}
    deep = {**diffusion, "network_g": {**NETWORK, "dim_mults": [1, 2, 2, 2, 2]}}  # LR in multiples of 4
    options = options_of(world, {**deep, "val": tiles})
    network = build.build_network(options.network_g, "g", CPU, seed=0)
    assert restore_build.build_restorer(restore_build.restore_recipe(options), network).sampling.tile == 8
    wide = options_of(world, {**deep, "val": {**tiles, "overlap": 8}})
    with pytest.raises(BuildError, match="overlap of 8"):
        restore_build.build_restorer(restore_build.restore_recipe(wide), network)


def test_maps_of_encodings_cannot_be_divided_by_the_masks_area(world: World, diffusion: dict) -> None:
    meta = world.root / "masks.lmdb" / "meta.json"
    told = json.loads(meta.read_text())
    write_meta(meta.parent, {**told, "imported": {"format": "spe"}})
    train_data.data_sets(options_of(world, diffusion))
    with pytest.raises(BuildError, match="region"):
        train_data.data_sets(options_of(world, diffusion, "diffusion:mean=region"))


def test_the_scale_of_the_encoding_is_that_of_its_covered_pixels(world: World, diffusion: dict) -> None:
    options = options_of(world, diffusion)
    ((key, block),) = options.phase("train").items()
    measured = train_data.measured_spe(key, block, options.scale, options.process.mean)
    data = train_data.masked_dataset(key, block, train_data.views_of(options), options.scale)
    whole = data.with_gt_size(None)
    seen = [whole.get(i, np.random.default_rng(0)).maps["spe"] for i in range(len(whole))]
    covered = torch.cat([spe[spe != 0] for spe in seen])
    assert measured == pytest.approx(covered.double().square().mean().sqrt().item(), rel=1e-5)
