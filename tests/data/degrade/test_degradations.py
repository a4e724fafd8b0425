import math

import cv2
import numpy as np
import pytest
import torch

from sam4ir.config.signature import block_arguments, check_block
from sam4ir.data.degrade.blur import GaussianBlur, MotionBlur, convolve, rasterised, trajectory, turned_grid
from sam4ir.data.degrade.dataset import DegradedImageDataset
from sam4ir.data.degrade.noise import GaussianNoise, Jpeg, PoissonGaussianNoise, Quantize, draw_between
from sam4ir.data.degrade.rain import RainStreaks
from sam4ir.errors import UserError
from sam4ir.registry import DEGRADATIONS
from sam4ir.utils.image import to_uint8, write_image
from sam4ir.utils.rng import generator

NEEDED = {"GaussianNoise": {"sigma": [5, 50]}}
WITHOUT_REGIONS = [name for name in DEGRADATIONS.names() if name != "ObjectMotionBlur"]  # it has tests of its own


def image(channels=3, height=40, width=52, seed=0):
    return torch.from_numpy(generator(seed, "image").random((channels, height, width), dtype=np.float32))


def made(name, **arguments):
    return DEGRADATIONS.get(name)(**block_arguments(DEGRADATIONS, name, NEEDED.get(name, {}) | arguments))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", WITHOUT_REGIONS)
def test_every_degradation_is_a_function_of_image_and_stream(name, channels):
    degrade, clean = made(name), image(channels, 37, 53)
    before = clean.clone()
    one, again = degrade(clean, generator(1)), degrade(clean, generator(1))
    assert (one.shape, one.dtype) == (clean.shape, torch.float32)
    assert torch.equal(one, again)
    assert torch.equal(clean, before)
    assert not torch.equal(one, clean)
    assert one.isfinite().all()
    if name != "Quantize":
        assert not torch.equal(one, degrade(clean, generator(2)))


@pytest.mark.parametrize("name", WITHOUT_REGIONS)
def test_the_number_of_threads_changes_no_bit(name):
    degrade, clean = made(name), image(3, 150, 170)
    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            results.append(degrade(clean, generator(1)))
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("GaussianNoise", {"sigma": [50, 5]}, r"sigma: .*\[low, high\], from 0"),
        ("GaussianNoise", {"sigma": [5, 15, 25]}, "sigma"),
        ("GaussianNoise", {"sigma": -1}, "sigma: -1"),
        ("GaussianNoise", {"sigma": 5, "choice": True}, "must be a list"),
        ("GaussianNoise", {"sigma": [], "choice": True}, "must be a list"),
        ("GaussianNoise", {"sigma": [5, -0.5], "choice": True}, "sigma: -0.5"),
        ("PoissonGaussianNoise", {"gain": -0.1}, "gain"),
        ("MotionBlur", {"length": (-3, 5)}, "length"),
        ("MotionBlur", {"anxiety": 2.0}, "anxiety.* up to 1"),
        ("GaussianBlur", {"sigma": 0.0}, "sigma"),
        ("GaussianBlur", {"ratio": 1.5}, "ratio"),
        ("Jpeg", {"quality": (0, 50)}, "quality.*from 1, up to 100"),
        ("Jpeg", {"quality": 50.5}, "whole"),
        ("Quantize", {"bits": 0}, "bits: 0"),
        ("RainStreaks", {"layers": 0}, "layers"),
        ("RainStreaks", {"blend": "multiply"}, "blend: 'multiply'"),
        ("RainStreaks", {"veil": 1.2}, "veil"),
    ],
)
def test_parameters_that_make_no_sense_are_named(name, arguments, word):
    with pytest.raises(ValueError, match=word):
        DEGRADATIONS.get(name)(**arguments)


@pytest.mark.parametrize(
    ("name", "argument", "low", "high", "beyond"),
    [
        ("GaussianNoise", "sigma", 0, 1e6, (-1e-6,)),
        ("PoissonGaussianNoise", "gain", 0, 1e6, (-1e-6,)),
        ("PoissonGaussianNoise", "sigma", 0, 1e6, (-1e-6,)),
        ("MotionBlur", "length", 0, 500, (-1e-6, 500.1)),
        ("MotionBlur", "anxiety", 0, 1, (-1e-6, 1.001)),
        ("MotionBlur", "angle", -1e6, 1e6, ()),
        ("GaussianBlur", "sigma", 0.05, 100, (0.049, 100.1)),
        ("GaussianBlur", "ratio", 0.01, 1, (0.0099, 1.001)),
        ("GaussianBlur", "angle", -1e6, 1e6, ()),
        ("Jpeg", "quality", 1, 100, (0, 101)),
        ("Quantize", "bits", 1, 16, (0, 17)),
    ],
)
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(name, argument, low, high, beyond):
    part = DEGRADATIONS.get(name)
    for value in (low, high):
        part(**{argument: value})
    if name != "Quantize":
        part(**{argument: [low, high]})
    for value in beyond:
        with pytest.raises(ValueError, match=argument):
            part(**{argument: value})


