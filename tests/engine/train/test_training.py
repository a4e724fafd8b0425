"""Whole runs in this process: what a checkpoint, an interruption, a bad batch and a second start do."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import World

from sam4ir.config.load import load_options
from sam4ir.data.loader import eval_samples
from sam4ir.engine.build import BuildError
from sam4ir.engine.evaluate.result_folder import ResultsExistError
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.evaluate.validate import Outputs
from sam4ir.engine.interrupt import Interrupted
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer
from sam4ir.engine.train.checkpoint import CheckpointError, save_tensors
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.resume import RunExistsError
from sam4ir.engine.train.step_log import NonFiniteError
from sam4ir.engine.weights import WeightsFileError
from sam4ir.errors import UserError


def run(world: World, sam: bool, *overrides: str, resume: bool = False) -> Path:
    """Train by the small option file; returns the run's folder."""
    trainer = Trainer(world.options(sam, overrides), resume)
    trainer.run()
    return trainer.paths.run


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same(a: object, b: object) -> bool:
    """Equality to the last bit, through dictionaries and lists."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a: Path, b: Path, iteration: int) -> None:
    """Weights, EMA, optimiser state, progress, logged losses and validation of two runs are equal bit for bit."""
    files = sorted((a / "models").glob(f"net_?_{iteration}.pth"))
    assert files
    for file in files:
        assert same(torch.load(file, weights_only=True), torch.load(b / "models" / file.name, weights_only=True)), file
    states = [torch.load(r / "training_states" / f"{iteration}.state", weights_only=True) for r in (a, b)]
    for state in states:
        state.pop("options")  # the names of the runs differ
    assert same(*states)
    assert records(a) == records(b)
    assert (a / "validation.csv").read_text() == (b / "validation.csv").read_text()


@pytest.mark.parametrize("sam", [False, True])
def test_the_loss_falls_and_a_resumed_run_equals_an_uninterrupted_one(world: World, sam: bool) -> None:
    straight = run(world, sam, "name=straight")
    losses = [r["l_pix"] for r in records(straight) if "l_pix" in r]
    assert sum(losses[-3:]) < sum(losses[:3])
    trainer = Trainer(world.options(sam, ("name=stopped",)), resume=False)
    trainer.signals.received = signal.SIGTERM  # arrives before the first step ends
    with pytest.raises(Interrupted):
        trainer.run()
    for at in (4, 6):
        stop_after(world, sam, at)
    resumed = run(world, sam, "name=stopped", resume=True)
    assert_same_run(straight, resumed, 8)


def stop_after(world: World, sam: bool, iteration: int) -> None:
    """Go on with the run `stopped` and let SIGTERM arrive after an iteration."""
    interrupt_after(Trainer(world.options(sam, ("name=stopped",)), resume=True), iteration)


def interrupt_after(trainer: Trainer, iteration: int) -> None:
    """Train, and let SIGTERM arrive after an iteration."""
    record = trainer.step_log.record

    def recorded(*arguments) -> None:
        record(*arguments)
        if trainer.progress.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.step_log.record = recorded  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stop:
        trainer.run()
    assert stop.value.exit_code == 128 + signal.SIGTERM


def test_a_stop_in_the_middle_of_validation_validates_again_after_the_resume(world: World) -> None:
    straight = run(world, False, "name=straight")
    trainer = Trainer(world.options(False, ("name=stopped",)), resume=False)
    number, calls = trainer.signals.number, []

    def asked() -> int:
        calls.append(1)
        if len(calls) == 5:  # three steps ask once each, so this is between two images
            os.kill(os.getpid(), signal.SIGTERM)
        return number()

    trainer.signals.number = asked  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        trainer.run()
    assert trainer.progress.iteration == 4
    assert_same_run(straight, run(world, False, "name=stopped", resume=True), 8)


@pytest.mark.slow
def test_workers_do_not_change_the_run(world: World) -> None:
    here = run(world, True, "name=workers_0", "train:total_iter=4")
    there = run(world, True, "name=workers_2", "train:total_iter=4", "datasets:train:num_worker_per_gpu=2")
    assert_same_run(here, there, 4)


def test_zero_weights_are_plain_training_bit_for_bit(world: World) -> None:
    plain = run(world, False, "name=plain", "train:ema_warmup=true")  # as for SAM4IRModel
    zero = run(
        world, True, "name=zero", "train:spd_opt={loss_weight: 0}", "train:sgr_opt={balance: 0, weights: random}"
    )
    weights = [torch.load(r / "models" / "net_g_8.pth", weights_only=True) for r in (plain, zero)]
    assert same(*weights)
    taught = run(world, True, "name=taught")
    assert not same(weights[0], torch.load(taught / "models" / "net_g_8.pth", weights_only=True))


def test_accumulation_equals_the_large_batch(world: World) -> None:
    large = run(world, True, "name=large", "datasets:train:batch_size_per_gpu=4", "train:total_iter=2")
    small = run(world, True, "name=small_batches", "train:total_batch=4", "train:total_iter=2")
    a, b = (torch.load(r / "models" / "net_g_2.pth", weights_only=True)["params"] for r in (large, small))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)
    assert records(large)[0]["l_pix"] == pytest.approx(records(small)[0]["l_pix"], rel=1e-5)


@pytest.mark.parametrize("sam", [False, True])
def test_bf16_training_stays_finite_and_close_to_fp32(world: World, sam: bool) -> None:
    full, half = (run(world, sam, f"name={p}", f"precision={p}", "train:total_iter=4") for p in ("fp32", "bf16"))
    a, b = ([r["l_pix"] for r in records(x) if "l_pix" in r] for x in (full, half))
    assert a == pytest.approx(b, abs=0.5)
    assert (
        torch.load(half / "models" / "net_g_4.pth", weights_only=True)["params"]["intro.weight"].dtype == torch.float32
    )


@pytest.mark.slow
def test_two_phases_train_the_refiner_and_then_the_student(world: World) -> None:
    first = run(world, False, "name=first")
    pretrained = f"path:pretrain_network_g={first / 'models' / 'net_g_8.pth'}"
    phases = "train:distill={schedule: two_phase, refine_iter: 4, init_refiner: student}"
    folder = run(world, True, "name=phases", pretrained, phases, "train:ema_decay=0", "logger:save_checkpoint_freq=2")
    g, r = (
        [torch.load(folder / "models" / f"net_{n}_{i}.pth", weights_only=True)["params"] for i in (2, 4, 6)]
        for n in "gr"
    )
    assert same(g[0], g[1])
    assert not same(g[1], g[2])
    assert not same(r[0], r[1])
    assert same(r[1], r[2])
    terms = {r["iter"]: set(r) for r in records(folder) if any(k.startswith("l_") for k in r)}
    assert "l_refine" in terms[4]
    assert "l_pix" not in terms[4]
    assert {"l_pix", "l_spd", "l_sgr"} <= terms[5]
    assert "l_refine" not in terms[5]


def test_a_loss_that_is_not_finite_skips_the_step_and_names_the_images(world: World) -> None:
    trainer = Trainer(world.options(False, ("name=nan", "train:max_nonfinite=3")), resume=False)
    losses = trainer.parts.model.losses

    def poisoned(batch, iteration, measure):
        terms, measures = losses(batch, iteration, measure)
        terms["pix"] = terms["pix"] * (float("nan") if iteration in {2, 5, 6, 7} else 1.0)
        return terms, measures

    trainer.parts.model.losses = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match="3 times in a row up to iteration 7"):
        trainer.run()
    skipped = [r for r in records(trainer.paths.run) if r.get("skipped")]
    assert [r["iter"] for r in skipped] == [2, 5, 6, 7]
    assert all(name.startswith("photo_") for r in skipped for name in r["images"])
    state = torch.load(trainer.paths.state(4), weights_only=True)
    assert state["progress"]["skipped"] == 1
    assert all(p.isfinite().all() for p in trainer.parts.model.networks["g"].parameters())


def test_a_fresh_start_into_a_run_changes_nothing_and_says_how_to_go_on(world: World) -> None:
    folder = run(world, False, "train:total_iter=4")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunExistsError, match=r"(?s)iteration 4.*--auto_resume.*name=small_2"):
        Trainer(world.options(False), resume=False)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_logs_of_a_start_without_checkpoint_are_kept(world: World) -> None:
    trainer = Trainer(world.options(False), resume=False)
    trainer.journal.write(1, {"l_pix": 1.0})
    trainer.close()
    again = Trainer(world.options(False), resume=False)
    again.close()
    assert json.loads((again.paths.run / "log.jsonl.1").read_text())["l_pix"] == 1.0


def test_two_processes_cannot_train_one_run(world: World) -> None:
    trainer = Trainer(world.options(False), resume=False)
    with pytest.raises(RunExistsError, match="another process is training this run"):
        Trainer(world.options(False), resume=True)
    trainer.close()


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(world: World, capsys) -> None:
    folder = run(world, False)
    state = folder / "training_states" / "8.state"
    state.write_bytes(state.read_bytes()[:1000])
    trainer = Trainer(world.options(False), resume=True)
    assert trainer.progress.iteration == 4
    assert "8.state" in capsys.readouterr().out
    trainer.close()
    (folder / "models" / ".net_g_8.pth.17.part").write_bytes(b"half")  # what kill -9 leaves is swept
    Trainer(world.options(False), resume=True).close()
    assert not list(folder.rglob("*.part"))
    (folder / "training_states" / "4.state").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints"):
        Trainer(world.options(False), resume=True)


def test_resuming_with_another_network_is_one_clear_message(world: World) -> None:
    run(world, False, "train:total_iter=4")
    with pytest.raises(CheckpointError, match=r"4.state: belongs to another network"):
        Trainer(world.options(False, ("network_g:width=8",)), resume=True)


def test_checkpoints_hold_tensors_and_plain_values_in_basicsr_layout(world: World) -> None:
    folder = run(world, True, "train:total_iter=4")
    for label in "gr":
        weights = torch.load(folder / "models" / f"net_{label}_4.pth", weights_only=True)
        assert set(weights) == {"params", "params_ema", "run"}
        assert weights["run"] == {"iteration": 4}
    assert load_options(folder / "options.yml").train == world.options(True, ("train:total_iter=4",)).train
    assert (folder / "models" / "net_g_latest.pth").read_bytes() == (folder / "models" / "net_g_4.pth").read_bytes()


def test_validation_scores_input_student_and_refiner_and_test_repeats_its_numbers(world: World) -> None:
    folder = run(world, True)
    with (folder / "validation.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["iter"] == "8"]
    assert {r["stage"] for r in rows} == {"input", "restored", "refined"}
    values = world.values(False, name="tested")
    values["datasets"] = {"test": {**values["datasets"]["val"]}}
    values["path"]["pretrain_network_g"] = str(folder / "models" / "net_g_latest.pth")
    table = score_network(load_options(world.write(values)))
    assert "restored" in table
    summary = json.loads((world.root / "results" / "tested" / "summary.json").read_text())
    for row in rows:
        if row["stage"] != "refined":
            tested = summary["images"]["small_val"][row["image"]][row["stage"]]
            assert tested == {"psnr": float(row["psnr"]), "ssim": float(row["ssim"])}


def test_results_of_other_options_are_not_overwritten(world: World) -> None:
    folder = run(world, False, "train:total_iter=4")
    values = world.values(False, name="tested")
    values["datasets"] = {"test": {**values["datasets"]["val"]}}
    values["path"]["pretrain_network_g"] = str(folder / "models" / "net_g_4.pth")
    options = world.write(values)
    score_network(load_options(options))
    score_network(load_options(options))  # the same again is no loss
    with pytest.raises(ResultsExistError, match="--overwrite"):
        score_network(load_options(options, ["datasets:test:sigma_range=25"]))
    score_network(load_options(options, ["datasets:test:sigma_range=25"]), overwrite=True)


def test_hinet_with_its_list_of_outputs_trains_with_sam4ir(world: World) -> None:
    network = "network_g={type: HINet, wf: 4, depth: 2, hin_position_left: 0, hin_position_right: 1}"
    folder = run(world, True, network, "train:total_iter=4")
    assert all(r["l_pix"] < 0 for r in records(folder) if "l_pix" in r)


def test_masks_of_another_image_set_are_an_error_that_names_store_and_image(world: World) -> None:
    (world.root / "gt" / "photo_0.png").rename(world.root / "gt" / "other.png")
    with pytest.raises(ValueError, match=r"masks.lmdb.*'other'|other.*masks.lmdb"):
        run(world, True)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("datasets:train:dataroot_gt=/nowhere", BuildError, r"datasets.train: .*nowhere"),
        ("datasets:train:masks:store=/nowhere.lmdb", BuildError, r"datasets.train.masks.store: /nowhere.lmdb"),
        ("path:pretrain_network_g=/nowhere.pth", BuildError, r"path.pretrain_network_g: /nowhere.pth: no such"),
        ("network_g:width=-3", BuildError, r"network_g"),
        ("path:resume_state=/nowhere.state", WeightsFileError, r"/nowhere.state: no such"),
    ],
)
def test_what_options_cannot_tell_is_one_message_that_names_the_key(world: World, override, error, message) -> None:
    with pytest.raises(error, match=message):
        run(world, True, override)


def stopped(world: World, *overrides: str, sam: bool = False, error: type[Exception]) -> str:
    """The message that a run ends with."""
    with pytest.raises(error) as caught:
        run(world, sam, *overrides)
    return str(caught.value)


def test_two_phases_with_warm_up_begin_each_phase_at_a_small_rate(world: World) -> None:
    first = run(world, False, "name=first", "train:total_iter=2")
    pretrained = f"path:pretrain_network_g={first / 'models' / 'net_g_2.pth'}"
    options = world.options(
        True, (pretrained, "train:distill={schedule: two_phase, refine_iter: 4}", "train:warmup_iter=4")
    )
    trainer = Trainer(options, resume=False)
    trainer.run()
    rates = trainer.parts.optimisers
    assert rates["r"].rate(1) == rates["g"].rate(5) == pytest.approx(2e-3 / 4)


def test_a_resume_with_another_batch_size_trains_to_the_end(world: World) -> None:
    run(world, False, "train:total_iter=4", "datasets:train:batch_size_per_gpu=4")
    folder = run(world, False, "train:total_iter=7", resume=True)
    assert [r["iter"] for r in records(folder) if "l_pix" in r] == list(range(1, 8))


def test_resume_state_of_another_run_does_not_touch_a_run_that_is_there(world: World) -> None:
    other = run(world, False, "name=other", "train:total_iter=4")
    mine = run(world, False, "name=mine", "train:total_iter=4")
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    state = f"path:resume_state={other / 'training_states' / '4.state'}"
    assert "mine: holds a run" in stopped(world, "name=mine", state, error=RunExistsError)
    assert before == {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    branch = run(world, False, "name=branch", state)
    assert records(branch)[0]["iter"] == 5
    trainer = Trainer(world.options(False, ("name=branch", state)), resume=True)  # a restart goes on where it was
    assert trainer.progress.iteration == 8
    trainer.close()


def test_an_error_in_validation_loses_no_training(world: World) -> None:
    assert "30" in stopped(world, "val:metrics:psnr:crop_border=30", error=ValueError)
    folder = world.root / "experiments" / "small"
    assert (folder / "training_states" / "4.state").exists()
    assert records(run(world, False, resume=True))[-1]["iter"] == 8


@pytest.mark.slow
def test_memory_that_runs_out_in_validation_loses_no_training_and_names_the_tiles(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as without_memory:
        without_memory.setattr(PlainRestorer, "__call__", full)
        message = stopped(world, error=ValueError)
    assert "validation set small_val: " in message
    assert "val.grids: true and val.crop_size" in message
    assert (world.root / "experiments" / "small" / "training_states" / "4.state").exists()
    assert records(run(world, False, resume=True))[-1]["iter"] == 8


def test_what_changed_since_the_checkpoint_is_said_and_holds(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run(world, False, "train:total_iter=4")
    trainer = Trainer(world.options(False, ("train:optim_g:weight_decay=0.5",)), resume=True)
    out = capsys.readouterr().out
    assert "train.optim_g.weight_decay: None, now 0.5" in out
    assert "train.total_iter: 4, now 8" in out
    assert trainer.parts.optimisers["g"].inner.param_groups[0]["weight_decay"] == 0.5
    trainer.close()


def test_a_run_that_is_further_than_total_iter_says_so(world: World) -> None:
    run(world, False)
    with pytest.raises(CheckpointError, match=r"is at iteration 8 already; train.total_iter is 6"):
        run(world, False, "train:total_iter=6", resume=True)


def test_other_metrics_after_a_resume_begin_another_table(world: World) -> None:
    run(world, False, "train:total_iter=4")
    folder = run(world, False, "val:metrics={luma: {type: psnr_y}}", resume=True)
    assert (folder / "validation.csv.1").read_text().startswith("iter,dataset,stage,image,psnr,ssim")
    assert (folder / "validation.csv").read_text().startswith("iter,dataset,stage,image,luma")


def test_masks_of_another_source_than_asked_for_are_refused(world: World) -> None:
    message = stopped(world, "datasets:train:masks:source=lq", sam=True, error=BuildError)
    assert "made of gt images; masks.source asks for lq" in message


def test_pairs_that_do_not_match_are_listed_with_the_template_that_would(world: World) -> None:
    for i in range(5):
        target = world.root / "lq" / f"photo_{i}_blur.png"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((world.root / "gt" / f"photo_{i}.png").read_bytes())
    paired = (
        f"{{type: PairedImageDataset, dataroot_gt: {world.root / 'gt'}, dataroot_lq: {world.root / 'lq'}, gt_size: 24}}"
    )
    message = stopped(world, f"datasets:train={paired}", error=BuildError)
    assert message.startswith("datasets.train: ")
    assert "photo_3" in message
    assert "filename_tmpl: '{}_blur'" in message


def test_a_network_that_does_not_fit_the_images_is_named(world: World) -> None:
    assert stopped(world, "network_g:img_channel=1", error=BuildError).startswith("network_g: ")


def test_a_disk_that_takes_no_more_leaves_what_was_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    trainer = Trainer(world.options(False), resume=False)
    step = trainer.milestones.reach

    def fills_at_eight() -> None:
        if trainer.progress.iteration == 8:
            monkeypatch.setattr(torch, "save", full)
        step()

    trainer.milestones.reach = fills_at_eight  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r"net_g_8.pth: cannot be written"):
        trainer.run()
    assert not list(trainer.paths.run.rglob("*.part"))
    assert trainer.paths.saved_iterations() == [4]


def test_networks_are_scored_in_eval_mode_and_left_as_they_were(world: World) -> None:
    """Without EMA the raw refiner is scored: its mask drop-out must not take part."""
    overrides = ("train:ema_decay=0", "spf={type: SPF, width: 4, mask_dropout: 0.9}", "name=scored")
    trainer = Trainer(world.options(True, overrides), resume=False)
    refiner = trainer.parts.model.networks["r"]
    torch.nn.init.normal_(refiner.spf.out.weight)
    refiner.network.eval()  # a module that was in eval mode stays in it
    outputs = Outputs(PlainRestorer(trainer.parts.model.networks["g"], Inference()), trainer.device, refiner)
    (sample,) = list(eval_samples(trainer.sets.val["small_val"], 0))[:1]
    first, second = outputs(sample), outputs(sample)
    assert torch.equal(first["refined"], second["refined"])
    assert refiner.spf.training
    assert not refiner.network.training
    trainer.close()


@pytest.mark.parametrize("key", ["scheduler", "scheduler_r"])
def test_a_schedule_that_cannot_be_is_named_by_its_key(world: World, key: str) -> None:
    wrong = f"train:{key}={{type: TrueCosineAnnealingLR, T_max: 0}}"
    assert stopped(world, wrong, sam=True, error=BuildError).startswith(f"train.{key}: ")


def test_a_file_that_torch_cannot_write_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: object, path: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"net\.pth: cannot be written"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "net.pth")
    with pytest.raises(OSError, match="cannot be written"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("model_type", "key", "warms_up"),
    [
        ("ImageRestorationModel", None, False),
        ("ImageCleanModel", None, False),
        ("SRModel", None, False),
        ("ImageRestorationModel", True, True),
        (None, None, True),
        (None, False, False),
    ],
)
def test_the_average_is_that_of_the_files_code_base(
    world: World, model_type: str | None, key: bool | None, warms_up: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    values = world.values()
    values["model_type"] = model_type
    if model_type is None:
        del values["model_type"]
    if key is not None:
        values["train"]["ema_warmup"] = key
    trainer = Trainer(load_options(world.write(values)), resume=False)
    ema = trainer.parts.emas["g"]
    expected = [p.detach().clone() for p in ema.source.parameters()]
    for k in range(3):
        with torch.no_grad():
            for p in ema.source.parameters():
                p += 0.1
        ema.update()
        d = min(0.9, (1 + k) / (10 + k)) if warms_up else 0.9
        expected = [d * e + (1 - d) * p.detach() for e, p in zip(expected, ema.source.parameters(), strict=True)]
    trainer.close()
    torch.testing.assert_close([p.detach() for p in ema.module.parameters()], expected)
    assert (
        f"(EMA): decay 0.9, {'which it rises to' if warms_up else 'constant as in BasicSR'}" in capsys.readouterr().out
    )


def test_a_run_of_a_version_without_the_key_keeps_the_average_that_it_began_with(world: World) -> None:
    straight = run(world, False, "name=straight", "train:ema_warmup=true")
    trainer = Trainer(world.options(False, ("name=stopped", "train:ema_warmup=true")), resume=False)
    interrupt_after(trainer, 4)
    state_file = trainer.paths.state(4)
    state = torch.load(state_file, weights_only=True)
    assert "  ema_warmup: true\n" in state["options"]
    state["options"] = state["options"].replace("  ema_warmup: true\n", "")
    save_tensors(state, state_file)
    interrupt_after(Trainer(world.options(False, ("name=stopped",)), resume=True), 6)
    resumed = run(world, False, "name=stopped", resume=True)
    assert_same_run(straight, resumed, 8)


def test_a_first_phase_as_long_as_the_run_leaves_the_student_as_it_was(world: World) -> None:
    plain = Trainer(world.options(False), False)
    plain.run()
    weights = plain.paths.network("g", "latest")
    phases = "train:distill={schedule: two_phase, refine_iter: 8}"
    trainer = Trainer(world.options(True, ("name=frozen", f"path:pretrain_network_g={weights}", phases)), False)
    before = {name: value.clone() for name, value in trainer.parts.model.networks["r"].state_dict().items()}
    trainer.run()
    student = torch.load(trainer.paths.network("g", "latest"), weights_only=True)
    for entry in ("params", "params_ema"):
        for name, value in torch.load(weights, weights_only=True)["params_ema"].items():
            assert torch.equal(student[entry][name], value)
    after = trainer.parts.model.networks["r"].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_refiner_may_see_segments_of_the_students_output_without_a_store(world: World) -> None:
    values = world.values(sam=True)
    for block in values["datasets"].values():
        del block["masks"]
    values["train"]["distill"]["masks"] = "own"
    trainer = Trainer(load_options(world.write(values)), False)
    trainer.run()
    seen = records(trainer.paths.run)
    assert any("l_spd" in record for record in seen)
    assert any("metrics/small_val/psnr_refiner" in record for record in seen)
    resumed = Trainer(load_options(world.write(values)), True)
    assert resumed.progress.iteration == 8
