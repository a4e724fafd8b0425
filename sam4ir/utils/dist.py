"""The processes of a run: the world that torchrun or Slurm started, or this process alone.

One code path for one and many: a World of size 1 answers every question without any communication.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import subprocess
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
_TORCHRUN = "torchrun --nproc_per_node=N train.py -opt FILE"


class LaunchError(UserError):
    """A launcher that is asked for without what it sets."""


class PeerError(ConnectionError):
    """The other processes of the run cannot be reached, most often because one of them has stopped."""

    def __init__(self, reason: str = "") -> None:
        found = f" ({reason.strip().splitlines()[0][:200]})" if reason.strip() else ""
        super().__init__(
            f"the other processes of this run are lost{found}; where one has stopped, its message says why"
        )


@dataclass(frozen=True)
class World:
    """Processes that train or score together.

    rank: this one's number; local_rank: its number on its machine; cuda_index: the CUDA device that is its own.
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
        """Element-wise mean over the processes; the same bits in each."""
        if self.size == 1:
            return values
        values = values.clone()
        with peers():
            torch.distributed.all_reduce(values)
        return values / self.size

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value])
        with peers():
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in each of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers():
            torch.distributed.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """The main process's value, in each of them."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        with peers():
            torch.distributed.broadcast_object_list(values)
        return values[0]

    def main_first(self, action: Callable[[], None]) -> None:
        """Run `action` in the main process; where it fails there the others do not go on either."""
        failure: Exception | None = None
        if self.main:
            try:
                action()
            except (ValueError, OSError) as error:
                failure = error
        if self.largest(int(failure is not None)):
            raise failure or PeerError("the main process cannot begin")

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.largest(0)

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the main one's buffers (running statistics differ, since each saw other images)."""
        for buffer in network.buffers() if self.size > 1 else ():
            with peers():
                torch.distributed.broadcast(buffer.data, 0)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Inside the block, what breaks between the processes is a PeerError."""
    try:
        yield
    except RuntimeError as error:
        if re.search(r"(?i)connection|gloo|nccl|process ?group|socket|heartbeat", str(error)):
            raise PeerError(str(error)) from error
        raise


@contextlib.contextmanager
def world(launcher: Launcher, cuda: bool) -> Iterator[World]:
    """Join the processes that torchrun or Slurm started; a World of one where nobody started any.

    launcher: 'none' joins what torchrun's environment variables tell, if they are there; 'pytorch' insists on them;
    'slurm' makes them of Slurm's. cuda: collectives of CUDA tensors go through NCCL; all others through gloo.
    Raises LaunchError where the launcher's variables are missing, and where a process finds no CUDA device of its own.
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
    if cuda:
        torch.cuda.set_device(joined.cuda_index)
    with peers():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
    yield joined
    torch.distributed.destroy_process_group()  # not after an error: it would wait for those that have gone


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _cuda_index(local_rank: int, launcher: Launcher) -> int:
    """The device of a local rank; the only one where Slurm shows each of its tasks one."""
    found = torch.cuda.device_count()
    if launcher == "slurm" and found == 1:
        return 0
    if local_rank >= found:
        raise LaunchError(
            f"process {local_rank} of this machine finds {found} CUDA devices; start as many processes as there are "
            "(torchrun --nproc_per_node), or set device: cpu"
        )
    return local_rank


def launch() -> str | None:
    """What all restarts by one torchrun share, and no other launch; None without torchrun."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    own = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return own if own != "none" else f"agent {os.getppid()}"


def restarted() -> bool:
    """Whether torchrun started this process anew after a failure (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _slurm() -> None:
    """torchrun's variables from Slurm's, for srun with one task a GPU."""
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
    """Sums of counters over processes that never wait for each other while they work.

    Each process posts its counters as often as it likes; a sum goes round in the background, and the next begins with
    the first post after it has come back. A process that has finished its work keeps posting until all have, so all
    take part in the same rounds and leave after the same one.
    """

    def __init__(self, world: World, counters: int) -> None:
        self._world = world
        self._totals = [0] * (counters + 1)
        self._sent: Tensor | None = None
        self._round: Any = None

    def post(self, counters: Sequence[int]) -> list[int]:
        """Say this process's counters; returns the newest sums that are known, in their order. Does not wait."""
        if self._world.size == 1:
            return list(counters)
        if self._round is None:
            self._begin(counters, finished=False)
        elif self._round.is_completed():
            self._end()
            self._begin(counters, finished=False)
        return self._totals[:-1]

    def finish(self, counters: Sequence[int], show: Callable[[list[int]], None] | None = None) -> list[int]:
        """Say the last counters and wait until all processes have; the sums, the same in each. show: newer sums."""
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
