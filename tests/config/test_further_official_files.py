"""Further official option files: NAFNet's Baseline, BasicSR's RRDBNet and ESRGAN; some are refused by a sentence.

official_further/*.yml have the keys and values of megvii-research/NAFNet and XPixelGroup/BasicSR (options/), written
down here in our own form; esrgan_x4_old_test.yml has the keys of `path` before BasicSR 1.1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam4ir.config.load import OptionsError, dump_options, load_options, notices
from sam4ir.registry import ARCHS

HERE = Path(__file__).parent / "official_further"
FILES = sorted(path for path in HERE.glob("*.yml") if not path.stem.endswith("_refused"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_file_loads_as_it_is_and_its_network_can_be_built(path: Path, tmp_path: Path) -> None:
    options = load_options(path)
    copy = tmp_path / "saved.yml"
    copy.write_text(dump_options(options), encoding="utf-8")
    assert load_options(copy) == options
    assert {notice.split(" has no effect")[0] for notice in notices(options)} <= {"num_gpu", "dist_params"}
    with torch.device("meta"):
        ARCHS.get(options.network_g.type)(**options.network_g.arguments)
    assert bool(options.scored) is path.stem.endswith("_test")
    assert options.path.strict_load_g
    assert (options.path.pretrain_network_g is None) is not path.stem.endswith("_test")


def test_the_model_type_decides_about_metrics_clipping_and_ema() -> None:
    psnr = load_options(HERE / "rrdbnet_psnr_x4.yml")
    assert psnr.train is not None
    assert (psnr.basicsr, psnr.train.use_grad_clip, psnr.ema_warms_up) == (True, False, False)
    baseline = load_options(HERE / "baseline_sidd_width32.yml")
    assert baseline.train is not None
    assert (baseline.basicsr, baseline.train.use_grad_clip) == (False, True)
    assert load_options(HERE / "esrgan_x4_test.yml").basicsr


def test_older_keys_of_basicsr_are_the_newer_ones() -> None:
    assert load_options(HERE / "esrgan_x4_old_test.yml") == load_options(HERE / "esrgan_x4_test.yml")


def test_training_a_gan_is_refused_in_one_sentence_and_restoring_with_its_file_is_not() -> None:
    with pytest.raises(OptionsError, match=r"model_type: ESRGANModel trains .*\(GAN\), which sam4ir does not") as error:
        load_options(HERE / "esrgan_x4_refused.yml")
    assert len(error.value.problems) == 1
    assert load_options(HERE / "esrgan_x4_refused.yml", training=False).network_g.type == "RRDBNet"


def test_stereo_networks_are_refused_as_such() -> None:
    with pytest.raises(OptionsError) as error:
        load_options(HERE / "nafssr_x4_refused.yml")
    assert [problem.path for problem in error.value.problems] == [("datasets", "test0", "type"), ("network_g", "type")]
    assert all("stereo super-resolution" in problem.message for problem in error.value.problems)
