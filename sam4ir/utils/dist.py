"""The processes of a run: the world that torchrun or Slurm started, or this process alone.

One code path serves one process and many: a World of size 1 answers every question without communication.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from sam4ir.errors import UserError

T = TypeVar("T")
Launcher = Literal["none", "pytorch", "slurm"]
TIMEOUT = datetime.timedelta(minutes=30)
START_TIMEOUT = datetime.timedelta(minutes=10)
_TORCHRUN = "torchrun --nproc_per_node=N -m sam4ir train -opt FILE"


class LaunchError(UserError):
    """A launcher was asked for, but the environment variables that it sets are missing or do not fit."""


class PeerError(ConnectionError):
    """The other processes of the run cannot be reached, most often because one of them has stopped."""

    def __init__(self, reason: str = "") -> None:
        detail = ""
        if reason.strip():
            detail = f" ({reason.strip().splitlines()[0][:200]})"
        super().__init__(
            f"the other processes of this run are lost{detail}; where one has stopped, its message says why"
        )


@dataclass(frozen=True)
class World:
    """The processes that train or score together, as one of them sees them.

    rank: the number of this process, from 0. size: how many there are. local_rank: its number on its own machine.
    cuda_index: the CUDA device that it works on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    cuda_index: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes logs, tables and checkpoints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the element-wise mean over the processes; every process gets the same bits."""
        if self.size == 1:
            return values
        values = values.clone()
        with peers():
            torch.distributed.all_reduce(values)
        return values / self.size

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        with peers():
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks; every process gets all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers():
            torch.distributed.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Return the main process's value; every process gets it."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        with peers():
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def main_first(self, action: Callable[[], None]) -> None:
        """Run `action` in the main process. If it fails there, no process goes on."""
        failure: Exception | None = None
        if self.main:
            try:
                action()
            except Exception as error:  # whatever it is: the others must not wait for this process
                failure = error
        if self.largest(int(failure is not None)):
            raise failure or PeerError("the main process cannot begin")

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.largest(0)

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the main one's buffers: running statistics differ, since each process saw other images."""
        if self.size == 1:
            return
        for buffer in network.buffers():
            with peers():
                torch.distributed.broadcast(buffer.data, 0)


ALONE = World()  # one process by itself


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Turn errors of communication inside the block into PeerError."""
    try:
        yield
    except RuntimeError as error:
        if re.search(r"(?i)connection|gloo|nccl|process ?group|socket|heartbeat", str(error)):
            raise PeerError(str(error)) from error
        raise


@contextlib.contextmanager
def world(launcher: Launcher, cuda: bool) -> Iterator[World]:
    """Join the processes that torchrun or Slurm started; yield a World of one where there are none.

    launcher: 'none' follows torchrun's environment variables if they are set; 'pytorch' insists on them; 'slurm' sets
    them from Slurm's. cuda: whether collectives of CUDA tensors go through NCCL; all others go through gloo.
    Raises LaunchError where the launcher's variables are missing, and where no CUDA device is left for a process.
    """
    if launcher == "slurm":
        _slurm()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if launcher == "pytorch":
            raise LaunchError(f"--launcher pytorch needs torchrun, such as {_TORCHRUN}")
        yield World()
        return
    rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    joined = World(rank, size, local_rank, _cuda_index(local_rank, launcher) if cuda and size > 1 else 0)
    if size == 1:
        yield joined
        return
    if not joined.main:
        logging.getLogger("sam4ir").setLevel(logging.ERROR)  # the main process says it
    if cuda:
        torch.cuda.set_device(joined.cuda_index)
    with peers():
        _meet(joined, "cpu:gloo,cuda:nccl" if cuda else "gloo")
    yield joined
    torch.distributed.destroy_process_group()  # not after an error: it would wait for those that have gone


def _meet(joined: World, backend: str) -> None:
    """Connect the processes within START_TIMEOUT; what they do afterwards may take TIMEOUT.

    Raises LaunchError where they do not meet.
    """
    set_timeout = getattr(torch.distributed, "set_timeout", None)
    limit = START_TIMEOUT
    if set_timeout is None:  # an older torch has one limit for both
        limit = TIMEOUT
    begun = time.monotonic()
    try:
        store, rank, size = next(torch.distributed.rendezvous("env://", joined.rank, joined.size, timeout=limit))
        store.set_timeout(limit)
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        if time.monotonic() - begun < 0.9 * limit.total_seconds():  # something else is wrong
            raise
        raise LaunchError(
            f"the {joined.size} processes of this run have not met within {limit.total_seconds() / 60:g} minutes "
            f"({str(error).strip().splitlines()[0][:200]}); start them again. See that all of them start: where "
            "one has stopped, its message says why"
        ) from error
    if set_timeout is not None:
        store.set_timeout(TIMEOUT)  # NCCL connects through it at its first use
        set_timeout(TIMEOUT)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _cuda_index(local_rank: int, launcher: Launcher) -> int:
    """Return the device of a local rank. Slurm may show each task a single device, which is then number 0."""
    count = torch.cuda.device_count()
    if launcher == "slurm" and count == 1:
        return 0
    if local_rank >= count:
        raise LaunchError(
            f"process {local_rank} of this machine finds {count} CUDA devices; start as many processes as there are "
            "(torchrun --nproc_per_node), or set device: cpu"
        )
    return local_rank


def launch() -> str | None:
    """Return a name that all restarts by one torchrun share and no other launch has; None without torchrun."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run_id == "none":
        return f"agent {os.getppid()}"
    return run_id


