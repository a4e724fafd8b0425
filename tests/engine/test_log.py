"""The journal's files: a resumed run leaves the bytes of an unbroken one, and a full disk is one error."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sam4ir.engine.log import GrowingTable, JsonLines, LogFile, console, set_aside_journal
from sam4ir.engine.trackers.tensorboard import TensorBoardTracker
from sam4ir.errors import FileError
from sam4ir.utils import files
from sam4ir.utils.streams import ConsoleHandler
from sam4ir.utils.tables import read_csv

IMAGES = ("a", "=1+1", "b\nc", "d\u2028e", "'f", "caf\udce9")


def rows(iteration: int) -> list[dict[str, object]]:
    return [{"iter": iteration, "image": image, "psnr": iteration + 0.5} for image in IMAGES]


def grow(path: Path, keep_until: int, *iterations: int) -> bytes:
    table = GrowingTable(path, ["image", "psnr"], keep_until)
    for iteration in iterations:
        table.write(rows(iteration))
    table.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data,
        lambda data: data[:-1],
        lambda data: data[:-30],
        lambda data: data.replace(b"\r\n", b"\n"),  # as an earlier version resumed
        lambda data: b"",
        lambda data: data[:5],
    ],
    ids=["whole", "torn line end", "torn row", "other line ends", "empty", "torn head"],
)
def test_a_resumed_table_has_the_bytes_of_an_unbroken_one(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    want = grow(tmp_path / "whole.csv", 0, 4, 8)
    begun = damage(grow(tmp_path / "t.csv", 0, 4, 8))
    (tmp_path / "t.csv").write_bytes(begun)
    rest = (8,) if len(begun) > 10 else (4, 8)
    assert grow(tmp_path / "t.csv", 4, *rest) == want.replace(b'"b\r\nc"', b'"b\nc"')
    assert [path.name for path in tmp_path.glob("t.csv?*")] == []
    assert [row.cells["image"] for row in read_csv(tmp_path / "t.csv").rows] == [*IMAGES, *IMAGES]


def test_the_head_is_in_the_file_before_any_row(tmp_path: Path) -> None:
    GrowingTable(tmp_path / "t.csv", ["image"], 0)
    assert (tmp_path / "t.csv").read_bytes() == b"iter,image\r\n"


def test_a_table_of_other_metrics_is_set_aside_if_it_has_rows(tmp_path: Path) -> None:
    old = grow(tmp_path / "t.csv", 0, 4)
    GrowingTable(tmp_path / "t.csv", ["image", "ssim"], 4).close()
    GrowingTable(tmp_path / "t.csv", ["image", "lpips"], 4).close()
    assert (tmp_path / "t.csv").read_bytes() == b"iter,image,lpips\r\n"
    assert [path.read_bytes() for path in tmp_path.glob("t.csv?*")] == [old]


@pytest.mark.parametrize("torn", ["", '{"iter": 3, "l_p', '{"iter": 3}', "\0" * 9])
def test_resumed_json_lines_have_the_bytes_of_unbroken_ones(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = JsonLines(path, 0, 0)
    for iteration in (1, 2):
        lines.write({"iter": iteration, "images": IMAGES})
    lines.close()
    want = path.read_bytes()
    path.write_bytes(want.replace(b"\n", b"\r\n") + torn.encode())
    JsonLines(path, 2, 2).close()
    assert path.read_bytes() == want
    assert [json.loads(line)["images"] for line in want.splitlines()] == [list(IMAGES)] * 2


def test_a_journal_without_a_record_is_not_set_aside(tmp_path: Path) -> None:
    for name, empty in {"log.jsonl": b"", "validation.csv": b"iter,image\r\n"}.items():
        (tmp_path / name).write_bytes(empty)
        assert set_aside_journal(tmp_path / name) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "validation.csv").write_bytes(b"iter,image\r\n4,a\r\n")
    assert set_aside_journal(tmp_path / "validation.csv") == tmp_path / "validation.csv.1"


def full(descriptor: int, data: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_file_on_a_full_disk_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = console(tmp_path / "train.log")
    logger.info("first")
    monkeypatch.setattr(files, "_append", full)
    with pytest.raises(FileError, match=r"train\.log: cannot be written .*free space"):
        logger.info("second")
    logger.error("third")  # so that the run can end with what it has
    console()
    assert capsys.readouterr().err == ""
    assert (tmp_path / "train.log").read_text().endswith("INFO: first\n")


def test_a_log_file_takes_file_names_that_are_no_text(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "train.log")
    handler.emit(logging.LogRecord("a", logging.INFO, "", 0, "caf\udce9", None, None))
    handler.close()
    assert (tmp_path / "train.log").read_bytes() == b"caf\xe9\n"


def test_a_console_on_a_full_disk_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:
        handler = ConsoleHandler(stream)
        record = logging.LogRecord("a", logging.INFO, "", 0, "x", None, None)
        with pytest.raises(OSError, match="No space left"):
            handler.emit(record)
        monkeypatch.setattr(stream, "close", lambda: None)


def add_until_noticed(scalars: TensorBoardTracker) -> None:
    for step in range(2, 1000):
        scalars.scalars(step, {"a": 1.0})
        time.sleep(0.01)  # TensorBoard's thread writes meanwhile


def test_what_tensorboard_cannot_write_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    scalars = TensorBoardTracker(tmp_path / "tb", 0)
    scalars.scalars(1, {"a": 1.0})
    scalars._writer.flush()
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    def append(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalFileSystem, "append", append)
    with pytest.raises(FileError, match=r"tb: cannot be written .*free space"):
        add_until_noticed(scalars)
    scalars.close()
    assert capsys.readouterr().err == ""
