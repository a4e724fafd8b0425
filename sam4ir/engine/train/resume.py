"""Resume a run: lock its folder, and choose the checkpoint that the run goes on from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from sam4ir.config.official import OFFICIAL_MODELS
from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import Options
from sam4ir.config.yaml_text import parse
from sam4ir.engine.log import set_aside_journal
from sam4ir.engine.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpointError,
    Progress,
    load_checkpoint,
)
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage
from sam4ir.engine.weights import WeightsFileError
from sam4ir.errors import UserError
from sam4ir.utils.dist import World, launch, restarted
from sam4ir.utils.files import make_folder, write_text
from sam4ir.utils.shell import force_yml

LAUNCH_MARK = ".launch"


class RunExistsError(UserError):
    """A fresh start into a folder that holds a run, or that another process writes."""


def agree_to_resume(paths: RunPaths, asked: bool, world: World) -> bool:
    """Return whether the run resumes: where the user asks for it, and where torchrun restarts a run of its own.

    The main process decides for all: on another machine another agent of torchrun has started the process.
    """
    return world.from_main(asked or (restarted() and begun_by(paths, launch())))


def begun_by(paths: RunPaths, launch_name: str | None) -> bool:
    """Return whether this launch (utils.dist.launch) began or resumed the run, so that its restart may go on."""
    mark = paths.run / LAUNCH_MARK
    return launch_name is not None and mark.is_file() and mark.read_text(encoding="utf-8") == launch_name


def mark_run(paths: RunPaths, launch_name: str | None) -> None:
    """Write down which launch the run belongs to."""
    mark = paths.run / LAUNCH_MARK
    if launch_name is not None:
        write_text(mark, launch_name)
    else:
        mark.unlink(missing_ok=True)


def refuse_overwrite(paths: RunPaths, resume_state: str | None = None) -> None:
    """Raise RunExistsError where a fresh start would write into a run that has checkpoints or weights.

    resume_state: path.resume_state; a run may go on from its own newest checkpoint.
    """
    iterations = paths.saved_iterations()
    if resume_state and iterations and Path(resume_state).resolve() == paths.state(iterations[0]).resolve():
        return
    weights = [*paths.models.glob("net_*.pth"), *paths.models.glob("net_*.safetensors")]
    if not iterations and not weights:
        return
    last = f"{len(weights)} weight files"
    if iterations:
        last = f"checkpoints up to iteration {iterations[0]}"
    raise RunExistsError(
        f"{paths.run}: holds a run with {last}. Nothing was changed. To go on with it add --auto_resume "
        "(from Python resume=True); "
        f"to train anew give another name, such as {force_yml('name', f'{paths.name}_2')}"
    )


def claim_run(paths: RunPaths, world: World) -> FileLock | None:
    """Lock the run and mark it as this launch's; return the lock in the main process, None in the others."""
    locks: list[FileLock] = []

    def claim() -> None:
        locks.append(lock_run(paths))
        mark_run(paths, launch())

    world.main_first(claim)
    if not locks:
        return None
    return locks[0]


