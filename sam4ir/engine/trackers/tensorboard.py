"""TensorBoard as a tracker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sam4ir.utils.files import writing


def tensorboard_is_installed() -> bool:
    """Return whether events can be written."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardTracker:
    """TensorBoard events in a folder. purge_after: later iterations of the folder are hidden.

    TensorBoard writes in a thread. What fails there is raised here, by the next call, as a FileError that names the
    folder; afterwards nothing more is written.
    """

    def __init__(self, folder: Path, purge_after: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._failed = False
        _leave_out_tracebacks_of_the_writer()
        with self._writing():
            self._writer = SummaryWriter(str(folder), purge_step=purge_after + 1)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with writing(self._folder):
                try:
                    yield
                except OSError as error:  # names a file of the folder
                    raise OSError(error.errno, error.strerror) from error
        except OSError:
            self._failed = True
            raise

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""
        if not self._failed:
            with self._writing():
                for tag, value in values.items():
                    self._writer.add_scalar(tag, value, iteration)

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures (h, w, 3) uint8 RGB by tag."""
        if not self._failed:
            with self._writing():
                for tag, picture in pictures.items():
                    self._writer.add_image(tag, picture, iteration, dataformats="HWC")

    def flush(self) -> None:
        """Write the events that wait in memory."""
        if not self._failed:
            with self._writing():
                self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if not self._failed:
            with self._writing():
                self._writer.close()


def _leave_out_tracebacks_of_the_writer() -> None:
    """Keep TensorBoard's thread from printing a traceback of an OSError, which its next call raises anyway."""
    previous = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__name__ != "_AsyncWriterThread" or not isinstance(failure.exc_value, OSError):
            previous(failure)

    threading.excepthook = hook
