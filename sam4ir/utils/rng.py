"""Random streams that are pure functions of a seed and of their purpose.

Nothing random in a run depends on earlier draws: the stream of a sample, a step or a network's initial weights follows
from (seed, keys) alone. So resuming needs no saved state, and a new consumer of randomness changes no other one.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derived_seed(seed: int, *keys: int | str) -> int:
    """Return a 63-bit seed made of `seed` and any number of integers and words."""
    text = "\x1f".join([str(int(seed)), *(f"{type(k).__name__}:{k}" for k in keys)])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "little") >> 1


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Return the numpy stream of (seed, keys)."""
    return np.random.Generator(np.random.Philox(key=derived_seed(seed, *keys)))


def seed_defaults(seed: int) -> None:
    """Seed the default generators of random, numpy and torch, for foreign code that draws from them."""
    random.seed(derived_seed(seed, "random"))
    np.random.seed(derived_seed(seed, "numpy") % 2**32)  # noqa: NPY002  (foreign code may use the legacy stream)
    torch.manual_seed(derived_seed(seed, "torch"))


@contextlib.contextmanager
def torch_stream(seed: int, *keys: int | str) -> Iterator[None]:
    """Let torch's default generators (CPU and every CUDA device) run the stream of (seed, keys) inside the block.

    After the block they go on as if it had not been there.
    """
    devices: list[int] = []
    if torch.cuda.is_initialized():
        devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derived_seed(seed, *keys))
        if devices:  # before CUDA starts, torch.manual_seed would queue a seed that outlives this block
            torch.cuda.manual_seed_all(derived_seed(seed, *keys))
        yield