def restarted() -> bool:
    """Return whether torchrun started this process again after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _slurm() -> None:
    """Set torchrun's variables from Slurm's, for srun with one task for each GPU."""
    try:
        rank, size, local = (os.environ[k] for k in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
        nodes = os.environ["SLURM_NODELIST"]
    except KeyError as missing:
        raise LaunchError(f"--launcher slurm needs srun: {missing.args[0]} is not set") from None
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", nodes]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise LaunchError(f"--launcher slurm: {' '.join(command)} fails ({error}); set MASTER_ADDR") from None
        os.environ["MASTER_ADDR"] = listed[0]
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ |= {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local}


class Tally:
    """Sum counters over processes that never wait for each other while they work.

    Each process posts its counters as often as it likes. One sum at a time runs in the background; the next begins with
    the first post after the last sum has arrived. A process that has finished its work keeps posting until all have
    finished: so all take part in the same rounds and leave after the same one.
    """

    def __init__(self, world: World, counters: int) -> None:
        self._world = world
        self._totals = [0] * (counters + 1)
        self._sent: Tensor | None = None
        self._round: Any = None

    def post(self, counters: Sequence[int]) -> list[int]:
        """Post this process's counters and return the newest sums, in the same order. Does not wait."""
        if self._world.size == 1:
            return list(counters)
        if self._round is None:
            self._begin(counters, finished=False)
        elif self._round.is_completed():
            self._end()
            self._begin(counters, finished=False)
        return self._totals[:-1]

    def finish(self, counters: Sequence[int], show: Callable[[list[int]], None] | None = None) -> list[int]:
        """Post the last counters, wait until all processes have, and return the sums, the same in each process.

        show: is called with newer sums as they arrive.
        """
        if self._world.size == 1:
            return list(counters)
        while True:
            if self._round is not None:
                self._end()
                if self._totals[-1] == self._world.size:
                    return self._totals[:-1]
                if show is not None:
                    show(self._totals[:-1])
            self._begin(counters, finished=True)

    def _begin(self, counters: Sequence[int], finished: bool) -> None:
        self._sent = torch.tensor([*counters, int(finished)])
        with peers():
            self._round = torch.distributed.all_reduce(self._sent, async_op=True)

    def _end(self) -> None:
        assert self._sent is not None
        with peers():
            self._round.wait()
        self._totals = self._sent.tolist()
