"""The whole job of sam4ir prepare: one part of a downloaded data set becomes one folder of LMDBs.

The folder of a part (parts.Part) holds an LMDB folder for GT and one for each other kind of image, all with the same
keys; `windows.jsonl`, where each sub-image lies in its image (sam4ir.data.windows.read_table); and `prepared.json`, the
settings and versions of the job. Until the folder is whole, these names end in .part. A killed run loses little: the
same command continues it. An image counts as done when it is in every LMDB and then in the table, in this order, each
step flushed to disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from sam4ir.data.lmdb_io import why_no_key
from sam4ir.data.prepare.make import Estimate, Plan, estimate, prepare_item
from sam4ir.data.prepare.output import JobFolder
from sam4ir.data.prepare.parts import Item, Job, Summary
from sam4ir.data.workers import Failure, attempts
from sam4ir.errors import UserError
from sam4ir.utils.files import make_folder

MAX_BAD = 20  # bad images that stop a run; the message names them all

_BATCH_BYTES = 64 << 20


def run_job(job: Job, workers: int = 1, batch_bytes: int = _BATCH_BYTES, progress: bool = True) -> Summary:
    """Prepare the folder of a job, continue an interrupted run, or return the summary of a finished one.

    workers: processes that read, cut and pack, 1 = this process, which alone writes. batch_bytes: at least this many
    bytes are written between two flushes to disk; a kill loses at most one batch. progress: show a bar.
    Raises UserError naming every bad image after all others are done, and where the disk is too small, the folder holds
    something else, or another process prepares it.
    """
    make_folder(job.folder)
    with _locked(job.folder), JobFolder(job) as job_folder:
        if job_folder.finished:
            return job_folder.summary()
        plan = Plan.of(job)
        items = [item for item in job.part.items if item.key not in job_folder.done]
        check_space(job, estimate(items, plan))
        problems = _prepare_items(items, plan, job_folder, _useful_workers(items, workers), batch_bytes, progress)
        if problems:
            raise UserError(_bad_images_text(job, problems))
        return job_folder.finish()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder; the lock ends with this process, even when it is killed."""
    lock = FileLock(folder / ".prepare.lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is preparing this folder; wait for it") from None
    try:
        yield
    finally:
        lock.release()


def _prepare_items(
    items: Sequence[Item], plan: Plan, job_folder: JobFolder, workers: int, batch_bytes: int, progress: bool
) -> list[str]:
    """Prepare and commit the items; return one message for each bad item, and stop at MAX_BAD of them."""
    problems, good = list[str](), list[Item]()
    for item in items:
        reason = why_no_key(item.key)
        if reason:
            problems.append(f"{item.files[0]}: key {item.key!r} {reason}")
        else:
            good.append(item)
    if len(problems) >= MAX_BAD:
        return problems
    pending_bytes = 0
    done = len(job_folder.done)
    bar = tqdm(
        total=done + len(items),
        initial=done,
        desc=str(job_folder.job.folder),
        unit="image",
        disable=None if progress else True,
    )
    with bar, closing(attempts(partial(prepare_item, plan=plan), good, workers, ahead=1)) as results:
        for _, result in results:
            if isinstance(result, Failure):
                problems.append(result.message)
                if len(problems) >= MAX_BAD:
                    break
                continue
            job_folder.add(result)
            pending_bytes += result.bytes
            if pending_bytes >= batch_bytes:
                bar.update(job_folder.commit())
                pending_bytes = 0
        bar.update(job_folder.commit())
    return problems


def _useful_workers(items: Sequence[Item], workers: int) -> int:
    """Return how many processes help: one costs seconds to start, and each would read a .mat file of blocks whole."""
    if items and any(file.block is not None for file in items[0].files):
        return 1
    return max(1, min(workers, len(items) // 4))


def _bad_images_text(job: Job, problems: Sequence[str]) -> str:
    rest = f"stopped after {MAX_BAD}" if len(problems) >= MAX_BAD else "the others are done"
    heading = f"{job.folder}: {len(problems)} of {len(job.part.items)} images cannot be used; {rest}"
    remedy = "mend or replace them and give the same command again: it goes on from here"
    return "\n  ".join([heading, *problems]) + f"\n{remedy}"


def check_space(job: Job, needed: Estimate) -> None:
    """Raise UserError where the disk of the job's folder has less room than the estimate and a tenth of it."""
    existing = next(path for path in (job.folder, *job.folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    required = round(1.1 * needed.bytes(job.encoding))
    if required > free:
        png = f"; --encoding png would need about {gigabytes(needed.png)}" if job.encoding == "raw" else ""
        raise UserError(
            f"{job.folder}: needs about {gigabytes(required)}, its disk has {gigabytes(free)} free{png}; choose "
            "another --output or make room"
        )


def gigabytes(size: int) -> str:
    """Return a size in bytes as '1.23 GB' or '4.56 MB', in powers of ten."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def snippet(summary: Summary) -> str:
    """Return lines of YAML for an option file's `datasets`; where two stores serve one option, the second is a comment.

    A dual-pixel set is read from its left and right views, so its combined view is a comment as well.
    """
    job = summary.job
    options = [store.option for store in job.part.stores]
    lines = [f"  {job.part.phase}:", f"    type: {_dataset_type(options)}"]
    set_options: set[str] = {"dataroot_lq"} if "dataroot_lqL" in options else set()
    for store, path in zip(job.part.stores, job.stores(), strict=True):
        comment = "# or " if store.option in set_options else ""
        scale = f"  # scale: {store.divisor}" if store.divisor > 1 else ""
        lines.append(f"    {comment}{store.option}: {path}{scale}")
        set_options.add(store.option)
    return "\n".join([*lines, "    io_backend:", "      type: lmdb"])


def _dataset_type(options: Sequence[str]) -> str:
    """Return the registered data set that reads images for these options."""
    if "dataroot_lqL" in options:
        return "Dataset_DefocusDeblur_DualPixel_16bit"
    return "PairedImageDataset" if "dataroot_lq" in options else "GaussianDenoisingDataset"
