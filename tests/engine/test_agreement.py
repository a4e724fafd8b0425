"""Processes that see other options, code, data, masks or weights end with one message that names the difference."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import World as SmallWorld
from conftest import photograph

from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.sources import open_source
from sam4ir.engine import agreement
from sam4ir.engine.agreement import AgreementError, Facts, agree
from sam4ir.engine.build import build_dataset
from sam4ir.utils.dist import World
from sam4ir.utils.image import write_image


@dataclass
class Exchange:
    """What several threads gather in place of processes."""

    size: int
    barrier: threading.Barrier = field(init=False)
    values: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        gathered = [self.values[each] for each in range(self.size)]
        self.barrier.wait()
        return gathered


def messages(*makers_of_ranks: Sequence[Callable[[], Facts]]) -> set[str]:
    """The messages with which the processes end; '' of one that goes on."""
    exchange = Exchange(len(makers_of_ranks))
    texts: dict[int, str] = {}

    class Peer(World):
        def gather(self, value: Any) -> list[Any]:
            return exchange.gather(self.rank, value)

    def process(rank: int) -> None:
        try:
            agree(Peer(rank, len(makers_of_ranks)), *makers_of_ranks[rank])
            texts[rank] = ""
        except AgreementError as error:
            texts[rank] = str(error)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(makers_of_ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == len(makers_of_ranks)
    return set(texts.values())


def one(*makers_of_ranks: Callable[[], Facts]) -> str:
    (message,) = messages(*([make] for make in makers_of_ranks))
    return message


def folder(path: Path, *changes: int, number: int = 10) -> Path:
    for index in range(number):
        write_image(path / f"{index}.png", photograph(index + (100 if index in changes else 0))[:24, :24])
    return path


def test_a_process_by_itself_computes_nothing() -> None:
    def never() -> Facts:
        raise AssertionError

    agree(World(), never)


def test_options_that_differ_are_named(world: SmallWorld) -> None:
    first = agreement.option_facts(world.options(False))
    other = agreement.option_facts(world.options(False, ("train:total_iter=100", "manual_seed=3")))
    assert one(lambda: first, lambda: first) == ""
    text = one(lambda: first, lambda: first, lambda: other)
    assert "rank 2 sees other options: manual_seed 3, rank 0: " in text
    assert "train.total_iter 100, rank 0: 8" in text


@pytest.mark.parametrize(
    "override",
    [
        "device=auto",
        "datasets:train:num_worker_per_gpu=3",
        "datasets:train:dataroot_gt=/scratch/node1/gt",
        "path:root=/scratch",
        "num_gpu=4",
    ],
)
def test_what_belongs_to_a_machine_may_differ(world: SmallWorld, override: str) -> None:
    first = agreement.option_facts(world.options(False))
    other = agreement.option_facts(world.options(False, (override,)))
    assert one(lambda: first, lambda: other) == ""


def test_data_sets_that_differ_are_named(tmp_path: Path, world: SmallWorld) -> None:
    def facts(path: Path) -> Callable[[], Facts]:
        options = world.options(False, (f"datasets:train:dataroot_gt={path}", "datasets:train:gt_size=16"))
        data = build_dataset("train", options.datasets["train"], 1)
        return lambda: agreement.dataset_facts("train", data, 0)

    whole = facts(folder(tmp_path / "a"))
    assert one(whole, facts(folder(tmp_path / "copy"))) == ""
    assert "rank 1 lists 9 images in data set train, rank 0: 10; first difference: 9" in one(
        whole, facts(folder(tmp_path / "b", number=9))
    )
    assert "rank 1 reads other pixels in data set train: 0" in one(whole, facts(folder(tmp_path / "c", 0)))
    damaged = folder(tmp_path / "d")
    (damaged / "0.png").write_bytes(b"\x89PNG")
    assert "rank 1 reads other pixels in data set train: 0" in one(whole, facts(damaged))


def test_images_of_make_masks_that_differ_are_named(tmp_path: Path) -> None:
    def facts(path: Path) -> Callable[[], Facts]:
        source = open_source(path, None, "--input")
        return lambda: agreement.source_facts("--input", source, source.keys)

    whole = facts(folder(tmp_path / "a"))
    assert one(whole, facts(folder(tmp_path / "copy"))) == ""
    assert "rank 1 lists 11 images in --input, rank 0: 10" in one(whole, facts(folder(tmp_path / "b", number=11)))
    assert "rank 1 reads other pixels in --input: 9" in one(whole, facts(folder(tmp_path / "c", 9)))


def test_masks_that_differ_are_named(tmp_path: Path) -> None:
    def facts(name: str, area: int, **meta: object) -> Callable[[], Facts]:
        content = {"generator": "g", "checkpoint": None, "checkpoint_sha256": None, "settings": {}, "source": "gt"}
        covered = np.zeros((8, 8), bool)
        covered[:area] = True
        with MaskStoreWriter(tmp_path / name, {**content, **meta}) as writer:
            for key in ("a", "b"):
                writer.put(key, [{"segmentation": covered}])
        store = MaskStore(tmp_path / name)
        return lambda: agreement.mask_facts("train", store, ["a", "b"])

    first = facts("1.lmdb", 3)
    assert one(first, facts("2.lmdb", 3, made_on="another machine")) == ""
    assert "rank 1 sees other masks of data set train: a, b" in one(first, facts("3.lmdb", 4))
    assert "rank 1 sees other masks of data set train: source" in one(first, facts("4.lmdb", 3, source="lq"))


def test_code_versions_and_weights_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = agreement.code_facts()
    assert "sam4ir/losses/pixel.py" in code.items
    edited = Facts(code.subject, {**code.items, "sam4ir/losses/pixel.py": "0"}, code.form, code.remedy)
    assert "rank 1 sees other code: sam4ir/losses/pixel.py;" in one(lambda: code, lambda: edited)

    plugin = tmp_path / "agreement_plugin.py"
    plugin.write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("agreement_plugin")
    first = agreement.code_facts([str(plugin)])
    plugin.write_text("A = 2\n")
    other = agreement.code_facts(["agreement_plugin"])
    assert "rank 1 sees other code: plugin agreement_plugin.py" in one(lambda: first, lambda: other)

    versions = agreement.version_facts()
    older = Facts(versions.subject, {**versions.items, "torch": "1.0"}, versions.form, versions.remedy)
    text = one(lambda: versions, lambda: older)
    assert f"rank 1 sees other versions: torch 1.0, rank 0: {torch.__version__}" in text

    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(name.encode())
    weights = [agreement.weights_facts({"path.pretrain_network_g": str(tmp_path / n)}) for n in ("a.pth", "b.pth")]
    assert "rank 1 sees other weights: path.pretrain_network_g" in one(lambda: weights[0], lambda: weights[1])


def test_all_differences_are_in_one_message() -> None:
    def facts(value: str) -> list[Callable[[], Facts]]:
        return [
            lambda: Facts("options", {"a": value}, "values", "mend it"),
            lambda: Facts("code", {"b": value}, "content", "mend it"),
        ]

    (text,) = messages(facts("1"), facts("2"))
    assert "options: a 2, rank 0: 1" in text
    assert "code: b" in text


def test_a_checkpoint_of_other_weights_is_named() -> None:
    networks = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    facts = [agreement.network_facts({"g": network}, {"iteration": 4}) for network in networks]
    assert one(lambda: facts[0], lambda: facts[0]) == ""
    assert "rank 1 sees other checkpoint: net_g" in one(lambda: facts[0], lambda: facts[1])


def test_a_hundred_thousand_keys_take_a_second() -> None:
    items = {f"folder/image_{number:06}": "" for number in range(100_000)}
    facts = Facts("data set train", items, "names", "")
    begun = time.perf_counter()
    assert one(lambda: facts, lambda: facts) == ""
    assert time.perf_counter() - begun < 5
