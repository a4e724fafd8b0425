"""The device of a process: which one a name means, and what a refusal names."""

from __future__ import annotations

import pytest
import torch

from sam4ir.engine.devices import DeviceError, choose_device, wants_cuda
from sam4ir.utils.dist import World


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(("name", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_process_by_itself_takes_the_device_of_the_name(two_cards: None, name: str, device: str) -> None:
    assert choose_device(name) == torch.device(device)
    assert wants_cuda(name) == device.startswith("cuda")


def test_each_of_several_processes_takes_its_own_card(two_cards: None) -> None:
    assert choose_device("auto", World(rank=1, size=2, cuda_index=1)) == torch.device("cuda", 1)
    assert choose_device("cpu", World(rank=1, size=2, cuda_index=1)) == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"device: cuda:1 is one device, but 2 processes ask for it; take cuda"):
        choose_device("cuda:1", World(rank=1, size=2))


def test_auto_takes_the_processor_where_there_is_no_card(no_card: None) -> None:
    assert choose_device("auto") == torch.device("cpu")
    assert not wants_cuda("auto")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "cuda is asked for, but torch finds 0 CUDA devices; take cpu or auto"),
        ("abacus", "'abacus' is no device"),
    ],
)
@pytest.mark.parametrize("place", ["device", "--device"])
def test_a_device_that_is_not_there_is_refused_with_the_key_or_flag(
    no_card: None, name: str, message: str, place: str
) -> None:
    with pytest.raises(DeviceError) as refusal:
        choose_device(name, place=place)
    assert str(refusal.value).startswith(f"{place}: {message}")
