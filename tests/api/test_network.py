"""sam4ir.load: the images of scripts/restore.py, for every kind of image, from any thread."""

from __future__ import annotations

import doctest
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from conftest import NETWORK, photograph
from safetensors.torch import save_file

import sam4ir
from sam4ir.api import network as module
from sam4ir.cli import export
from sam4ir.cli import restore as script
from sam4ir.engine.restore.one_pass import PlainRestorer
from sam4ir.registry import ARCHS
from sam4ir.utils.image import encode_png, read_image, to_grey, write_image

TINY = {key: value for key, value in NETWORK.items() if key != "type"}
DIFFUSION = {"hidden_size": 16, "dim_mults": [1, 2], "rrdb_num_feat": 16, "rrdb_num_block": 2, "sr_scale": 4}


def save(path: Path, kind: str = "NAFNet", **arguments: object) -> Path:
    """Write weights whose every part changes the image."""
    net = ARCHS.get(kind)(**arguments)
    draws = torch.Generator().manual_seed(1)
    state = {}
    for key, value in net.state_dict().items():
        state[key] = value
        if value.is_floating_point():
            state[key] = value + 0.05 * torch.randn(value.shape, generator=draws)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": state}, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save(tmp_path / "plain.pth", **TINY)


@pytest.fixture
def network(weights: Path) -> sam4ir.TrainedNetwork:
    return sam4ir.load(weights, device="cpu")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, sam4ir; print([m for m in ('torch', 'numpy', 'cv2', 'pydantic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert set(sam4ir.__all__) == set(dir(sam4ir))
    for name in sam4ir.__all__:
        assert getattr(sam4ir, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = sam4ir.lode  # type: ignore[attr-defined]


def test_the_examples_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(module)
    assert outcome.attempted > 5
    assert outcome.failed == 0


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, []),
        ({"tile": 24, "overlap": 4}, ["--tile", "24", "--overlap", "4"]),
        ({"self_ensemble": True}, ["--self-ensemble"]),
        ({"precision": "bf16"}, ["--precision", "bf16"]),
    ],
)
def test_images_are_those_of_the_script_bit_for_bit(
    weights: Path, tmp_path: Path, settings: dict, flags: list[str]
) -> None:
    for number in range(2):
        write_image(tmp_path / "in" / f"p{number}.png", photograph(number, 40 + 7 * number))
    write_image(tmp_path / "in" / "deep" / "sixteen.png", photograph(3).astype(np.uint16) * 257)
    place = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert script.main([*place, "--device", "cpu", *flags]) == 0
    network = sam4ir.load(weights, device="cpu", **settings)
    count = 0
    for path, image in network.folder(tmp_path / "in"):
        written = read_image(tmp_path / "out" / path.relative_to(tmp_path / "in"))
        assert image.dtype == written.dtype
        assert np.array_equal(image, written)
        assert np.array_equal(network(read_image(path)), written)
        assert network.restore_file(path.read_bytes()) == encode_png(written)
        count += 1
    assert count == 3


def test_a_diffusion_network_draws_the_noise_of_the_script(tmp_path: Path) -> None:
    weights = save(tmp_path / "diffusion.pth", "DiffSR", **DIFFUSION)
    write_image(tmp_path / "in" / "a.png", photograph(1, 16, 20))
    options = tmp_path / "options.yml"
    options.write_text(
        f"name: x\nscale: 4\nmodel_type: SAMDiffSRModel\nnetwork_g: {{type: DiffSR, {flow(DIFFUSION)}}}\n"
        f"path: {{pretrain_network_g: {weights}}}\n"
    )
    place = ["-opt", str(options), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert script.main([*place, "--device", "cpu", "--steps", "3", "--seed", "5", "--samples", "2"]) == 0
    written = [read_image(tmp_path / "out" / f"a_s{number}.png") for number in range(2)]
    network = sam4ir.load(options, device="cpu", seed=5, steps=3)
    image = read_image(tmp_path / "in" / "a.png")
    assert all(map(np.array_equal, network.samples(image, 2, name="a"), written))
    later = sam4ir.load(options, device="cpu")
    assert np.array_equal(later(image, name="a", steps=3, seed=5), written[0])
    assert not np.array_equal(later(image, name="a", steps=3), written[0])
    batch = torch.from_numpy(np.stack([image, image])).permute(0, 3, 1, 2)
    both = network(batch, name="a")
    assert both.shape == (2, 3, 64, 80)
    assert not torch.equal(both[0], both[1])  # each image of a batch has noise of its own
    with pytest.raises(sam4ir.UserError, match="precision: a diffusion network samples in fp32 or bf16"):
        network.with_settings(precision="fp16")


def flow(values: dict) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 31), (20, 31, 1), (20, 31, 3)])
def test_arrays_come_back_as_they_went_in(network: sam4ir.TrainedNetwork, dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape)
    if np.issubdtype(dtype, np.integer):
        values = values * np.iinfo(dtype).max
    image = values.astype(dtype)
    before = image.copy()
    restored = network(image)
    assert restored.dtype == image.dtype
    assert restored.shape == image.shape
    assert np.array_equal(image, before)
    assert restored.min() >= 0
    assert restored.max() <= (1 if values.max() <= 1 else np.iinfo(dtype).max)