def test_a_range_says_its_limits():
    with pytest.raises(UserError, match=r"^length: -1 must be a number or \[low, high\], from 0, up to 500$"):
        MotionBlur(length=-1)
    with pytest.raises(UserError, match=r"^sigma: \(3, 2\) must be a number or \[low, high\], from 0$"):
        GaussianNoise((3, 2))
    with pytest.raises(UserError, match=r"^angle: \(3, 2\) must be a number or \[low, high\]$"):
        MotionBlur(angle=(3, 2))


def test_a_number_leaves_the_stream_alone_and_a_range_draws_uniformly():
    rng = generator(3)
    assert draw_between((2.0, 2.0), rng) == 2.0
    assert draw_between((-1.0, 3.0), rng) == generator(3).uniform(-1.0, 3.0)


@pytest.mark.parametrize("degrade", [GaussianNoise(5), PoissonGaussianNoise(), Jpeg(), Quantize()])
def test_what_looks_at_a_pixel_or_a_block_alone_asks_for_no_neighbours(degrade):
    assert degrade.margin == 0


def test_a_misspelt_parameter_of_an_option_file_is_a_problem_with_its_near_miss():
    assert not check_block(DEGRADATIONS, {"type": "MotionBlur", "length": [5, 30], "anxiety": 0.005}, ())
    assert "sigma" in str(check_block(DEGRADATIONS, {"type": "GaussianNoise", "sigm": 5}, ("degradations", 0))[0])
    assert check_block(DEGRADATIONS, {"type": "Jpeg", "quality": [10, 20, 30]}, ())


# noise, files


def test_noise_levels_are_drawn_between_both_ends_or_from_the_list():
    flat = torch.full((3, 64, 64), 0.5)
    for degrade, allowed in ((GaussianNoise([5, 40]), None), (GaussianNoise([5, 40], choice=True), (5, 40))):
        levels = [float((degrade(flat, generator(i)) - flat).std()) * 255 for i in range(40)]
        assert 4.7 < min(levels) < 12
        assert 32 < max(levels) < 41.5
        assert allowed is None or all(min(abs(level - a) for a in allowed) < 1.5 for level in levels)


@pytest.mark.parametrize("degrade", [GaussianNoise(51), GaussianNoise([51.0], choice=True), GaussianNoise([51, 51])])
def test_a_sigma_of_51_is_a_fifth_of_white(degrade):
    clean = image()
    n = generator(7).standard_normal((3, 40, 52), dtype=np.float32)
    if degrade._choices:
        stream = generator(7)
        stream.integers(1)  # the choice is drawn before the noise
        n = stream.standard_normal((3, 40, 52), dtype=np.float32)
    np.testing.assert_allclose(degrade(clean, generator(7)) - clean, 0.2 * n, rtol=0, atol=1e-6)


def test_photon_and_read_out_noise_follow_their_formula_value_by_value():
    clean = image() - 0.2
    n = generator(7).standard_normal((3, 40, 52), dtype=np.float32)
    expected = clean.numpy() + np.sqrt(0.02 * np.maximum(clean.numpy(), 0) + 0.2**2) * n
    noisy = PoissonGaussianNoise(gain=0.02, sigma=51.0)(clean, generator(7))
    np.testing.assert_allclose(noisy, expected, rtol=0, atol=1e-6)


