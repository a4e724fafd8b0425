"""Peak memory of this process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

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
    """Whether the error says that the memory of the CPU or of a device ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
