"""scripts/benchmark.py diffusion: the released form does the same work, and a quick run of its contests."""

from __future__ import annotations

import json

import pytest
import torch

import sam4ir.benchmarks.diffusion as contests
from sam4ir.benchmarks.networks import Setting
from sam4ir.cli import benchmark as script

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_released_form_of_the_full_network_has_our_keys():
    options = contests.options_of("full", Setting(CPU), "fp32")
    betas = contests.build_process(options.process).schedule.betas.to("meta")
    with torch.device("meta"):
        ours = contests.network_of(options, torch.device("meta"))
        reference = contests.ReferenceDiffusion(betas)
    assert {k: v.shape for k, v in reference.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}


@pytest.mark.slow
def test_forms_agree_with_the_released_one_before_anything_is_timed():
    setting = Setting(CPU, quick=True, batch=2, reference_bf16=True)
    step, chain = contests.contests(setting)
    names = ["released form, fp32", "ours fp32", "ours bf16"]
    assert [form.name for form in step.forms] == [*names, "released form, bf16"]
    assert [form.name for form in chain.forms] == [*names, "ours bf16, dpm_solver_2m 15"]
    for form in (*step.forms[1:], *chain.forms[1:3]):
        assert form.agreement
        assert all(measured.holds for measured in form.agreement.values()), form.name
    assert set(step.forms[1].agreement) == {"outputs", "gradients", "x_t and target"}


def test_only_the_denoiser_learns_in_the_released_form():
    batch = contests.batch_of(1, 32, CPU)
    options = contests.options_of("tiny", Setting(CPU), "fp32")
    state = contests.network_of(options, CPU).state_dict()
    step = contests.ReferenceStep(contests.reference(options, state, CPU), 1e-3, batch)
    step()
    changed = {name.split(".")[0] for name, p in step.network.state_dict().items() if not torch.equal(p, state[name])}
    assert changed == {"denoise_fn"}


@pytest.mark.slow
def test_a_quick_run_writes_both_contests(tmp_path):
    file = tmp_path / "report.json"
    assert script.main(["diffusion", "--quick", "--json", str(file)]) == 0
    found = [contest["contest"] for contest in json.loads(file.read_text(encoding="utf-8"))["contests"]]
    assert found == ["SAM-DiffSR training step", "SAM-DiffSR sampling chain"]
