"""The training loop. It sums the model's named terms and knows none of them by name."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sam4ir.config.load import changes, dump_options, notices
from sam4ir.config.schema import Options
from sam4ir.data.loader import train_batches
from sam4ir.data.sample import Batch
from sam4ir.engine import build, build_train, checkpoint
from sam4ir.engine.checkpoint import Progress, Trained
from sam4ir.engine.log import CsvTable, JsonLines, Pace, console, message, scalars, set_aside
from sam4ir.engine.report import Score, means
from sam4ir.engine.validate import Stages, evaluate
from sam4ir.utils.files import write_text
from sam4ir.utils.rng import seed_defaults


class NonFiniteError(ValueError):
    """Training that does not recover from losses that are not finite."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived; carries the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Signals:
    """Remembers SIGTERM and SIGINT until the loop asks; a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.received is not None:
            raise Interrupted(self.received)


class Step:
    """One optimiser step: micro-batches in, named values out.

    accumulate: micro-batches a step; each loss is their mean, so gradients equal those of one large batch.
    bf16: forward passes run under autocast; weights, gradients and losses stay fp32.
    """

    def __init__(self, trained: Trained, device: torch.device, accumulate: int, bf16: bool) -> None:
        self.trained = trained
        self.device = device
        self.accumulate = accumulate
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)

    def __call__(self, batches: Sequence[Batch], iteration: int, measure: bool) -> tuple[dict[str, float], bool]:
        """(mean of each term and measure, whether the step was taken); a step that is not finite changes nothing."""
        totals: dict[str, float] = {}
        for batch in batches:
            on_device = batch.to(self.device, non_blocking=True)
            on_device.lq = on_device.lq.contiguous(memory_format=torch.channels_last)
            with self.autocast:
                terms, measures = self.trained.model.losses(on_device, iteration, measure)
            loss = torch.stack(list(terms.values())).sum() / self.accumulate
            loss.backward()
            values = torch.stack([t.detach().float() for t in terms.values()]).tolist()  # one transfer for all terms
            named = {f"l_{name}": value for name, value in zip(terms, values, strict=True)} | measures
            for name, value in named.items():
                totals[name] = totals.get(name, 0.0) + value / self.accumulate
        return totals, self._update(iteration, totals)

    def _update(self, iteration: int, totals: Mapping[str, float]) -> bool:
        active = self.trained.model.active(iteration)
        norms = [self.trained.optimisers[label].gradient_norm() for label in active]
        finite = all(math.isfinite(v) for k, v in totals.items() if k.startswith("l_"))
        finite = finite and bool(torch.stack([n.isfinite() for n in norms]).all())
        if finite:
            for label in active:
                self.trained.optimisers[label].step(iteration)
                self.trained.emas[label].update()
        for optimiser in self.trained.optimisers.values():
            optimiser.zero_grad()
        return finite


class Trainer:
    """A training run from its options: data, parts, logs, checkpoints."""

    def __init__(self, options: Options, resume: bool) -> None:
        assert options.train is not None
        self.options = options
        self.recipe = options.train
        self.paths = build.run_paths(options)
        self.device = build.device_of(options)
        if options.deterministic:
            build.make_deterministic()
        if not resume:
            checkpoint.refuse_overwrite(self.paths, options.path.resume_state)
        seed_defaults(options.manual_seed)
        self.sets = build_train.data_sets(options)
        self.trained = build_train.trained(options, self.device)
        self.metrics = build.metrics(options.val)
        self.lock = checkpoint.lock_run(self.paths)
        self.log: logging.Logger = console(self.paths.run / f"train_{options.name}.log")
        self.progress = self._begin(resume)
        self.text = dump_options(options)
        write_text(self.paths.run / "options.yml", self.text)
        self.json = JsonLines(self.paths.run / "log.jsonl", self.progress.iteration)
        columns = ["dataset", "stage", "image", *self.metrics]
        self.csv = CsvTable(self.paths.run / "validation.csv", columns, self.progress.validated)
        self.scalars = scalars(
            self.paths.tensorboard if options.logger.use_tb_logger else None, self.progress.iteration
        )
        self.accumulate = build_train.accumulation(options, self.sets.loader)
        self.step = Step(self.trained, self.device, self.accumulate, options.precision == "bf16")
        self.signals = Signals()

    def _begin(self, resume: bool) -> Progress:
        for notice in notices(self.options):
            self.log.warning(notice)
        found = checkpoint.find_resume(self.paths, self.trained, self.log) if resume else None
        if found is None and self.options.path.resume_state:
            found = checkpoint.load(Path(self.options.path.resume_state), self.trained)
        if found is not None:
            progress, earlier = found
            self.log.info("Resuming %s from iteration %d.", self.options.name, progress.iteration)
            for change in changes(earlier, self.options):
                self.log.warning("Changed since the checkpoint: %s", change)
            if progress.iteration > self.recipe.total_iter:
                raise checkpoint.CheckpointError(
                    f"{self.paths.run}: is at iteration {progress.iteration} already; train.total_iter is "
                    f"{self.recipe.total_iter}. Raise it, or give another name for a shorter run"
                )
            return progress
        for name in ("log.jsonl", "validation.csv"):
            if kept := set_aside(self.paths.run / name):
                self.log.info("An earlier start left %s without a checkpoint; it is kept as %s.", name, kept.name)
        self.log.info("Starting %s in %s on %s.", self.options.name, self.paths.run, self.device)
        return Progress()

    def run(self) -> None:
        """Train to the end. Raises Interrupted after a checkpoint was saved on SIGTERM or Ctrl-C."""
        with self.signals:
            try:
                self._train()
            except Interrupted as stop:
                self._save()
                self.log.info("Stopped by %s at iteration %d; go on with --auto_resume.", stop, self.progress.iteration)
                raise
            except (ValueError, OSError):
                self._rescue()
                raise
            finally:
                self.json.close()
                self.csv.close()
                self.scalars.close()
                self.lock.release()

    def _rescue(self) -> None:
        """Save what has been trained before an error of data or disk ends the run."""
        if self.progress.iteration not in {0, *self.paths.saved_iterations()}:
            try:
                self._save()
            except OSError as error:
                self.log.error("%s", error)

    def _train(self) -> None:
        progress, total = self.progress, self.recipe.total_iter
        if self._validation_due() and progress.validated < progress.iteration:
            self._validate()  # the run was stopped in the middle of it
        pace = Pace(progress.iteration, total)
        batches = self._batches()
        while progress.iteration < total:
            begun = time.perf_counter()
            micro = [next(batches) for _ in range(self.accumulate)]
            loaded = time.perf_counter()
            iteration = progress.iteration + 1
            values, taken = self.step(micro, iteration, iteration % self.options.logger.print_freq == 0)
            progress.iteration = iteration
            progress.sample += sum(len(b.keys) for b in micro)
            self._record(values, taken, micro)
            if iteration % self.options.logger.print_freq == 0:
                self._print(values, pace, (time.perf_counter() - begun, loaded - begun))
            self._milestones()
            self.signals.check()
        checkpoint.publish_latest(self.paths, self.trained, total)
        self.log.info("Done: %s is trained; its weights are %s.", self.options.name, self.paths.network("g", "latest"))

    def _batches(self) -> Iterator[Batch]:
        loader = self.sets.loader
        left = self.recipe.total_iter - self.progress.iteration
        pin = loader.pin_memory if loader.pin_memory is not None else True
        return train_batches(
            self.sets.train,
            seed=self.options.manual_seed,
            batch_size=loader.batch_size_per_gpu,
            start_sample=self.progress.sample,
            total_samples=self.progress.sample + left * self.accumulate * loader.batch_size_per_gpu,
            num_workers=build_train.worker_count(loader),
            pin_memory=pin and self.device.type == "cuda",
            shuffle=loader.use_shuffle,
            enlarge=loader.dataset_enlarge_ratio,
        )

    def _record(self, values: Mapping[str, float], taken: bool, micro: Sequence[Batch]) -> None:
        """JSON line of the iteration; counts and names what was skipped."""
        progress = self.progress
        record: dict[str, Any] = {
            "iter": progress.iteration,
            **{k: v if math.isfinite(v) else str(v) for k, v in values.items()},
        }
        progress.skipped_in_a_row = 0 if taken else progress.skipped_in_a_row + 1
        if not taken:
            progress.skipped += 1
            record |= {"skipped": True, "images": [key for batch in micro for key in batch.keys]}
            self.log.warning(
                "Iteration %d: loss or gradient is not finite; step skipped. Images: %s",
                progress.iteration,
                ", ".join(record["images"]),
            )
        self.json.write(record)
        if progress.skipped_in_a_row >= self.recipe.max_nonfinite:
            raise NonFiniteError(
                f"{self.options.name}: loss or gradient not finite {progress.skipped_in_a_row} times in a row up to "
                f"iteration {progress.iteration}; the images are named in {self.paths.run / 'log.jsonl'}. "
                "Lower the learning rate, or look at the data"
            )

    def _print(self, values: Mapping[str, float], pace: Pace, times: tuple[float, float]) -> None:
        progress = self.progress
        eta, _ = pace.line(progress.iteration)
        rates = [
            self.trained.optimisers[n].rate(progress.iteration) for n in self.trained.model.active(progress.iteration)
        ]
        epoch = progress.sample // max(len(self.sets.train) * self.sets.loader.dataset_enlarge_ratio, 1)
        self.log.info(message(self.options.name, epoch, progress.iteration, rates, eta, times, values))
        for name, value in values.items():
            self.scalars.add_scalar(f"losses/{name}" if name.startswith("l_") else name, value, progress.iteration)
        self.scalars.add_scalar("lr", rates[0], progress.iteration)

    def _validation_due(self) -> bool:
        val, iteration = self.options.val, self.progress.iteration
        if val is None or val.val_freq is None or not self.sets.val or iteration == 0:
            return False
        return iteration % val.val_freq == 0 or iteration == self.recipe.total_iter

    def _milestones(self) -> None:
        """Validation and checkpoint where this iteration is due for them; the checkpoint holds the best records."""
        iteration = self.progress.iteration
        if self._validation_due():
            self._validate()
        if iteration % self.options.logger.save_checkpoint_freq == 0 or iteration == self.recipe.total_iter:
            self._save()

    def _save(self) -> None:
        checkpoint.save(self.paths, self.trained, self.progress, self.text)
        self.log.info("Saved checkpoint of iteration %d.", self.progress.iteration)

    def _validate(self) -> None:
        assert self.options.val is not None
        val, emas, iteration = self.options.val, self.trained.emas, self.progress.iteration
        refiner = emas["r"].module if val.refiner and "r" in emas else None
        stages = Stages(emas["g"].module, build.inference(self.options), self.device, refiner)
        scores: list[Score] = []
        for name, data in self.sets.val.items():
            folder = self.paths.visualization / name / str(iteration) if val.save_img else None
            scores += evaluate(
                name,
                data,
                stages,
                self.metrics,
                seed=self.options.manual_seed,
                save_folder=folder,
                check=self.signals.check,
            )
        self.csv.write(
            {"iter": iteration, "dataset": s.dataset, "stage": s.stage, "image": s.image, **s.values} for s in scores
        )
        self._report(scores)
        self.progress.validated = iteration

    def _report(self, scores: Sequence[Score]) -> None:
        """Means to console, TensorBoard and JSON; best records of the deployed network."""
        iteration, record = self.progress.iteration, {}
        for (name, stage), values in means(scores).items():
            if stage == "input":
                continue
            lines = [f"Validation {name}" + (" (refiner)" if stage == "refined" else "")]
            for metric, mean in values.items():
                best = f"\tBest: {mean.value:.4f} @ {iteration} iter"
                if stage == "restored":
                    kept = self._best(f"{name}/{metric}", mean.value)
                    best = f"\tBest: {kept['value']:.4f} @ {int(kept['iter'])} iter"
                lines.append(f"\t # {metric}: {mean}" + (best if stage == "restored" else ""))
                tag = f"metrics/{name}/{metric}" + ("_refiner" if stage == "refined" else "")
                record[tag] = mean.value if math.isfinite(mean.value) else str(mean.value)
                self.scalars.add_scalar(tag, mean.value, iteration)
            self.log.info("\n".join(lines))
        self.json.write({"iter": iteration, **record})

    def _best(self, name: str, value: float) -> dict[str, float]:
        best = self.progress.best.get(name)
        if best is None or value > best["value"] or math.isnan(best["value"]):
            best = {"value": value, "iter": self.progress.iteration}
            self.progress.best[name] = best
        return best
