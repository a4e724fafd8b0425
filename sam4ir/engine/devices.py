"""The device that a process computes on, chosen from a name and the world."""

from __future__ import annotations

import os

import torch

from sam4ir.errors import UserError
from sam4ir.utils.dist import ALONE, World


class DeviceError(UserError):
    """A device that this process cannot use; the message names the key or flag that asks for it."""


def wants_cuda(name: str) -> bool:
    """Return whether a device name means CUDA; `auto` does where torch finds a CUDA device."""
    if name == "auto":
        return torch.cuda.is_available()
    return name.startswith("cuda")


def choose_device(name: str, world: World = ALONE, place: str = "device") -> torch.device:
    """Return the device of this process. Where several processes train, each takes the CUDA device of its own.

    name: auto, cpu, cuda, cuda:<index> or mps. place: the key (`device`) or flag (`--device`) that messages name.
    Raises DeviceError for a name that torch does not know, for a device that is not there, and for one numbered device
    that several processes ask for.
    """
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise DeviceError(f"{place}: {name!r} is no device; take auto, cpu, cuda, cuda:1 ... or mps") from None
    if world.size > 1 and device.index is not None:
        raise DeviceError(f"{place}: {name} is one device, but {world.size} processes ask for it; take cuda")
    if wants_cuda(name) and device.index is None:
        device = torch.device("cuda")
        if world.size > 1:
            device = torch.device("cuda", world.cuda_index)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"{place}: {device} is asked for, but torch finds {count} CUDA devices; take cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"{place}: mps is asked for, but torch finds none; take cpu or auto")
    return device


def make_deterministic() -> None:
    """Make torch repeat its results bit for bit on CUDA too, at some cost in speed (key `deterministic`)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed what it was given; a CPU has when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
