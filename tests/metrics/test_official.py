"""The official programs' metric names and every value that those programs gave on the golden pair.

Origin of the values: NAFNet 2b4af71, HINet 4e72315, Restormer df766d5, BasicSR 8d56e3a and SAM-DiffSR a18eaf6 run on
the CPU on (noisy, ref) of tests/golden/golden_metrics.npz, and pyiqa; the two of Restormer's deraining script are of a
transcription of its MATLAB file. `unit` cases were given float images in [0, 1], the others uint8.
"""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4ir.config.signature import block_arguments, check_block
from sam4ir.metrics.official import OFFICIAL, protocol_of
from sam4ir.registry import METRICS


def _parameters(name):
    return inspect.signature(METRICS.get(name)).parameters


PAIR = Path(__file__).parents[1] / "golden" / "golden_metrics.npz"
BORDER, LUMA = {"crop_border": 4}, {"test_y_channel": True}
UINT8, UNIT = 255.0, 1.0

# name, arguments of the option file, range, value; the same three programs give the same values
NAFNET_HINET_RESTORMER = [
    ("calculate_psnr", {}, UINT8, 24.792579148382607),
    ("calculate_ssim", {}, UINT8, 0.7139455080032349),
    ("calculate_psnr", LUMA, UINT8, 29.50899314880371),
    ("calculate_ssim", LUMA, UINT8, 0.7245668946200241),
    ("calculate_psnr", BORDER, UINT8, 24.79424265440145),
    ("calculate_ssim", BORDER, UINT8, 0.7324617505073547),
    ("calculate_psnr", BORDER | LUMA, UINT8, 29.50282096862793),
    ("calculate_ssim", BORDER | LUMA, UINT8, 0.7365379970295354),
    ("calculate_psnr", {}, UNIT, 24.792579290877356),
    ("calculate_ssim", {}, UNIT, 0.7138984203338623),
    ("calculate_ssim", {"ssim3d": False}, UINT8, 0.5793607673480166),
]
BASICSR = [
    ("calculate_psnr", {}, UINT8, 24.792579148382607),
    ("calculate_ssim", {}, UINT8, 0.5793607673480166),
    ("calculate_psnr", LUMA, UINT8, 29.508991703107995),
    ("calculate_ssim", LUMA, UINT8, 0.739324415364557),
    ("calculate_psnr", BORDER, UINT8, 24.79424265440145),
    ("calculate_ssim", BORDER, UINT8, 0.5981552380515133),
    ("calculate_psnr", BORDER | LUMA, UINT8, 29.502819257949042),
    ("calculate_ssim", BORDER | LUMA, UINT8, 0.7533469372421745),
    ("calculate_psnr", {"crop_border": 2, "input_order": "CHW"}, UINT8, 24.79339552634974),
    ("calculate_ssim", {"crop_border": 2, "input_order": "CHW"}, UINT8, 0.5883720816042046),
    ("calculate_psnr", {}, UNIT, 24.792566197804465),
    ("calculate_ssim", {}, UNIT, 0.5793607735129954),
    ("calculate_psnr", LUMA, UNIT, 29.508953197120427),
    ("calculate_ssim", LUMA, UNIT, 0.7393244177106686),
    ("calculate_psnr", BORDER, UNIT, 24.794229680148504),
    ("calculate_ssim", BORDER, UNIT, 0.5981552435455684),
    ("calculate_psnr", BORDER | LUMA, UNIT, 29.502780771627855),
    ("calculate_ssim", BORDER | LUMA, UNIT, 0.7533469354632661),
]
OURS = [
    ("psnr", {}, UINT8, 24.792579148382607),  # Restormer utils.calculate_psnr, SAM-DiffSR measure_psnr
    ("psnr", BORDER, UINT8, 24.79424265440145),  # Restormer utils.calculate_psnr
    ("ssim", {}, UINT8, 0.5793607673480166),  # Restormer utils.calculate_ssim
    ("ssim", BORDER, UINT8, 0.5981552380515133),  # Restormer utils.calculate_ssim
    ("ssim_uniform", {}, UINT8, 0.6033004308761681),  # SAM-DiffSR measure_ssim
    ("psnr_y", {}, UNIT, 29.508953094482422),  # pyiqa psnr with test_y_channel
    ("ssim_y_rounded", {}, UNIT, 0.7388530926872917),  # pyiqa ssim with test_y_channel
    ("psnr_y_rounded", {}, UINT8, 29.497306249197347),  # Restormer Deraining/evaluate_PSNR_SSIM.m
    ("ssim_y_rounded", {}, UINT8, 0.7388525351711445),  # Restormer Deraining/evaluate_PSNR_SSIM.m
]


@pytest.fixture(scope="module")
def pair():
    arrays = np.load(PAIR)
    return tuple(torch.from_numpy(arrays[name].transpose(2, 0, 1).copy()) for name in ("noisy", "ref"))