def test_photon_noise_has_a_variance_that_grows_with_the_signal():
    degrade = PoissonGaussianNoise(gain=0.01, sigma=5.0)
    for level in (0.0, 0.25, 1.0):
        flat = torch.full((3, 200, 200), level)
        noise = degrade(flat, generator(1)) - flat
        assert abs(float(noise.var()) / (0.01 * level + (5 / 255) ** 2) - 1) < 0.03
        assert abs(float(noise.mean())) < 0.002
    assert degrade(torch.full((1, 9, 9), -0.5), generator(0)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_a_file_of_this_quality_gives_back(channels):
    smooth = convolve(image(channels, 40, 56), np.full((7, 7), 1 / 49, np.float32)) * 2 - 0.5
    stored = to_uint8(smooth)
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    order = [2, 1, 0] if channels == 3 else [0]
    errors = []
    for quality in (10, 50, 95):
        data = cv2.imencode(".jpg", np.ascontiguousarray(stored[:, :, order]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        expected = cv2.imdecode(data, flag).reshape(stored.shape)[:, :, order].transpose(2, 0, 1)
        result = Jpeg(quality)(smooth, generator(0))
        np.testing.assert_array_equal((result * 255).round().numpy(), expected)
        errors.append(float((result - smooth.clamp(0, 1)).abs().mean()))
    assert errors[0] > errors[1] > errors[2]
    assert {float(Jpeg((10, 11))(smooth, generator(i)).sum()) for i in range(20)} == {
        float(Jpeg(q)(smooth, generator(0)).sum()) for q in (10, 11)
    }


def test_a_sensor_of_few_bits_clips_and_rounds():
    values = torch.tensor([[[-0.2, 0.0, 0.2, 0.4, 0.9, 1.3]]])
    assert Quantize(bits=1)(values, generator(0)).flatten().tolist() == [0, 0, 0, 0, 1, 1]
    torch.testing.assert_close(Quantize(2)(values, generator(0)).flatten() * 3, torch.tensor([0.0, 0, 1, 1, 3, 3]))


# blur


@pytest.mark.parametrize("size", [(33, 47), (90, 20), (20, 90)])
def test_convolution_is_the_definition_with_a_mirrored_image(size):
    kernel = generator(3).random((9, 9), dtype=np.float32)
    clean = image(3, *size)
    planes = [cv2.filter2D(p, -1, kernel[::-1, ::-1].copy(), borderType=cv2.BORDER_REFLECT) for p in clean.numpy()]
    torch.testing.assert_close(convolve(clean, kernel), torch.from_numpy(np.stack(planes)), rtol=1e-5, atol=1e-5)
    point = torch.zeros(1, 21, 21)
    point[0, 10, 8] = 1
    torch.testing.assert_close(convolve(point, kernel)[0, 6:15, 4:13], torch.from_numpy(kernel))


def moments(kernel):
    """Mean (y, x) and covariance [[yy, yx], [xy, xx]] of a kernel, from its middle."""
    r = len(kernel) // 2
    places = np.stack(np.mgrid[-r : r + 1, -r : r + 1]).reshape(2, -1).astype(float)
    weights = kernel.reshape(-1).astype(float)
    mean = places @ weights
    return mean, (places - mean[:, None]) * weights @ (places - mean[:, None]).T


@pytest.mark.parametrize("blur", [MotionBlur((0, 60), (0, 0.05)), GaussianBlur((0.1, 6), (0.1, 1))])
def test_kernels_keep_brightness_and_place_and_fit_into_the_margin(blur):
    kernels = [blur.kernel(generator(i)) for i in range(60)]
    for kernel in kernels:
        assert kernel.min() >= 0
        assert abs(kernel.sum(dtype=float) - 1) < 1e-5
        assert len(kernel) // 2 <= blur.margin
        np.testing.assert_allclose(moments(kernel)[0], 0, atol=1e-4)
    assert len({k.tobytes() for k in kernels}) == 60
    flat = torch.full((3, 30, 30), 0.7)
    torch.testing.assert_close(blur(flat, generator(0)), flat, rtol=0, atol=1e-5)
    wide = image(1, 200, 200)
    assert abs(float(blur(wide, generator(1)).mean() - wide.mean())) < 1e-2


@pytest.mark.parametrize("angle", [0, 35, 90, 160])
def test_a_camera_without_anxiety_draws_a_line_of_the_given_length_and_direction(angle):
    _, covariance = moments(MotionBlur(30, 0, angle).kernel(generator(0)))
    values, vectors = np.linalg.eigh(covariance)
    assert abs(values[1] - 30**2 / 12) < 1  # the variance of a uniform line; a pixel's sharing adds up to 1/4
    assert values[0] < 0.3
    direction = math.degrees(math.atan2(vectors[0, 1], vectors[1, 1])) % 180
    assert min(abs(direction - angle), 180 - abs(direction - angle)) < 1


def full_trajectories(anxiety, count, rng, steps=2000, length=60.0):
    """The generator of Boracchi and Foi with the constants of DeblurGAN, all its 2,000 steps, many paths at once."""
    gaussian, inertia, impulse = (rng.random((3, count)).T * (10, 0.7, 0.2)).T
    speed = length / (steps - 1)
    v = np.exp(2j * np.pi * rng.random(count)) * speed
    p, path = np.zeros(count, complex), []
    for _ in range(steps - 1):
        turned = 2 * v * np.exp(1j * (np.pi + rng.random(count) - 0.5)) * (rng.random(count) < impulse * anxiety)
        shake = gaussian * (rng.standard_normal(count) + 1j * rng.standard_normal(count))
        v = v + turned + anxiety * (shake - inertia * p) * speed
        v *= speed / abs(v)
        p = p + v
        path.append(p)
    return np.array(path).T


@pytest.mark.parametrize("anxiety", [0.001, 0.005])
def test_our_shorter_paths_spread_as_those_of_the_full_generator(anxiety):
    full = np.sqrt(full_trajectories(anxiety, 400, generator(0)).var(axis=1))
    blur = MotionBlur(60, anxiety)
    ours = np.sqrt([np.trace(moments(blur.kernel(generator(1, i)))[1]) for i in range(400)])
    for share in (0.25, 0.5, 0.75):
        assert abs(np.quantile(ours, share) / np.quantile(full, share) - 1) < 0.2
    assert np.median(full) < 16.5  # a line of this length spreads by 60 / sqrt(12) = 17.3: the forces do bend


@pytest.mark.parametrize(("anxiety", "angle"), [(0.0, 0.7), (0.005, 0.7), (1.0, -2.0)])
def test_a_path_follows_its_equations_step_by_step(anxiety, angle):
    """The recurrence of the docstring with steps of 1/250, and v of unit length, so p counts in 60 pixels."""
    rng = generator(5)
    gaussian, inertia, impulse = (limit * anxiety * u for limit, u in zip((10, 0.7, 0.2), rng.random(3), strict=True))
    shakes = rng.standard_normal((250, 2))
    chances, turns = rng.random((2, 250))
    v, p, expected = complex(math.cos(angle), math.sin(angle)), 0j, []
    for (x, y), chance, turn in zip(shakes, chances, turns, strict=True):
        force = gaussian * math.sqrt(8) * complex(x, y) - 8 * inertia * 60 * p
        if chance < 8 * impulse:
            force += 2 * v * complex(math.cos(math.pi + turn - 0.5), math.sin(math.pi + turn - 0.5))
        v = (v + force) / abs(v + force)
        p += v / 250
        expected.append(p)
    np.testing.assert_allclose(trajectory(anxiety, angle, generator(5)), expected, rtol=0, atol=1e-9)


def test_a_position_between_pixels_is_shared_by_four_of_them():
    kernel = rasterised(np.array([-0.75 - 0.5j, 0.75 + 0.5j]), 2)  # centred on 0
    expected = np.zeros((5, 5))
    for x, y in ((1.25, 1.5), (2.75, 2.5)):  # from the corner: a quarter beyond column 1, a half beyond row 1
        left, top = int(x), int(y)
        for row, height in ((top, 0.5), (top + 1, 0.5)):
            expected[row, left] += height * (1 - (x - left)) / 2
            expected[row, left + 1] += height * (x - left) / 2
    np.testing.assert_allclose(kernel, expected, atol=1e-7)
    assert kernel.dtype == np.float32


def test_a_turned_grid_has_its_axes_along_and_across():
    along, across = turned_grid(1, math.radians(30))
    c, s = math.sqrt(3) / 2, 0.5
    y, x = np.array([[-1] * 3, [0] * 3, [1] * 3]), np.array([[-1, 0, 1]] * 3)
    np.testing.assert_allclose(along, c * x + s * y, atol=1e-12)
    np.testing.assert_allclose(across, c * y - s * x, atol=1e-12)


def test_kernels_reach_four_standard_deviations_and_half_a_path():
    assert GaussianBlur((0.5, 2.3)).margin == 10  # 9.2
    assert GaussianBlur(2.0).kernel(generator(0)).shape == (17, 17)
    assert MotionBlur((3, 9)).margin == 6  # half of the path is 4.5, and one pixel is for sharing
    assert MotionBlur(8).kernel(generator(0)).shape == (11, 11)


def test_a_gaussian_kernel_is_its_formula():
    kernel = GaussianBlur(1.5, 0.5, 90).kernel(generator(0))
    y, x = np.mgrid[-6:7, -6:7]
    expected = np.exp(-(y**2) / (2 * 1.5**2) - x**2 / (2 * 0.75**2))
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("sigma", "ratio", "angle"), [(2.0, 1.0, 0.0), (3.0, 0.5, 30.0), (4.0, 0.4, 120.0)])
def test_a_gaussian_kernel_has_the_moments_asked_for(sigma, ratio, angle):
    _, covariance = moments(GaussianBlur(sigma, ratio, angle).kernel(generator(0)))
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[s, c], [c, -s]])  # (y, x) of the wider axis and of the narrower
    expected = turn @ np.diag([sigma**2, (ratio * sigma) ** 2]) @ turn.T
    np.testing.assert_allclose(covariance, expected, atol=0.01 * sigma**2)


