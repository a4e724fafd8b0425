"""The training loop. It sums the terms that the model names and knows none of them by name."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Generator, Iterator

import torch

from sam4ir.config.load import changes, dump_options, notices
from sam4ir.config.schema import LoggerOptions, Options
from sam4ir.data.loader import WorkerDiedError
from sam4ir.data.sample import Batch
from sam4ir.engine import build
from sam4ir.engine.agreement import agree, network_facts, run_facts, version_line
from sam4ir.engine.cost import cost_of, network_line, parameter_count
from sam4ir.engine.describe import device_in_words
from sam4ir.engine.devices import choose_device, make_deterministic
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import prepare_metrics, protocols_of
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.log import console
from sam4ir.engine.precision import settle_training
from sam4ir.engine.restore.build import restore_recipe
from sam4ir.engine.trackers.build import build_trackers, wants_tensorboard
from sam4ir.engine.train import build as build_train
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train import resume as resuming
from sam4ir.engine.train.batches import StageBatches
from sam4ir.engine.train.checkpoint import Progress
from sam4ir.engine.train.compiled import compile_networks
from sam4ir.engine.train.console_line import Pace
from sam4ir.engine.train.journal import FileJournal, Journal, NoJournal
from sam4ir.engine.train.keeping import Keeping
from sam4ir.engine.train.milestones import Milestones, Validation
from sam4ir.engine.train.stages import Stage
from sam4ir.engine.train.step_log import StepLog
from sam4ir.errors import UserError
from sam4ir.utils.dist import ALONE, PeerError, World
from sam4ir.utils.files import write_text
from sam4ir.utils.memory import out_of_memory, reset_peak
from sam4ir.utils.rng import seed_defaults


class MemoryRunsOutError(UserError):
    """A step that needs more memory than there is; the message lists what would need less."""


class Trainer:
    """A training run, built from its options.

    resume: go on from the newest checkpoint, if there is one. A process that torchrun started again resumes the run
    that its own launch began. world: the processes that train together; the main one alone writes logs, tables and
    checkpoints. shown: takes the lines of the log in place of stdout.
    """

    def __init__(
        self, options: Options, resume: bool, world: World = ALONE, shown: logging.Handler | None = None
    ) -> None:
        train = build_train.train_options(options)
        agree(world, *run_facts(options))
        self.name = options.name
        self.total_iter = train.total_iter
        self.print_freq = options.logger.print_freq
        self.world = world
        self.paths = build.run_paths(options.path, options.name)
        self.device = choose_device(options.device, world)
        self.formats = settle_training(options, self.device, world)
        options = self.formats.options
        if options.deterministic:
            make_deterministic()
        resume = resuming.agree_to_resume(self.paths, resume, world)
        if not resume:
            world.main_first(lambda: resuming.refuse_overwrite(self.paths, options.path.resume_state))
        seed_defaults(options.manual_seed)
        self.sets = train_data.data_sets(options)
        agree(world, *train_data.data_facts(options, self.sets))
        self.stages = build_train.stages_of(train, self.sets.loader, world)
        self.parts = build_train.build_parts(options, self.device, world, self.sets.channels)
        self.metrics = prepare_metrics(build_metrics(options.val, options.basicsr), self.device)
        self.lock = resuming.claim_run(self.paths, world)
        try:
            self._set_up(options, resume, shown)
        except BaseException:
            self._unlock()
            raise

    def _set_up(self, options: Options, resume: bool, shown: logging.Handler | None) -> None:
        """Open the files of the run, which is locked, and load what it goes on from."""
        train, world = build_train.train_options(options), self.world
        self.log = self._console(shown)
        self.formats.log(self.log)
        self.progress, options = self._begin(options, resume)
        if world.main:
            self._report_work(options)
        options_text = dump_options(options)
        self.journal = self._journal(options_text, options.logger)
        self.step = build_train.build_step(options, self.parts, self.device, world)
        if options.compile is True:
            self._compile(options.manual_seed, options.scale)
        self.batches = StageBatches(
            self.sets, world, options.manual_seed, train.mixing_augs, cuda=self.device.type == "cuda"
        )
        self.step_log = StepLog(
            self.parts,
            self.progress,
            self.sets,
            self.paths,
            self.journal,
            self.log,
            device=self.device,
            world=world,
            max_nonfinite=train.max_nonfinite,
        )
        self.signals = Signals(patient=world.size > 1)
        self.milestones = Milestones(
            self._validation(options),
            self.parts,
            self.progress,
            self.paths,
            self.journal,
            self.log,
            total_iter=train.total_iter,
            save_freq=options.logger.save_checkpoint_freq,
            keeping=Keeping(options.logger.keep_last, options.logger.keep_last_weights),
            options_text=options_text,
            main=world.main,
        )

    def _report_work(self, options: Options) -> None:
        """Log the networks, the images, the steps of an epoch, and where everything is written."""
        parameters = parameter_count(self.parts.model.networks["g"])
        self.log.info(network_line(options.network_g, parameters, cost_of(options, self.sets.channels)))
        for label, network in self.parts.model.networks.items():
            if label != "g":
                self.log.info(
                    "Network net_%s: %s parameters, in training only.", label, f"{parameter_count(network):,}"
                )
        images = len(self.sets.train)
        samples = images * self.sets.loader.dataset_enlarge_ratio
        batch = self.stages[0].total_batch
        self.log.info(
            "Training on %s images: %s samples an epoch, %s a step, %s steps; number format %s.",
            f"{images:,}",
            f"{samples:,}",
            f"{batch:,}",
            f"{self.total_iter:,}",
            options.precision,
        )
        if options.val is not None and options.val.val_freq is not None:
            for name, data in self.sets.val.items():
                self.log.info("Validation on %s: %d images, every %d steps.", name, len(data), options.val.val_freq)
        places = f"Weights and pictures go to {self.paths.run}"
        if wants_tensorboard(options.logger):
            places += f", curves to {self.paths.tensorboard}"
        self.log.info("%s.", places)

    def _begin(self, options: Options, resume: bool) -> tuple[Progress, Options]:
        """Load the checkpoint that the run goes on from, if any, and log how the run begins.

        Return the progress, and the options with what the checkpoint decides.
        """
        self.log.info("Versions: %s; computes on %s.", version_line(), device_in_words(self.device))
        for notice in notices(options):
            self.log.warning(notice)
        if self.sets.val and options.val is not None and options.val.val_freq is None:
            self.log.info("Nothing is validated during the training: val.val_freq is not set.")
        checkpoint = resuming.load_agreed(
            self.paths, self.parts, resume, options.path.resume_state, self.world, self.log
        )
        if checkpoint is not None:
            progress = checkpoint.progress
            agree(self.world, lambda: network_facts(self.parts.model.networks, vars(progress)))
            options = resuming.with_average(checkpoint.options, options, self.parts)
            resuming.report_resumed(self.log, self.name, progress.iteration, changes(checkpoint.options, options))
            resuming.refuse_shorter(self.paths, progress.iteration, self.total_iter)
            self._report_processes(options, progress)
            resuming.report_average(self.log, self.parts)
            return progress, options
        options = resuming.with_average(None, options, self.parts)
        place = str(self.device)
        if self.world.size > 1:
            place += f", {self.world.size} processes"
        resuming.report_average(self.log, self.parts)
        resuming.report_started(self.log, self.paths, place, protocols_of(self.metrics), self.world)
        return Progress(processes=self.world.size), options

    def _report_processes(self, options: Options, progress: Progress) -> None:
        """Log that another number of processes goes on than that of the checkpoint; refuse another total batch."""
        train = build_train.train_options(options)

        def stages_of(processes: int) -> list[Stage]:
            return build_train.stages_of(train, self.sets.loader, World(size=processes))

        line = resuming.agree_on_batches(self.paths, progress, stages_of, self.world.size)
        if line is not None:
            self.log.info(line)

    def _console(self, shown: logging.Handler | None) -> logging.Logger:
        """Return the log: the main process writes a file too, the others show errors alone."""
        if self.world.main:
            log = console(self.paths.run / f"train_{self.name}.log", shown)
            log.setLevel(logging.INFO)
        else:
            log = console(None, shown)
            log.setLevel(logging.ERROR)
        return log

    def _journal(self, options_text: str, logger: LoggerOptions) -> Journal:
        """Begin or continue the journal, and write options.yml; in the main process alone."""
        if not self.world.main:
            return NoJournal()
        write_text(self.paths.run / "options.yml", options_text)
        columns = [name for name, metric in self.metrics.items() if not metric.of_set]
        trackers = build_trackers(logger, self.paths, self.progress.iteration, options_text)
        return FileJournal(self.paths, columns, self.progress, trackers)

    def _validation(self, options: Options) -> Validation | None:
        """Return the validation of the run, None without a `val` block."""
        if options.val is None:
            return None
        validation = Validation(
            restore_recipe(options),
            self.sets.val,
            self.metrics,
            self.parts,
            self.device,
            self.world,
            options.manual_seed,
            self.paths.run,
            self.signals,
            self.log,
        )
        for name, data in self.sets.val.items():  # at the start, and not at the first validation
            saved = validation.saved(name, 0)
            if saved is not None:
                saved.refuse_names(data)
        return validation

    def _compile(self, seed: int, scale: int) -> None:
        """Compile the networks that run faster so, as measured on images of the first stage."""
        first, loader = self.stages[0], self.sets.loader
        side = (first.gt_size or loader.arguments.get("gt_size") or 256) // scale

        def images(label: str) -> torch.Tensor:
            channels = self.sets.channels if label == "g" else min(self.sets.channels, 3)
            return torch.rand(first.micro_batch, channels, side, side, device=self.device)

        networks = build_train.compilable(self.parts)
        compile_networks(networks, self.progress, self.step, images, seed=seed, world=self.world, log=self.log)

    def run(self) -> None:
        """Train to the end. Raises Interrupted after a checkpoint was saved on SIGTERM or Ctrl-C."""
        with self.signals:
            try:
                self._train()
            except Interrupted as stop:
                self.milestones.save()
                self.log.info("Stopped by %s at iteration %d; go on with --auto_resume.", stop, self.progress.iteration)
                self.world.wait()  # else the first to leave takes the main process down while it saves
                raise
            except Exception as error:
                self.milestones.rescue()
                if out_of_memory(error):
                    raise MemoryRunsOutError(self._advice(error)) from error
                if "DataLoader worker" in str(error) and not isinstance(error, ValueError):
                    raise WorkerDiedError(str(error)) from error  # torch reports its death in the middle of a step
                raise
            finally:
                self.close()

    def close(self) -> None:
        """Close the logs and let others write the run."""
        try:
            self.journal.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _train(self) -> None:
        self.milestones.catch_up()
        pace = Pace(self.progress.iteration, self.total_iter)
        for stage, start, batches in self._stages_left():
            if len(self.stages) > 1 or stage.rounds > 1:
                self.log.info("Stage %s.", stage)
            reset_peak(self.device)
            with contextlib.closing(batches):  # its processes would outlive an error
                for iteration in range(start + 1, stage.end + 1):
                    if self.milestones.exhausted:
                        break
                    self._iterate(iteration, stage, batches, pace)
        self.milestones.finish()

    def _stages_left(self) -> Iterator[tuple[Stage, int, Generator[Batch, None, None]]]:
        """Yield (stage, iterations already computed, its micro-batches from there) for the rest of the training."""
        sample = self.progress.sample
        for stage in self.stages:
            start = max(stage.start, self.progress.iteration)
            if start < stage.end:
                left = stage.end - start
                yield stage, start, self.batches.of(stage, sample, left)
                sample += left * stage.total_batch

    def _iterate(self, iteration: int, stage: Stage, batches: Iterator[Batch], pace: Pace) -> None:
        """Load micro-batches, take one optimiser step, record it, and validate and save where that is due."""
        printed = iteration % self.print_freq == 0
        begun = time.perf_counter()
        micro = self._load(batches, stage)
        loaded = time.perf_counter()
        outcome = self.step(micro, iteration, measure=printed)
        self.progress.iteration = iteration
        self.progress.sample += stage.total_batch
        self.step_log.record(outcome, micro)
        pace.add(stage.total_batch)
        times = time.perf_counter() - begun, loaded - begun
        if printed:
            self.step_log.show(outcome, pace, times)
        else:
            self.step_log.show_life(outcome, pace, times)
        self.milestones.reach()
        self._stop_if_asked()

    def _load(self, batches: Iterator[Batch], stage: Stage) -> list[Batch]:
        """Return the micro-batches of a step.

        Where they fail in one process, all processes raise an error before they wait for each other.
        """
        failure: Exception | None = None
        micro: list[Batch] = []
        try:
            micro = list(itertools.islice(batches, stage.rounds))
        except Exception as error:  # whatever it is: the others must not wait for this process
            failure = error
        if self.world.largest(int(failure is not None)):
            raise failure or PeerError("one of them cannot load its images")
        return micro

    def _stop_if_asked(self) -> None:
        """Raise Interrupted in all processes where a signal has reached one."""
        number = self.world.largest(self.signals.number())
        if number:
            raise Interrupted(number)

    def _advice(self, error: Exception) -> str:
        """Return the message for a device without memory left, with the keys that save memory."""
        stage = self.stages[0]
        for stage in self.stages:
            if self.progress.iteration < stage.end:
                break
        return (
            f"{self.name}: out of memory after iteration {self.progress.iteration} "
            f"({str(error).splitlines()[0]}). Stage {stage}. Lower its micro-batch (batch_size_per_gpu or "
            "mini_batch_sizes; train.total_batch keeps the recipe), or set checkpoint_activations: true or precision: "
            "bf16; then go on with --auto_resume"
        )