def value(pair, name, arguments, data_range):
    image, reference = pair if data_range == UINT8 else (x.float() / 255 for x in pair)
    return METRICS.get(name)(image=image, reference=reference, data_range=data_range, **arguments)


@pytest.mark.parametrize(("name", "arguments", "data_range", "expected"), NAFNET_HINET_RESTORMER)
def test_values_of_nafnet_hinet_and_restormer(pair, name, arguments, data_range, expected):
    resolved = protocol_of(name, arguments, basicsr=False)
    assert value(pair, *resolved, data_range) == pytest.approx(expected, abs=1e-4)
    assert value(pair, name, arguments, data_range) == value(pair, *resolved, data_range)


@pytest.mark.parametrize(("name", "arguments", "data_range", "expected"), BASICSR)
def test_values_of_basicsr(pair, name, arguments, data_range, expected):
    resolved = protocol_of(name, arguments, basicsr=True)
    assert value(pair, *resolved, data_range) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("name", "arguments", "data_range", "expected"), OURS)
def test_values_of_scripts_under_our_names(pair, name, arguments, data_range, expected):
    assert value(pair, name, arguments, data_range) == pytest.approx(expected, abs=1e-4)


def test_matlab_values_are_met_to_the_last_digits(pair):
    """The pair holds a pixel, (146, 124, 97), whose luma lies exactly between two levels."""
    assert value(pair, "psnr_y_rounded", {}, UINT8) == pytest.approx(29.497306249197347, abs=1e-12)
    assert value(pair, "ssim_y_rounded", {}, UINT8) == pytest.approx(0.7388525351711445, abs=1e-12)


@pytest.mark.parametrize(
    ("basicsr", "arguments", "psnr", "ssim"),
    [
        (False, {}, "psnr", "ssim3d"),
        (False, {"test_y_channel": True}, "psnr_y", "ssim_y_replicate"),
        (True, {}, "psnr", "ssim"),
        (True, {"test_y_channel": True}, "psnr_y", "ssim_y"),
    ],
)
def test_official_names_stand_for_the_protocol_of_their_code_base(basicsr, arguments, psnr, ssim):
    given = {"crop_border": 3, "better": "higher", "input_order": "HWC", **arguments}
    assert protocol_of("calculate_psnr", given, basicsr=basicsr) == (psnr, {"crop_border": 3})
    assert protocol_of("calculate_ssim", given, basicsr=basicsr) == (ssim, {"crop_border": 3})
    assert protocol_of("calculate_ssim", arguments, basicsr=basicsr) == (ssim, {"crop_border": 0})


def test_ssim3d_false_is_the_2d_window_and_means_nothing_to_luma():
    assert protocol_of("calculate_ssim", {"ssim3d": False}, basicsr=False)[0] == "ssim"
    assert protocol_of("calculate_ssim", {"ssim3d": True}, basicsr=False)[0] == "ssim3d"
    assert protocol_of("calculate_ssim", {"ssim3d": False, **LUMA}, basicsr=False)[0] == "ssim_y_replicate"
    assert protocol_of("calculate_ssim", {"ssim3d": False}, basicsr=True)[0] == "ssim"


def test_basicsr_has_no_ssim3d():
    with pytest.raises(ValueError, match=r"BasicSR's calculate_ssim .* type: ssim3d"):
        protocol_of("calculate_ssim", {"ssim3d": True}, basicsr=True)


@pytest.mark.parametrize("basicsr", [False, True])
def test_our_own_names_are_left_as_they_are(basicsr):
    given = {"crop_border": 5}
    name, arguments = protocol_of("ssim_y_rounded", given, basicsr=basicsr)
    assert (name, arguments) == ("ssim_y_rounded", given)
    assert arguments is not given


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_blocks_pass_the_check_of_option_files(name):
    block = {"crop_border": 0, "test_y_channel": False, "better": "higher", "input_order": "HWC"}
    assert check_block(METRICS, {"type": name, **block}, ("m",)) == []
    assert block_arguments(METRICS, name, block) == block


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"type": "calculate_psnr", "better": "lower"}, "m.better"),
        ({"type": "calculate_psnr", "ssim3d": True}, "m.ssim3d"),
        ({"type": "calculate_ssim", "test_y_chanel": True}, "did you mean 'test_y_channel'"),
        ({"type": "calculate_ssim", "input_order": "BGR"}, "m.input_order"),
        ({"type": "psnr", "test_y_channel": True}, "m.test_y_channel"),
    ],
)
def test_what_the_official_programs_do_not_have_is_an_error(block, problem):
    (found,) = check_block(METRICS, block, ("m",))
    assert problem in str(found)


FUNCTIONS = [name for name in METRICS.names() if not METRICS.handed & {"lq", "state"} & set(_parameters(name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_metric_of_two_images_takes_grey_ones(name):
    a, b = torch.rand(2, 1, 30, 26, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert math.isfinite(METRICS.get(name)(image=a, reference=b, data_range=1.0))
