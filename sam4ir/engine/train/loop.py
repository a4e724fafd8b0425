"""The training loop. It sums the model's named terms and knows none of them by name."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from sam4ir.config.load import changes, dump_options, notices
from sam4ir.config.schema import Options
from sam4ir.data.loader import WorkerDiedError
from sam4ir.data.sample import Batch
from sam4ir.engine import build
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import prepared
from sam4ir.engine.evaluate.report import BASELINES, Score, SetScore, means
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.log import Pace, console, message, set_aside
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.train import build as build_train
from sam4ir.engine.train import checkpoint
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train.batches import stage_batches
from sam4ir.engine.train.checkpoint import Progress
from sam4ir.engine.train.compiled import compile_if_faster
from sam4ir.engine.train.journal import FileJournal, Journal, NoJournal
from sam4ir.engine.train.stages import Stage
from sam4ir.engine.train.step import Outcome, Step
from sam4ir.errors import UserError
from sam4ir.utils.dist import PeerError, World, launch, restarted
from sam4ir.utils.files import write_text
from sam4ir.utils.memory import in_words, out_of_memory, peak_memory, reset_peak
from sam4ir.utils.rng import seed_defaults, torch_stream


class NonFiniteError(UserError):
    """Training that does not recover from losses that are not finite."""


class MemoryRunsOutError(UserError):
    """A step that needs more memory than there is; the message tells what would need less."""


class Trainer:
    """A training run from its options: data, parts, logs, checkpoints.

    resume: go on from the newest checkpoint, if any. A process that torchrun started again goes on with what its own
    launch began. world: the processes that train together; the main one alone writes logs, tables and checkpoints.
    """

    def __init__(self, options: Options, resume: bool, world: World = build.ALONE) -> None:
        if options.train is None:
            raise build.BuildError("train: the file has no such block, so it trains nothing; score it with test.py")
        self.options = options
        self.recipe = options.train
        self.world = world
        self.paths = build.run_paths(options)
        self.device = build.device_of(options, world)
        if options.deterministic:
            build.make_deterministic()
        # one answer for all: on another machine another agent started the process
        resume = world.from_main(resume or (restarted() and checkpoint.begun_by(self.paths, launch())))
        if not resume:
            world.main_first(lambda: checkpoint.refuse_overwrite(self.paths, options.path.resume_state))
        seed_defaults(options.manual_seed)
        self.sets = train_data.data_sets(options)
        self.stages = build_train.stages_of(options, self.sets.loader, world)
        self.parts = build_train.build_parts(options, self.device, world, self.sets.channels)
        self.metrics = prepared(build_metrics(options.val, options.basicsr), self.device)
        self.lock: FileLock | None = None
        world.main_first(self._lock)
        self.log: logging.Logger = console(self.paths.run / f"train_{options.name}.log" if world.main else None)
        self.log.setLevel(logging.INFO if world.main else logging.ERROR)
        self.progress = self._begin(resume)
        self.text = dump_options(options)
        self.journal = self._journal()
        self.step = Step(self.parts, self.device, world, options)
        self._compile()
        self.signals = Signals(patient=world.size > 1)

    def _lock(self) -> None:
        self.lock = checkpoint.lock_run(self.paths)
        checkpoint.mark_run(self.paths, launch())

    def _begin(self, resume: bool) -> Progress:
        for notice in notices(self.options):
            self.log.warning(notice)
        found = self._found(resume)
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
        for name, metric in self.metrics.items():
            self.log.info("Metric %s is %s.", name, metric.protocol)
        for name in ("log.jsonl", "validation.csv") if self.world.main else ():
            if kept := set_aside(self.paths.run / name):
                self.log.info("An earlier start left %s without a checkpoint; it is kept as %s.", name, kept.name)
        several = f", {self.world.size} processes" if self.world.size > 1 else ""
        self.log.info("Starting %s in %s on %s%s.", self.options.name, self.paths.run, self.device, several)
        return Progress()

    def _found(self, resume: bool) -> tuple[Progress, str] | None:
        """The checkpoint to go on from, loaded: the one that the main process finds whole, in all of them."""
        state: Path | None = None
        if self.world.main:
            found = checkpoint.find_resume(self.paths, self.parts, self.log) if resume else None
            state = self.paths.state(found[0].iteration) if found is not None else None
            if found is None and self.options.path.resume_state:
                state = Path(self.options.path.resume_state)
                found = checkpoint.load(state, self.parts)
            self.world.from_main(state)
            return found
        state = self.world.from_main(state)
        return checkpoint.load(state, self.parts) if state is not None else None

    def _journal(self) -> Journal:
        if not self.world.main:
            return NoJournal()
        write_text(self.paths.run / "options.yml", self.text)
        columns = [name for name, metric in self.metrics.items() if not metric.of_set]
        return FileJournal(self.paths, columns, self.progress, self.options.logger.use_tb_logger)

    def _compile(self) -> None:
        """Compile what is faster so; a run keeps to what it found when it began."""
        if not self.options.compile:
            return
        networks, progress = build_train.compilable(self.parts), self.progress
        if progress.compiled is None:
            size = (self.stages[0].gt_size or self.sets.loader.arguments.get("gt_size") or 256) // self.options.scale
            with torch_stream(self.options.manual_seed, "compile"):
                faster = [
                    label
                    for label, network in networks.items()
                    if compile_if_faster(
                        network, label, self._images(label, size), self.step.autocast, self.step.layout, self.log
                    )
                ]
            progress.compiled = self.world.from_main(faster)
        for label in progress.compiled:
            networks[label].compile()

    def _images(self, label: str, size: int) -> torch.Tensor:
        """Images as the first stage has them, (micro-batch, c, size, size)."""
        channels = self.sets.channels if label == "g" else min(self.sets.channels, 3)
        return torch.rand(self.stages[0].micro_batch, channels, size, size, device=self.device)

    def run(self) -> None:
        """Train to the end. Raises Interrupted after a checkpoint was saved on SIGTERM or Ctrl-C."""
        with self.signals:
            try:
                self._train()
            except Interrupted as stop:
                self._save()
                self.log.info("Stopped by %s at iteration %d; go on with --auto_resume.", stop, self.progress.iteration)
                self.world.wait()  # else the first to leave takes the main process down while it saves
                raise
            except Exception as error:
                self._rescue()
                if out_of_memory(error):
                    raise MemoryRunsOutError(self._advice(error)) from error
                if "DataLoader worker" in str(error) and not isinstance(error, ValueError):
                    raise WorkerDiedError(str(error)) from error  # its death is told in the middle of a step
                raise
            finally:
                self.close()

    def close(self) -> None:
        """Close the logs and let others write the run."""
        self.journal.close()
        if self.lock is not None:
            self.lock.release()

    def _advice(self, error: Exception) -> str:
        stage = next((s for s in self.stages if self.progress.iteration < s.end), self.stages[-1])
        return (
            f"{self.options.name}: out of memory after iteration {self.progress.iteration} "
            f"({str(error).splitlines()[0]}). Stage {stage}. Lower its micro-batch (batch_size_per_gpu or "
            "mini_batch_sizes; train.total_batch keeps the recipe), or set checkpoint_activations: true or precision: "
            "bf16; then go on with --auto_resume"
        )

    def _rescue(self) -> None:
        """Save what has been trained before an error of data, disk or another process ends the run."""
        if self.progress.iteration not in {0, *self.paths.saved_iterations()}:
            try:
                self._save()
            except OSError as error:
                self.log.error("%s", error)

    def _train(self) -> None:
        progress, total = self.progress, self.recipe.total_iter
        if self._validation_due() and progress.validated < progress.iteration:
            self._validate()  # the run was stopped in the middle of it
            self._save()
        pace = Pace(progress.iteration, total)
        for stage, start, batches in self._data():
            self.log.info("Stage %s.", stage) if len(self.stages) > 1 or stage.rounds > 1 else None
            reset_peak(self.device)
            with contextlib.closing(batches):  # its processes would outlive an error
                for iteration in range(start + 1, stage.end + 1):
                    self._iterate(iteration, stage, batches, pace)
        if self.world.main:
            checkpoint.publish_latest(self.paths, self.parts, total)
        self.log.info("Done: %s is trained; its weights are %s.", self.options.name, self.paths.network("g", "latest"))

    def _iterate(self, iteration: int, stage: Stage, batches: Iterator[Batch], pace: Pace) -> None:
        printed = iteration % self.options.logger.print_freq == 0
        begun = time.perf_counter()
        micro = self._load(batches, stage)
        loaded = time.perf_counter()
        outcome = self.step(micro, iteration, measure=printed)
        self.progress.iteration = iteration
        self.progress.sample += stage.total_batch
        self._record(outcome, micro)
        if printed:
            self._print(outcome.values, pace, (time.perf_counter() - begun, loaded - begun))
        self._milestones()
        self._stop_if_asked()

    def _load(self, batches: Iterator[Batch], stage: Stage) -> list[Batch]:
        """The micro-batches of a step; where they fail in one process, the others learn it before they wait for it."""
        failure: Exception | None = None
        micro: list[Batch] = []
        try:
            micro = list(itertools.islice(batches, stage.rounds))
        except (ValueError, OSError) as error:
            failure = error
        if self.world.largest(int(failure is not None)):
            raise failure or PeerError("one of them cannot load its images")
        return micro

    def _stop_if_asked(self) -> None:
        """Raise Interrupted in all processes where a signal has reached one."""
        if number := self.world.largest(self.signals.number()):
            raise Interrupted(number)

    def _data(self) -> Iterator[tuple[Stage, int, Generator[Batch, None, None]]]:
        """(stage, iterations done, its micro-batches from there) for what is left of the training."""
        sample = self.progress.sample
        for stage in self.stages:
            start = max(stage.start, self.progress.iteration)
            if start < stage.end:
                left = stage.end - start
                yield stage, start, stage_batches(self.sets, stage, self.options, self.world, sample, left)
                sample += left * stage.total_batch

    def _record(self, outcome: Outcome, micro: Sequence[Batch]) -> None:
        """JSON line of the iteration; counts and names what was skipped."""
        progress, record = self.progress, dict[str, Any](outcome.values)
        if replaced := self._replaced(micro):
            record["replaced"] = replaced
            for line in replaced:
                self.log.error("Iteration %d: image skipped: %s", progress.iteration, line)
        lost = outcome.overflow and self.parts.scaler.get_scale() >= 1  # the scale may still fall
        progress.skipped_in_a_row = 0 if outcome.taken or lost else progress.skipped_in_a_row + 1
        if not outcome.taken:
            progress.skipped += 1
            record |= {"skipped": True, "images": self._keys(micro)}
            reason = "float16 overflows, its scale is lowered" if lost else "loss or gradient is not finite"
            self.log.warning(
                "Iteration %d: %s; step skipped. Images: %s", progress.iteration, reason, ", ".join(record["images"])
            )
        self.journal.write(progress.iteration, record)
        if progress.skipped_in_a_row >= self.recipe.max_nonfinite:
            raise NonFiniteError(
                f"{self.options.name}: loss or gradient not finite {progress.skipped_in_a_row} times in a row up to "
                f"iteration {progress.iteration}; the images are named in {self.paths.run / 'log.jsonl'}. "
                "Lower the learning rate, or look at the data"
            )

    def _replaced(self, micro: Sequence[Batch]) -> list[str]:
        """Why images were skipped (bad_images: skip), in all processes."""
        own = [line for batch in micro for line in batch.skipped]
        if self.sets.loader.bad_images == "stop" or not self.world.largest(len(own)):
            return []
        return [line for lines in self.world.gather(own) for line in lines]

    def _keys(self, micro: Sequence[Batch]) -> list[str]:
        """The images of all processes."""
        return [key for keys in self.world.gather([k for batch in micro for k in batch.keys]) for key in keys]

    def _print(self, values: Mapping[str, float], pace: Pace, times: tuple[float, float]) -> None:
        progress = self.progress
        eta, _ = pace.line(progress.iteration)
        rates = [self.parts.optimisers[n].rate(progress.iteration) for n in self.parts.model.active(progress.iteration)]
        epoch = progress.sample // max(len(self.sets.train) * self.sets.loader.dataset_enlarge_ratio, 1)
        line = message(self.options.name, epoch, progress.iteration, rates, eta, times, values)
        self.log.info("%s peak memory: %s", line, in_words(peak_memory(self.device)))
        tags = {f"losses/{k}" if k.startswith("l_") else k: v for k, v in values.items()}
        self.journal.scalars(progress.iteration, {**tags, "lr": rates[0]})

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
        if self.world.main:
            checkpoint.save(self.paths, self.parts, self.progress, self.text)
            self.log.info("Saved checkpoint of iteration %d.", self.progress.iteration)

    def _validate(self) -> None:
        assert self.options.val is not None
        val, emas, iteration = self.options.val, self.parts.emas, self.progress.iteration
        refiner = emas["r"].module if val.refiner and "r" in emas else None
        for ema in emas.values():
            self.world.share_buffers(ema.module)
        stages = Outputs(restore_build.build_restorer(self.options, emas["g"].module), self.device, refiner)
        scores: list[Score] = []
        sets: list[SetScore] = []
        for name, data in self.sets.val.items():
            folder = self.paths.visualization / name / str(iteration) if val.save_img else None
            with torch.compiler.set_stance("force_eager"):  # each image size would be compiled anew
                evaluation = evaluate(
                    name,
                    data,
                    stages,
                    self.metrics,
                    seed=self.options.manual_seed,
                    world=self.world,
                    save_folder=folder,
                    stopped=self.signals.number,
                )
            if evaluation.stopped:
                raise Interrupted(evaluation.stopped)
            scores += evaluation.scores
            sets += evaluation.sets
            for note in evaluation.notes:
                self.log.warning(note)
        self.journal.scores(iteration, scores)
        self._report(scores, sets)
        self.progress.validated = iteration

    def _report(self, scores: Sequence[Score], sets: Sequence[SetScore]) -> None:
        """Means to console, TensorBoard and JSON; best records of the deployed network."""
        iteration, record = self.progress.iteration, dict[str, float]()
        for (name, stage), values in means(scores, sets).items():
            if stage in BASELINES:
                continue
            lines = [f"Validation {name}" + (" (refiner)" if stage == "refined" else "")]
            for metric, mean in values.items():
                best = ""
                if stage == "restored":
                    kept = self._best(f"{name}/{metric}", mean.value, self.metrics[metric].lower_is_better)
                    best = f"\tBest: {kept['value']:.4f} @ {int(kept['iter'])} iter"
                lines.append(f"\t # {metric}: {mean}{best}")
                record[f"metrics/{name}/{metric}" + ("_refiner" if stage == "refined" else "")] = mean.value
            self.log.info("\n".join(lines))
        self.journal.scalars(iteration, record)
        self.journal.write(iteration, record)

    def _best(self, name: str, value: float, lower_is_better: bool) -> dict[str, float]:
        best = self.progress.best.get(name)
        sign = -1 if lower_is_better else 1
        if best is None or sign * value > sign * best["value"] or math.isnan(best["value"]):
            best = {"value": value, "iter": self.progress.iteration}
            self.progress.best[name] = best
        return best
