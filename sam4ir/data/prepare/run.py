"""From a downloaded data set to LMDB folders: the work of scripts/prepare_data.py, which a kill only interrupts.

A part of a set (prepare_recipes.Part) becomes one folder: an LMDB folder for GT and one for each other kind of image,
with the same keys; `windows.jsonl`, where each sub-image lies in its image (prepare_windows.read_table);
`prepared.json`, how all this was made. Until it is whole, their names end in .part, and the same command goes on:
an image counts as done when it is in every LMDB and then in the table, in this order, each step flushed to disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from sam4ir.data.prepare.make import Estimate, Plan, estimate, prepare_item
from sam4ir.data.prepare.output import JobFolder
from sam4ir.data.prepare.parts import Item, Job, Summary
from sam4ir.data.workers import Failure, attempts
from sam4ir.errors import UserError

MAX_BAD = 20  # images that may be bad before the run stops; all are named

_BATCH_BYTES = 64 << 20


def run(job: Job, workers: int = 1, batch_bytes: int = _BATCH_BYTES, progress: bool = True) -> Summary:
    """Makes the folder of a job, or the rest of it, or nothing where it is whole.

    workers: processes that read, cut and pack, 1 = this one; it alone writes. batch_bytes: at least so much is
    written between two flushes to disk; what a kill loses is one batch.
    Raises ValueError naming every bad image, the others being done by then; where the disk is too small; where the
    folder holds something else; where another process works there.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _alone(job.folder), JobFolder(job) as output:
        if output.finished:
            return output.summary()
        plan = Plan.of(job)
        todo = [item for item in job.part.items if item.key not in output.done]
        check_space(job, estimate(todo, plan))
        bad = _make_all(todo, plan, output, _useful_workers(todo, workers), batch_bytes, progress)
        if bad:
            raise UserError(_bad_text(job, bad))
        return output.finish()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the folder; the lock goes with this one, even when it is killed."""
    lock = FileLock(folder / ".prepare.lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is preparing this folder; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _make_all(
    todo: Sequence[Item], plan: Plan, output: JobFolder, workers: int, batch_bytes: int, progress: bool
) -> list[str]:
    """Makes and commits the items; what is wrong with those that are bad."""
    bad: list[str] = []
    pending = 0
    done = len(output.done)
    bar = tqdm(
        total=done + len(todo),
        initial=done,
        desc=str(output.job.folder),
        unit="image",
        disable=None if progress else True,
    )
    with bar, closing(attempts(partial(prepare_item, plan=plan), todo, workers, ahead=1)) as results:
        for _, made in results:
            if isinstance(made, Failure):
                bad.append(made.message)
                if len(bad) >= MAX_BAD:
                    break
                continue
            output.add(made)
            pending += sum(len(value.value) for values in made.values for value in values)
            if pending >= batch_bytes:
                bar.update(output.commit())
                pending = 0
        bar.update(output.commit())
    return bad


def _useful_workers(todo: Sequence[Item], workers: int) -> int:
    """A process costs seconds to start, and blocks of a .mat file are read whole by whoever reads one."""
    if any(file.block is not None for item in todo[:1] for file in item.files):
        return 1
    return max(1, min(workers, len(todo) // 4))


def _bad_text(job: Job, bad: Sequence[str]) -> str:
    stopped = f"; stopped after {MAX_BAD}" if len(bad) >= MAX_BAD else "; the others are done"
    lines = [f"{job.folder}: {len(bad)} of {len(job.part.items)} images cannot be used{stopped}"]
    return "\n  ".join([*lines, *bad]) + "\nmend or replace them and give the same command again: it goes on from here"


def check_space(job: Job, needed: Estimate) -> None:
    """Raises ValueError where the disk of the job's folder has less than the estimate and a tenth."""
    there = next(path for path in (job.folder, *job.folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    wanted = round(1.1 * needed.bytes(job.encoding))
    if wanted > free:
        png = f"; --encoding png would need about {gigabytes(needed.png)}" if job.encoding == "raw" else ""
        raise UserError(
            f"{job.folder}: needs about {gigabytes(wanted)}, its disk has {gigabytes(free)} free{png}; choose another "
            "--output or make room"
        )


def gigabytes(size: int) -> str:
    """'1.23 GB', in powers of ten."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def snippet(summary: Summary) -> str:
    """Lines of YAML for an option file's `datasets`. Where two stores are for one option, the second is a comment."""
    job = summary.job
    options = [store.option for store in job.part.stores]
    kind = _dataset_type(options)
    lines = [f"  {job.part.phase}:", f"    type: {kind}"]
    taken: set[str] = {"dataroot_lq"} if "dataroot_lqL" in options else set()
    for store, path in zip(job.part.stores, job.stores(), strict=True):
        scale = f"  # scale: {store.divisor}" if store.divisor > 1 else ""
        lines.append(f"    {'# or ' if store.option in taken else ''}{store.option}: {path}{scale}")
        taken.add(store.option)
    return "\n".join([*lines, "    io_backend:", "      type: lmdb"])


def _dataset_type(options: Sequence[str]) -> str:
    if "dataroot_lqL" in options:
        return "Dataset_DefocusDeblur_DualPixel_16bit"
    return "PairedImageDataset" if "dataroot_lq" in options else "GaussianDenoisingDataset"