def lock_run(paths: RunPaths) -> FileLock:
    """Hold <run>/.lock while this process writes the run, so that two runs cannot mix in one folder."""
    make_folder(paths.run)
    lock = FileLock(paths.run / ".lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = "another process is training this run; wait for it or give another name"
        raise RunExistsError(f"{paths.run}: {message}") from None
    for half in paths.run.rglob(".*.part"):  # left by a kill -9 in the middle of writing
        half.unlink()
    return lock


def load_agreed(
    paths: RunPaths, parts: TrainingParts, resume: bool, resume_state: str | None, world: World, log: logging.Logger
) -> Checkpoint | None:
    """Load into `parts` the checkpoint that the run goes on from; None for a fresh start.

    The main process chooses, and the others load the same file: with `resume` the newest checkpoint that is whole, else
    resume_state (path.resume_state), if the option file names one.
    """
    if not world.main:
        state_file: Path | None = world.from_main(None)
        if state_file is None:
            return None
        return load_checkpoint(state_file, parts)
    checkpoint, state_file = None, None
    if resume:
        checkpoint = load_newest(paths, parts, log)
    if checkpoint is not None:
        state_file = paths.state(checkpoint.progress.iteration)
    elif resume_state:
        state_file = Path(resume_state)
        checkpoint = load_checkpoint(state_file, parts)
    world.from_main(state_file)
    return checkpoint


def load_newest(paths: RunPaths, parts: TrainingParts, log: logging.Logger) -> Checkpoint | None:
    """Load the newest checkpoint of a run that is whole; None where there is no checkpoint.

    One that is damaged (a full disk, a copy cut short, a changed bit), or whose files belong to several checkpoints, is
    passed over with a warning for the one before.
    """
    state_files = [paths.state(iteration) for iteration in paths.saved_iterations()]
    for state_file in state_files:
        try:
            return load_checkpoint(state_file, parts)
        except (WeightsFileError, DamagedCheckpointError) as error:
            log.warning("%s; trying the checkpoint before it", error)
    if state_files:
        raise CheckpointError(
            f"{paths.states}: none of {len(state_files)} checkpoints can be read; see the warnings above"
        )
    return None


def with_average(earlier: str | None, options: Options, parts: TrainingParts) -> Options:
    """Return options whose saved file gives the same train.ema_warmup; the averages in `parts` follow it.

    Without the key a run that goes on keeps the course that it began with. earlier: the options of its checkpoint, None
    for a fresh start.
    """
    if options.train is None:
        return options
    warmup = options.ema_warms_up
    if earlier is not None and options.train.ema_warmup is None:
        warmup = _earlier_warmup(earlier)
    for ema in parts.emas.values():
        ema.warmup = warmup
    if warmup is (options.model_type not in OFFICIAL_MODELS):
        return options
    return options.model_copy(update={"train": options.train.model_copy(update={"ema_warmup": warmup})})


def _earlier_warmup(earlier: str) -> bool:
    """Return whether the decay of the averages rises in a run with these saved options; it did before the key came."""
    saved = parse(earlier)[0]
    train = saved.get("train") if isinstance(saved, Mapping) else None
    if not isinstance(train, Mapping) or "ema_warmup" not in train:
        return True
    if train["ema_warmup"] is None:
        return saved.get("model_type") not in OFFICIAL_MODELS
    return bool(train["ema_warmup"])


def report_average(log: logging.Logger, parts: TrainingParts) -> None:
    """Log how the averages of the weights follow the networks, where a run keeps some."""
    emas = [ema for ema in parts.emas.values() if ema.on]
    if emas:  # all of them have one decay
        key = f"train.ema_warmup: {str(emas[0].warmup).lower()}"
        log.info("Average of the weights (EMA): %s (%s).", emas[0], key)


def refuse_shorter(paths: RunPaths, iteration: int, total_iter: int) -> None:
    """Raise CheckpointError where a checkpoint lies behind the end of the training."""
    if iteration > total_iter:
        raise CheckpointError(
            f"{paths.run}: is at iteration {iteration} already; train.total_iter is {total_iter}. "
            "Raise it, or give another name for a shorter run"
        )


def agree_on_batches(
    paths: RunPaths, progress: Progress, stages_of: Callable[[int], Sequence[Stage]], processes: int
) -> str | None:
    """Return a line where other processes go on than those that trained; None where their number is the same.

    stages_of: number of processes -> the stages of the training. Raises CheckpointError where the total batch would
    become another one, since the samples that follow and the learning rate belong to the old one.
    """
    before, progress.processes = progress.processes, processes
    if before is None or before == processes:
        return None
    now = _total_batches(stages_of(processes))
    try:
        then = _total_batches(stages_of(before))
    except UserError:  # the options changed so that the earlier number would no longer do
        return None
    if then != now:
        total = then
        if "," in then:
            total = f"[{then}]"
        raise CheckpointError(
            f"{paths.run}: was trained by {before} process(es) with a total batch of {then}; {processes} would make it "
            f"{now}. Start {before}, or set train.total_batch: {total}, which any number of processes makes up"
        )
    return f"Trained by {before} process(es) so far, and by {processes} from here; the total batch stays {now}."


def _total_batches(stages: Sequence[Stage]) -> str:
    return ", ".join(str(stage.total_batch) for stage in stages)


def report_resumed(log: logging.Logger, name: str, iteration: int, changes: Iterable[str]) -> None:
    """Log where a run goes on. changes: the keys that differ from those of the checkpoint, each a line."""
    log.info("Resuming %s from iteration %d.", name, iteration)
    for change in changes:
        log.warning("Changed since the checkpoint: %s", change)


def report_started(
    log: logging.Logger, paths: RunPaths, place: str, protocols: Mapping[str, str], world: World
) -> None:
    """Log a fresh start, and set aside the journal of an earlier start that left no checkpoint.

    place: the device and, where there are several, the processes. protocols: {metric: definition}.
    """
    for name, protocol in protocols.items():
        log.info("Metric %s is %s.", name, protocol)
    if world.main:
        for name in ("log.jsonl", "validation.csv"):
            backup = set_aside_journal(paths.run / name)
            if backup:
                log.info("An earlier start left %s without a checkpoint; it is kept as %s.", name, backup.name)
    log.info("Starting %s in %s on %s.", paths.name, paths.run, place)