# rain


def test_rain_is_nothing_without_streaks_and_a_veil_by_its_formula():
    clean = image()
    torch.testing.assert_close(RainStreaks(density=0.0)(clean, generator(0)), clean, rtol=0, atol=1e-6)
    veiled = RainStreaks(density=0.0, veil=0.25, light=0.8)(clean, generator(0))
    torch.testing.assert_close(veiled, 0.75 * clean + 0.2)


def test_streaks_are_grey_brighten_only_and_add_or_screen():
    clean = image(3, 120, 120) * 0.9
    add, screen = (RainStreaks(density=0.01, strength=0.5, blend=b)(clean, generator(4)) for b in ("add", "screen"))
    streaks = add - clean
    assert float(streaks.min()) > -1e-6
    assert 0.3 < float(streaks.max()) <= 0.5 + 1e-6
    torch.testing.assert_close(streaks[0], streaks[2])
    torch.testing.assert_close(1 - screen, (1 - clean) * (1 - streaks))
    assert float(screen.max()) <= 1
    assert float(add.max()) > 1


def test_rain_grows_with_density_layers_and_strength():
    dark = torch.zeros(1, 150, 150)

    def brightness(**arguments):
        return np.mean([float(RainStreaks(**arguments)(dark, generator(i)).mean()) for i in range(4)])

    thin = {"density": 0.001, "length": 20.0, "strength": 0.5, "width": 1.0}
    assert 1.6 < brightness(**thin | {"density": 0.002}) / brightness(**thin) < 2.4
    assert 2.4 < brightness(**thin | {"layers": 3}) / brightness(**thin) < 3.4
    assert 1.9 < brightness(**thin | {"strength": 1.0}) / brightness(**thin) < 2.1
    assert 1.6 < brightness(**thin | {"length": 40.0}) / brightness(**thin) < 2.4


