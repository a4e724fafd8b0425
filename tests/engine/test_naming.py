"""What the construction of a part may fail with: options are user errors, bugs in its code keep their traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

from sam4ir.config.schema import Block
from sam4ir.engine.build import BuildError, PartFaultError, build_part, naming
from sam4ir.engine.train.schedule import cosine_restart, cosine_restart_cyclic, linear, true_cosine
from sam4ir.errors import UserError
from sam4ir.registry import SCHEDULES, Registry


def odd_width(width: int) -> int:
    if width % 2:
        raise ValueError(f"width {width} must be even")
    return width


def missing_file(width: int) -> bytes:
    with open(f"/nowhere/{width}", "rb") as file:
        return file.read()


def refused_by_torch(width: int) -> torch.Tensor:
    return torch.zeros(-width)


def missing_entry(width: int) -> int:
    return {"a": 1}[f"width {width}"]


def division(width: int) -> float:
    return 1 / (width - width)


def wrong_operand(width: int) -> int:
    return width + None  # type: ignore[operator]


def unfinished(width: int) -> int:
    raise NotImplementedError(f"width {width}")


def build(part: Callable[..., object]) -> object:
    return build_part(Registry("part", {"Part": part}), Block(type="Part", width=3), "network_g")


@pytest.mark.parametrize("part", [odd_width, missing_file, refused_by_torch])
def test_what_the_options_ask_for_is_a_user_error_with_its_key(part: Callable[..., object]) -> None:
    with pytest.raises(BuildError, match=r"^network_g: "):
        build(part)


def full_disk(width: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "standard output")


def test_a_full_disk_is_no_fault_of_the_option() -> None:
    with pytest.raises(OSError, match=r"^\[Errno 28\] .*'standard output'"):
        build(full_disk)


@pytest.mark.parametrize("part", [missing_entry, division, wrong_operand, unfinished])
def test_a_bug_in_a_part_names_the_key_and_is_no_user_error(part: Callable[..., object]) -> None:
    with pytest.raises(PartFaultError, match=r"^network_g: \w+Error: ") as caught:
        build(part)
    assert not isinstance(caught.value, UserError)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is not None


def test_the_innermost_key_is_named() -> None:
    with pytest.raises(PartFaultError, match=r"^inner: KeyError"), naming("outer"), naming("inner"):
        raise KeyError("x")


@pytest.mark.parametrize(
    "schedule",
    [
        partial(true_cosine, T_max=0),
        partial(linear, total_iter=0),
        partial(cosine_restart, periods=[0]),
        partial(cosine_restart, periods=[], restart_weights=[]),
        partial(cosine_restart_cyclic, periods=[-4]),
    ],
)
def test_a_period_that_divides_by_nothing_is_the_users(schedule: Callable[..., float]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        schedule(1, 1e-3)


def test_an_argument_that_the_part_lacks_is_the_users() -> None:
    with pytest.raises(UserError, match="width"):
        build_part(SCHEDULES, Block(type="ConstantLR", width=3), "train.scheduler", iteration=0, base_lr=1.0)