def test_floats_equal_whole_numbers_to_their_rounding(network: sam4ir.TrainedNetwork) -> None:
    image = photograph(1)
    floats = network(image.astype(np.float32) / 255)
    assert np.array_equal((255 * floats).round().astype(np.uint8), network(image))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 20, 31), (1, 20, 31), (2, 3, 20, 31), (3, 1, 20, 31)])
def test_tensors_come_back_as_they_went_in(
    network: sam4ir.TrainedNetwork, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    values = torch.rand(shape)
    if not dtype.is_floating_point:
        values = values * 255
    image = values.to(dtype)
    restored = network(image)
    assert restored.dtype == dtype
    assert restored.shape == image.shape
    assert restored.device == image.device
    assert not restored.is_inference()  # it may take part in a training


def test_a_tensor_of_whole_numbers_equals_the_array(network: sam4ir.TrainedNetwork) -> None:
    image = photograph(1)
    restored = network(torch.from_numpy(image).permute(2, 0, 1))
    assert np.array_equal(restored.permute(1, 2, 0).numpy(), network(image))


def test_a_batch_goes_through_the_network_at_once(
    network: sam4ir.TrainedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = PlainRestorer.__call__

    def spy(self: PlainRestorer, lq: torch.Tensor, key: str, sample: int = 0) -> torch.Tensor:
        sizes.append(len(lq))
        if len(lq) > 2:
            raise MemoryError("no memory for so many")
        return original(self, lq, key, sample)

    monkeypatch.setattr(PlainRestorer, "__call__", spy)
    batch = torch.rand(2, 3, 24, 24)
    single = torch.stack([network(image) for image in batch])
    assert torch.allclose(network(batch), single, atol=1e-5)
    assert sizes == [1, 1, 2]
    sizes.clear()
    network(torch.rand(3, 3, 24, 24))
    assert sizes == [3, 1, 1, 1]
    sizes.clear()
    network.with_settings(tile=16)(batch)
    assert sizes == [1, 1]


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_pil_images_come_back_as_pil_images(network: sam4ir.TrainedNetwork, mode: str) -> None:
    array = photograph(1)
    if mode != "RGB":
        array = to_grey(array)[:, :, 0]
    if mode == "I;16":
        array = array.astype(np.uint16) * 257
    restored = network(PIL.Image.fromarray(array))
    assert restored.mode == mode
    assert np.array_equal(np.asarray(restored), network(array))


def test_a_grey_network_restores_the_luma_of_an_rgb_image(tmp_path: Path) -> None:
    network = sam4ir.load(save(tmp_path / "grey.pth", img_channel=1, **TINY), device="cpu")
    image = photograph(1)
    grey = network(to_grey(image))
    assert network.channels == 1
    assert np.array_equal(network(image), np.repeat(grey, 3, axis=2))
    floats = network(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
    assert torch.equal(floats[0], floats[2])
    assert abs(255 * floats[0].numpy() - grey[:, :, 0]).max() < 1.5


def test_a_network_of_rgb_images_restores_a_grey_one_repeated(network: sam4ir.TrainedNetwork) -> None:
    grey = to_grey(photograph(1))
    assert np.array_equal(network(grey), to_grey(network(np.repeat(grey, 3, axis=2))))


def test_threads_get_the_bits_of_one_after_the_other(weights: Path) -> None:
    images = []
    for number in range(24):
        images.append(photograph(number, 17 + 5 * (number % 7), 30 + 3 * (number % 5)))
    for concurrency in (1, 4):
        network = sam4ir.load(weights, device="cpu", concurrency=concurrency)
        alone = [network(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(network, images * 3))
        assert all(map(np.array_equal, together, alone * 3))


@pytest.mark.parametrize(("kind", "arguments"), [("NAFNet", TINY), ("DiffSR", DIFFUSION)])
def test_a_program_with_another_default_type_gets_the_same_bits(tmp_path: Path, kind: str, arguments: dict) -> None:
    weights, image = save(tmp_path / "x.pth", kind, **arguments), photograph(1, 24, 24)
    settings: dict = {"device": "cpu", "tile": 16}
    if kind == "DiffSR":
        settings["steps"] = 2
    expected = sam4ir.load(weights, **settings)(image)
    try:
        torch.set_default_dtype(torch.float64)
        network = sam4ir.load(weights, **settings)
        assert np.array_equal(network(image), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(network(image), expected)


def test_no_more_calls_compute_than_concurrency_allows(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, inside, most = threading.Lock(), [0], [0]
    original = PlainRestorer.__call__

    def spy(self: PlainRestorer, lq: torch.Tensor, key: str, sample: int = 0) -> torch.Tensor:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        restored = original(self, lq, key, sample)
        with lock:
            inside[0] -= 1
        return restored

    network = sam4ir.load(weights, device="cpu", concurrency=2)
    monkeypatch.setattr(PlainRestorer, "__call__", spy)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(network, [photograph(1, 16, 16)] * 16))
    assert most[0] == 2


def test_the_network_computes_in_threads_of_its_own(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps buffers for each thread that has computed."""
    computing = set()
    original = PlainRestorer.__call__

    def spy(self: PlainRestorer, lq: torch.Tensor, key: str, sample: int = 0) -> torch.Tensor:
        computing.add(threading.get_ident())
        return original(self, lq, key, sample)

    network = sam4ir.load(weights, device="cpu")
    monkeypatch.setattr(PlainRestorer, "__call__", spy)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(network, [photograph(1, 16, 16)] * 16))
        list(pool.map(network.restore_file, [encode_png(photograph(1, 16, 16))] * 16))
    assert len(computing) == 1
    assert threading.get_ident() not in computing


def test_a_forked_process_has_threads_of_its_own(network: sam4ir.TrainedNetwork) -> None:
    image = photograph(1, 16, 16)
    expected = network(image)
    child = os.fork()
    if child == 0:
        os._exit(int(not np.array_equal(network(image), expected)))
    assert os.waitpid(child, 0)[1] == 0


def test_memory_that_runs_out_means_smaller_tiles(
    network: sam4ir.TrainedNetwork, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = photograph(1, 64, 64)
    expected = network.with_settings(tile=32)(image)
    original = PlainRestorer.__call__

    def spy(self: PlainRestorer, lq: torch.Tensor, key: str, sample: int = 0) -> torch.Tensor:
        if (self.tile or 64) > 32:
            raise MemoryError("no memory")
        return original(self, lq, key, sample)

    monkeypatch.setattr(PlainRestorer, "__call__", spy)
    assert np.array_equal(network(image), expected)
    assert "restored in tiles of 32" in caplog.text


def run_folder(tmp_path: Path, names: tuple[str, ...]) -> Path:
    run = tmp_path / "experiments" / "x"
    for name in names:
        save(run / "models" / name, **TINY)
    (run / "options.yml").write_text(f"name: x\nnetwork_g: {{type: NAFNet, {flow(TINY)}}}\nmanual_seed: 7\n")
    return run


@pytest.mark.slow
def test_an_exported_network_restores_as_its_weights_do(tmp_path: Path, weights: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "net.onnx"
    export.main([str(weights), "--to", "onnx", "--output", str(file)])
    image = np.random.default_rng(0).integers(0, 256, (21, 33, 3), np.uint8)
    network, expected = sam4ir.load(file), sam4ir.load(weights, device="cpu")
    assert (network.architecture, network.scale, network.channels) == ("NAFNet", 1, 3)
    difference = network(image).astype(int) - expected(image).astype(int)
    assert abs(difference).max() <= 1


def test_a_file_is_given_as_its_bytes(weights: Path) -> None:
    with pytest.raises(sam4ir.UserError, match=r"takes the bytes of an image file, not str: Path\(file\)\.read_bytes"):
        sam4ir.load(weights, device="cpu").restore_file("photo.png")  # type: ignore[arg-type]


def test_a_run_that_saves_safetensors_is_loaded(tmp_path: Path) -> None:
    run = run_folder(tmp_path, ("net_g_latest.pth",))
    state = torch.load(run / "models" / "net_g_latest.pth")["params"]
    (run / "models" / "net_g_latest.pth").unlink()
    save_file(state, run / "models" / "net_g_latest.safetensors")
    assert sam4ir.load(run, device="cpu").weights == str(run / "models" / "net_g_latest.safetensors")


def test_sources_of_a_network(tmp_path: Path, weights: Path) -> None:
    run = run_folder(tmp_path, ("net_g_latest.pth", "net_g_8.pth"))
    assert sam4ir.load(run, device="cpu").weights == str(run / "models" / "net_g_latest.pth")
    assert sam4ir.load(run, device="cpu").options.manual_seed == 7
    assert sam4ir.load(run / "models" / "net_g_8.pth", device="cpu").options.manual_seed == 7
    network = sam4ir.load(run / "options.yml", weights=weights, device="cpu")
    assert network.weights == str(weights)
    assert (network.architecture, network.scale, network.channels) == ("NAFNet", 1, 3)
    (run / "models" / "net_g_latest.pth").unlink()
    assert sam4ir.load(run, device="cpu").weights == str(run / "models" / "net_g_8.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "nowhere.pth"}, "nowhere.pth: no such weights file"),
        ({"source": "nonsense"}, "nonsense: no such weights file, nor weights of the zoo"),
        ({"source": "."}, "is no folder of a run"),
        ({"source": "x.onnx"}, "x.onnx: no such file"),
        ({"source": "x.onnx", "weights": "y.pth"}, "weights: x.onnx holds its own"),
        ({"source": "x.onnx", "device": "cuda"}, "device: x.onnx runs on the CPU"),
        ({"weights": "y.pth"}, "weights: go with an option file"),
        ({"device": "gpu"}, "device: 'gpu' is none; give auto, cpu"),
        ({"precision": "fp8"}, "precision: 'fp8' is none"),
        ({"precision": "fp16"}, "precision: fp16 is for CUDA, and the device is cpu"),
        ({"tile": "512"}, "tile: '512' must be a whole number, 0 or more"),
        ({"tile": True}, "tile: True must be a whole number"),
        ({"self_ensemble": "no"}, "self_ensemble: 'no' is none; give True or False"),
        ({"tile": 16, "overlap": 16}, "overlap: 16 must be smaller than the tile of 16"),
        ({"overlap": 16}, "overlap: there are no tiles; add tile"),
        ({"steps": 5}, "steps: is for diffusion networks; NAFNet restores in one pass"),
        ({"concurrency": 0}, "concurrency: 0 must be a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_loaded_is_named(weights: Path, arguments: dict, message: str) -> None:
    values = {"source": weights, "device": "cpu", **arguments}
    with pytest.raises(sam4ir.UserError, match=message):
        sam4ir.load(**values)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"an array of shape \(4, 4, 4\) is no image"),
        (np.zeros((0, 4, 3), np.uint8), "is no image"),
        (np.zeros((4, 4), np.int64), "pixels are int64"),
        (np.full((4, 4), 200.0), r"float pixels are in \[0, 1\], and these are from 200 to 200; divide"),
        (np.full((4, 4), np.nan), "not finite"),
        (torch.zeros(4, 4), r"a tensor of shape \(4, 4\) is no image"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "pixels are torch.int32"),
        (PIL.Image.new("RGBA", (4, 4)), "the mode of the PIL image is RGBA"),
        (torch.rand(3, 4, 4).to_sparse(), "a tensor of layout torch.sparse_coo holds no pixels"),
        (torch.rand(3, 4, 4, device="meta"), "a tensor of device meta holds no pixels"),
        ("a.png", "a NumPy array, a torch tensor or a PIL image, not str"),
    ],
)
def test_what_is_no_image_is_named(network: sam4ir.TrainedNetwork, image: object, message: str) -> None:
    with pytest.raises(sam4ir.UserError, match=message):
        network(image)  # type: ignore[type-var]


def test_an_image_of_pil_whose_file_is_cut_off_is_named(network: sam4ir.TrainedNetwork, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encode_png(photograph(1))[:200])
    with PIL.Image.open(tmp_path / "cut.png") as image, pytest.raises(sam4ir.UserError, match="PIL image cannot be re"):
        network(image)


@pytest.mark.parametrize("order", [">u2", ">f4", ">f8"])
def test_numbers_of_another_byte_order_are_read_as_such(network: sam4ir.TrainedNetwork, order: str) -> None:
    values = photograph(1) / 255
    if order == ">u2":
        values = values * 65535
    foreign = values.astype(order)
    restored = network(foreign)
    assert restored.dtype == foreign.dtype
    assert np.array_equal(restored, network(foreign.astype(foreign.dtype.newbyteorder("="))))


def test_numbers_of_numpy_and_devices_of_torch_are_taken(weights: Path, tmp_path: Path) -> None:
    image = photograph(1)
    tile, device = np.int64(16), torch.device("cpu")
    network = sam4ir.load(weights, device=device, tile=tile, concurrency=np.int64(1))  # type: ignore[arg-type]
    assert np.array_equal(network(image), sam4ir.load(weights, device="cpu", tile=16)(image))
    diffusion = sam4ir.load(save(tmp_path / "diffusion.pth", "DiffSR", **DIFFUSION), device="cpu", steps=2)
    for number, sample in enumerate(np.arange(2)):
        same = diffusion(image, sample=sample, seed=np.int64(3), name="a")  # type: ignore[arg-type]
        assert np.array_equal(same, diffusion(image, sample=number, seed=3, name="a"))
    with pytest.raises(sam4ir.UserError, match="sample: 'a' must be a whole number, 0 or more"):
        diffusion(image, sample="a")  # type: ignore[arg-type]
    with pytest.raises(sam4ir.UserError, match="name: 5 is no text"):
        diffusion(image, name=5)  # type: ignore[arg-type]
    with pytest.raises(sam4ir.UserError, match="count: '2' must be a whole number, 1 or more"):
        diffusion.samples(image, "2")  # type: ignore[arg-type]


def test_a_folder_with_a_damaged_image(
    network: sam4ir.TrainedNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(sam4ir.UserError, match="in: holds no images"):
        list(network.folder(tmp_path / "in"))
    write_image(tmp_path / "in" / "b.png", photograph(1))
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    with pytest.raises(sam4ir.UserError, match=r"a\.png"):
        list(network.folder(tmp_path / "in"))
    assert [path.name for path, _ in network.folder(tmp_path / "in", skip_faulty=True)] == ["b.png"]
    assert "skipped: " in caplog.text


def test_files_of_every_kind_are_those_of_the_script(
    network: sam4ir.TrainedNetwork, weights: Path, tmp_path: Path
) -> None:
    photo = PIL.Image.fromarray(photograph(1))
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "profile.jpg", icc_profile=profile)
    photo.save(tmp_path / "in" / "animal.gif")
    photo.convert("CMYK").save(tmp_path / "in" / "ink.jpg")
    photo.convert("L").save(tmp_path / "in" / "grey.png")
    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    clear.save(tmp_path / "in" / "clear.png")
    place = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert script.main([*place, "--device", "cpu"]) == 0
    found = dict(network.folder(tmp_path / "in"))
    assert len(found) == 5
    for path, pixels in found.items():
        written = tmp_path / "out" / f"{path.stem}.png"
        assert network.restore_file(path.read_bytes(), name=path.name) == written.read_bytes()
        if path.stem != "grey":
            assert np.array_equal(pixels, read_image(written))


def test_other_tiles_have_an_overlap_of_their_own(weights: Path) -> None:
    network = sam4ir.load(weights, device="cpu", tile=32, overlap=12)
    image = photograph(1)
    assert np.array_equal(network.with_settings(tile=8)(image), sam4ir.load(weights, device="cpu", tile=8)(image))
    assert np.array_equal(network.with_settings(tile=0)(image), sam4ir.load(weights, device="cpu")(image))
    assert np.array_equal(network.with_settings(self_ensemble=False)(image), network(image))


def test_a_file_that_is_too_large_is_refused_before_it_is_decoded(network: sam4ir.TrainedNetwork) -> None:
    data = encode_png(photograph(1))
    with pytest.raises(sam4ir.UserError, match="upload: 40x52 pixels are more than the 2000"):
        network.restore_file(data, name="upload", most_pixels=2000)
    with pytest.raises(sam4ir.UserError, match="upload"):
        network.restore_file(b"no image", name="upload")


def test_a_program_may_silence_the_log(weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("sam4ir").setLevel(logging.CRITICAL)
    try:
        sam4ir.load(weights, device="cpu")(photograph(1))
    finally:
        logging.getLogger("sam4ir").setLevel(logging.NOTSET)
    assert capfd.readouterr() == ("", "")
