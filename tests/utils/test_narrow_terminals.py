"""Log lines in a terminal that is narrower than they are."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import termios

import pytest

from sam4ir.utils.streams import ConsoleHandler, narrowed

LINE = (
    "2026-01-31 12:00:00,000 INFO: [rain][epoch:  3, iter:   1,200, lr:(2.000e-04,2.000e-04,)]\n"
    "    [eta: 0:12:30, time (data): 0.250 (0.010), 31.9 images/s] psnr: 27.31 l_spd: 1.2300e-02 peak memory: 1.5 GiB"
)


def test_a_line_that_fits_stays_as_it_is() -> None:
    assert narrowed(LINE, 120) == LINE
    assert narrowed("", 40) == ""
    assert narrowed(" " * 60, 40) == " " * 60


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_lines_are_broken_between_values(columns: int) -> None:
    lines = narrowed(LINE, columns).split("\n")
    assert max(map(len, lines)) <= columns
    assert " ".join(narrowed(LINE, columns).split()) == " ".join(LINE.split())
    for value in ("psnr: 27.31", "l_spd: 1.2300e-02", "memory: 1.5 GiB"):
        assert any(value in line for line in lines)
    assert all(line.startswith("    ") for line in lines[1:])


def test_what_has_no_blank_is_not_cut() -> None:
    assert narrowed(f"written to {'/folder' * 20}", 40).split("\n") == ["written to", f"    {'/folder' * 20}"]


def test_a_terminal_gets_lines_of_its_width_and_a_file_the_whole_ones(tmp_path) -> None:
    record = logging.LogRecord("sam4ir", logging.INFO, "", 0, LINE, None, None)
    main, second = os.openpty()
    fcntl.ioctl(second, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 50, 0, 0))
    with os.fdopen(second, "w") as terminal, (tmp_path / "log").open("w") as file:
        assert max(map(len, ConsoleHandler(terminal).format(record).split("\n"))) <= 50
        assert ConsoleHandler(file).format(record) == LINE
    os.close(main)