@pytest.mark.parametrize("angle", [-30.0, 0.0, 20.0, 45.0])
def test_streaks_lean_by_their_angle_from_the_vertical(angle):
    rain = RainStreaks(density=0.001, length=60.0, width=4.0, angle=angle, strength=1.0)
    layer = rain.layer((256, 256), generator(2))
    gy, gx = np.gradient(layer)
    tensor = np.array([[(gy * gy).sum(), (gy * gx).sum()], [(gy * gx).sum(), (gx * gx).sum()]])
    dy, dx = np.linalg.eigh(tensor)[1][:, 0]  # the direction of least change
    lean = math.degrees(math.atan2(dx, dy)) % 180
    assert min(abs(lean - angle % 180), 180 - abs(lean - angle % 180)) < 2


def test_streaks_come_in_from_outside_as_often_as_they_begin_inside():
    rain = RainStreaks(density=0.01, length=30.0, angle=10.0, strength=1.0)
    layers = np.mean([rain.layer((60, 60), generator(i)) for i in range(60)], axis=0)
    middle = layers[20:40, 20:40].mean()
    for edge in (layers[:6], layers[-6:], layers[:, :6], layers[:, -6:]):
        assert abs(edge.mean() / middle - 1) < 0.15


# data set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images that tell row and column in two channels; the third is random."""
    root = tmp_path_factory.mktemp("clean")
    y, x = np.mgrid[0:60, 0:76]
    for i, name in enumerate(["a", "b", "c"]):
        noise = np.random.default_rng(i).integers(0, 256, y.shape)
        write_image(root / f"{name}.png", np.stack([y, x, noise], axis=2).astype(np.uint8))
    return root


def degraded(folder, *degradations, **arguments):
    return DegradedImageDataset(dataroot_gt=str(folder), degradations=degradations, **arguments)


