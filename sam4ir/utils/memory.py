"""Memory of this process: its peak, and the errors that say that there is none left."""

from __future__ import annotations

import contextlib
import errno
import gc
import re
from pathlib import Path

import cv2
import torch

_CV_NO_MEMORY = "(-4:"  # cv::Error::StsNoMem
_NO_MEMORY = (  # in messages of RuntimeErrors, by who writes them
    "DefaultCPUAllocator",  # torch on a CPU
    "out of memory",  # CUDA, MPS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a memory",  # oneDNN; so are the next two, which name no reason ...
    "could not create a primitive",
    "could not execute a primitive",  # ... but have been seen for no other one
    "bad_alloc",  # C++
    "bad allocation",
)
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM back to what is resident now


def reset_peak(device: torch.device) -> None:
    """Let the peak be measured from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)


def peak_memory(device: torch.device) -> int:
    """Return the bytes at the peak: of tensors on a CUDA device, else of the process; 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        peak = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return 0
    if peak is None:
        return 0
    return 1024 * int(peak[1])


def in_words(size: float) -> str:
    """Return a size in bytes as text: '1.4 GiB', '310 MiB'."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB"


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the memory of the CPU or of a device ran out.

    torch, NumPy, OpenCV and the operating system each have an error of their own for it.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, cv2.error):
        return _CV_NO_MEMORY in str(error)  # its attribute `code` is that of the last error of all
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        text = str(error)
        return any(words in text for words in _NO_MEMORY)
    return False


def release() -> None:
    """Give memory that torch keeps for later back to the devices, before something smaller is tried."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
