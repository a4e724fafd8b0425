"""Command lines: a user error is one line, a bug keeps its traceback, and flags have one spelling."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam4ir.cli.main import COMMANDS
from sam4ir.errors import UserError
from sam4ir.utils import cli


@pytest.fixture(autouse=True)
def _no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "0")  # set, so that it is set back after a test of --traceback
    monkeypatch.delenv("RANK", raising=False)


def failing(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


USER_ERRORS = (
    UserError("a.yml: no such key"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yml"),
    PermissionError(errno.EACCES, "Permission denied", "a.yml"),
    ConnectionError("the main process cannot begin"),
)
BUGS = (
    ValueError("zip() argument 2 is shorter than argument 1"),
    KeyError("x"),
    AssertionError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    OSError("a library's own"),
    OSError(errno.EBADF, "Bad file descriptor"),
)


@pytest.mark.parametrize("error", USER_ERRORS, ids=repr)
def test_a_user_error_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(error)) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EDQUOT, "free space of your quota"), (errno.EFBIG, "ulimit -f")],
)
@pytest.mark.parametrize("name", [None, "standard output", "table.csv"])
def test_storage_that_takes_no_more_is_one_line_with_a_remedy(
    number: int, remedy: str, name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(failing(OSError(number, os.strerror(number), name))) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: {name or 'a file'}: cannot be written ({os.strerror(number)}")
    assert remedy in text
    assert text.count("\n") == 1


def test_memory_that_runs_out_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(MemoryError())) == 2
    assert capsys.readouterr().err == "error: memory ran out (MemoryError)\n"


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_a_bug_keeps_its_traceback_and_says_how_to_report_it(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", "an option file.yml"])
    assert cli.run(failing(error)) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert f"{type(error).__name__}" in text
    assert "fault of sam4ir" in text
    assert "train.py -opt 'an option file.yml'" in text
    assert f"attached: {Path.cwd() / 'an option file.yml'}" in text
    assert "Python 3." in text


def test_the_variable_shows_the_traceback_of_a_user_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.TRACEBACK, "1")
    assert cli.run(failing(UserError("a.yml: no such key"))) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("error: a.yml: no such key\n")


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("error", [UserError("no such key"), ValueError("a slip")], ids=repr)
def test_torchrun_learns_of_both(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    cli.run(failing(error))
    content = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))
    assert content["message"]["message"] == f"{type(error).__name__}: {error}"


def test_underscores_in_flags_and_nowhere_else_become_dashes() -> None:
    words = ["--force_yml", "a:b_c=d_e", "--tile_size=x_y", "-opt", "a_b.yml", "--", "--as_it_is"]
    expected = ["--force-yml", "a:b_c=d_e", "--tile-size=x_y", "-opt", "a_b.yml", "--", "--as_it_is"]
    assert cli.kebab_case(words) == expected


class _Caught(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command builds, caught when it begins to parse."""

    def catch(self: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(self)

    monkeypatch.setattr(cli.Parser, "parse_known_args", catch)
    module = importlib.import_module(f"sam4ir.cli.{name}")
    with pytest.raises(_Caught) as caught:
        module.main([])
    return caught.value.parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("name", [command.module for command in COMMANDS.values()])
def test_every_flag_has_a_kebab_spelling_and_every_parser_the_traceback(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parser in parsers(parser_of(name, monkeypatch)):
        assert isinstance(parser, cli.Parser)
        assert any("--traceback" in action.option_strings for action in parser._actions)
        for action in parser._actions:
            flags = [flag for flag in action.option_strings if flag.startswith("--")]
            for flag in flags:
                assert flag.replace("_", "-") in flags


OLD_SPELLINGS = {
    "train": ("--force_yml", "--auto_resume", "--local_rank"),
    "test": ("--force_yml", "--local_rank"),
    "benchmark": ("--reference_bf16", "--points_per_side"),
    "compare": ("--lower_is_better",),
    "make_masks": ("--points_per_batch", "--pred_iou_thresh", "--point_grids", "--local_rank"),
    "prepare": ("--filename_tmpl",),
    "restore": ("--self_ensemble",),
}


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in OLD_SPELLINGS.items() for flag in flags])
def test_the_old_spelling_is_read_as_the_flag(name: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f for parser in parsers(parser_of(name, monkeypatch)) for a in parser._actions for f in a.option_strings}
    assert set(cli.kebab_case([flag])) <= known


def test_an_old_spelling_and_an_abbreviation_give_the_same_values() -> None:
    parser = cli.Parser()
    parser.add_argument("--self-ensemble", action="store_true")
    for flag in ("--self-ensemble", "--self_ensemble", "--self_ens"):
        assert parser.parse_args([flag]).self_ensemble


def test_an_abbreviation_means_what_it_did_before_traceback_was_a_flag() -> None:
    parser = cli.Parser()
    parser.add_argument("--tile")
    parser.add_argument("--force-yml", "--force_yml")
    assert parser.parse_args(["--t", "24", "--force", "a=b"]) == argparse.Namespace(tile="24", force_yml="a=b")
    parser.parse_args(["--tra"])
    assert os.environ[cli.TRACEBACK] == "1"


@pytest.mark.parametrize("words", [["--traceback", "info"], ["info", "--traceback"], ["info"]])
def test_traceback_may_stand_before_or_after_the_subcommand(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = cli.Parser()
    parser.add_subparsers(required=True).add_parser("info")
    parser.parse_args(words)
    cli.run(failing(UserError("wrong")))
    assert ("Traceback" in capsys.readouterr().err) == ("--traceback" in words)


@pytest.mark.parametrize("words", [["-opt", "a.yml"], ["--opt", "a.yml"], ["-opt=a.yml"], ["--restore-opt=a.yml"]])
def test_a_bug_names_the_option_file_in_every_form(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    assert cli.run(failing(KeyError("a"))) == 1
    assert f"option file, to be attached: {Path('a.yml').absolute()}" in capsys.readouterr().err