FIXED = {
    "gaussian": [GaussianBlur(2.0)],
    "line": [MotionBlur(11, 0, 30)],
    "two": [GaussianBlur(1.5), MotionBlur(9, 0, 120)],
    "pointwise between": [GaussianBlur(1.5), lambda image, rng: image * image, GaussianBlur(1.0, 0.5, 20.0)],
}


@pytest.mark.parametrize("chain", FIXED.values(), ids=FIXED)
@pytest.mark.parametrize("gt_size", [24, 60])
def test_a_degraded_crop_is_the_crop_of_the_degraded_image(folder, chain, gt_size):
    dataset = degraded(folder, *chain, gt_size=gt_size)
    whole = dataset.with_gt_size(None).get(1, generator(0))
    places = set()
    for seed in range(25):
        sample = dataset.get(1, generator(seed))
        top, left = (round(float(v) * 255) for v in sample.gt[:2, 0, 0])
        places.add((top, left))
        for part, full in ((sample.gt, whole.gt), (sample.lq, whole.lq)):
            expected = full[:, top : top + gt_size, left : left + gt_size]
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)
    assert len(places) > 10
    assert {top for top, _ in places} & {0, 1, 2, 33, 34, 35, 36}  # crops at the image's edge were among them


def test_degradations_work_one_after_the_other_and_are_not_clipped(folder):
    double, raised = (lambda image, rng: image * 2), (lambda image, rng: image + 1)
    sample = degraded(folder, double, raised).get(0, generator(0))
    torch.testing.assert_close(sample.lq, sample.gt * 2 + 1)
    other = degraded(folder, raised, double).get(0, generator(0))
    torch.testing.assert_close(other.lq, sample.gt * 2 + 2)
    assert sample.lq.dtype == torch.float32
    assert float(sample.lq.max()) > 1.5


def test_blur_before_noise_leaves_the_noise_sharp(folder):
    sample = degraded(folder, MotionBlur((5, 20)), GaussianNoise(20), gt_size=40).get(2, generator(3))
    blurred = degraded(folder, MotionBlur((5, 20)), gt_size=40).get(2, generator(3))
    noise = sample.lq - blurred.lq
    assert torch.equal(sample.gt, blurred.gt)
    assert abs(float(noise.std()) * 255 - 20) < 1.5
    neighbours = float((noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var())
    assert abs(neighbours) < 0.1


def test_a_fixed_seed_makes_the_degradation_a_function_of_the_key(folder, tmp_path):
    chain = [MotionBlur((5, 20)), RainStreaks(), GaussianNoise([0, 50])]
    (tmp_path / "meta.txt").write_text("b.png (60,76,3)\n")
    full = degraded(folder, *chain, noise_seed=3)
    subset = degraded(folder, *chain, noise_seed=3, meta_info_file=str(tmp_path / "meta.txt"))
    assert torch.equal(full.get(1, generator(0)).lq, subset.get(0, generator(9)).lq)
    for other in (degraded(folder, *chain, noise_seed=4), degraded(folder, *chain)):
        assert not torch.equal(full.get(1, generator(0)).lq, other.get(1, generator(0)).lq)
    free = degraded(folder, *chain)
    assert torch.equal(free.get(1, generator(5)).lq, free.get(1, generator(5)).lq)
    assert not torch.equal(free.get(1, generator(5)).lq, free.get(1, generator(6)).lq)


def test_a_degradation_that_works_in_place_does_not_reach_gt(folder):
    dataset = degraded(folder, lambda image, rng: image.mul_(0), gt_size=16)
    sample = dataset.get(0, generator(0))
    assert float(sample.lq.abs().max()) == 0
    assert float(sample.gt.max()) > 0.1


def test_grey_images_are_degraded_too(folder):
    dataset = degraded(folder, MotionBlur(), RainStreaks(), Jpeg(), channels=1, gt_size=80)
    sample = dataset.get(0, generator(0))
    assert (dataset.channels, sample.lq.shape, sample.gt.shape) == (1, (1, 80, 80), (1, 80, 80))


def test_what_makes_no_data_set_is_named(folder):
    with pytest.raises(ValueError, match="degradations: name at least one"):
        degraded(folder)
    with pytest.raises(ValueError, match="scale: 2"):
        degraded(folder, Jpeg(), scale=2)

    def halved(image, rng):
        return image[:, ::2, ::2]

    with pytest.raises(ValueError, match=r"halved turns \(3, 16, 16\) into \(3, 8, 8\)"):
        degraded(folder, halved, gt_size=16).get(0, generator(0))
