"""The command `sam4ir`: its table, its help, the scripts that start its commands, and how it names itself."""

from __future__ import annotations

import functools
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sam4ir
from sam4ir.cli import benchmark, masks, prepare, restore
from sam4ir.cli.main import COMMANDS, main
from sam4ir.utils import cli

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "train": "train.py",
    "test": "test.py",
    "restore": "scripts/restore.py",
    "make-masks": "scripts/make_masks.py",
    "masks": "scripts/masks.py",
    "prepare": "scripts/prepare_data.py",
    "weights": "scripts/fetch_weights.py",
    "compare": "scripts/compare.py",
    "benchmark": "scripts/benchmark.py",
    "quickstart": "scripts/quickstart.py",
}


def help_of(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The help that a command line prints: that of a script, or of `sam4ir`, with one space between words."""
    monkeypatch.setattr(sys, "argv", [words[0], *words[1:], "--help"])
    start: Callable[[], object] = main
    if words[0] != "sam4ir":
        start = functools.partial(runpy.run_path, words[0], run_name="__main__")
    with pytest.raises(SystemExit) as done:
        start()
    assert done.value.code == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    script = help_of([str(ROOT / SCRIPTS[name])], monkeypatch, capsys)
    command = help_of(["sam4ir", name], monkeypatch, capsys)
    usage = f"usage: {Path(SCRIPTS[name]).name} "
    assert script.startswith(usage)
    assert script.replace(usage, f"usage: sam4ir {name} ") == command


def test_every_script_of_the_checkout_is_compared_with_its_command() -> None:
    assert sorted(SCRIPTS.values()) == sorted(
        ["train.py", "test.py", *(f"scripts/{path.name}" for path in ROOT.glob("scripts/*.py"))]
    )


def test_help_loads_nothing_heavy() -> None:
    """A command's own modules are light; what works is imported when the work begins."""
    heavy = ("torch", "numpy", "cv2", "pydantic", "yaml", "lmdb", "skimage", "tqdm")
    code = f"""
import sys
from sam4ir.cli.main import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as done:
        assert done.code == 0, name
    loaded = [module for module in {heavy} if module in sys.modules]
    assert not loaded, (name, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_choices_of_flags_are_those_of_the_code() -> None:
    from sam4ir.benchmarks.networks import RECIPES as NETWORKS
    from sam4ir.benchmarks.run import APART, SUBJECTS
    from sam4ir.data.masks.control import CONTROL_KINDS
    from sam4ir.data.masks.exporter import EXPORT_SUFFIXES
    from sam4ir.data.masks.formats import FORMATS
    from sam4ir.data.masks.meta import SOURCES
    from sam4ir.data.prepare.recipes import RECIPES
    from sam4ir.diffusion.samplers import SAMPLERS
    from sam4ir.utils.picture_formats import FORMATS as IMAGE_FORMATS

    assert tuple(sorted(SAMPLERS)) == restore.SAMPLERS
    assert tuple(IMAGE_FORMATS) == restore.FORMATS
    assert masks.FORMATS == FORMATS
    assert tuple(EXPORT_SUFFIXES) == masks.EXPORT_FORMATS
    assert masks.SOURCES == SOURCES
    assert masks.CONTROL_KINDS == CONTROL_KINDS
    assert (*SUBJECTS, *APART, "all") == benchmark.SUBJECTS
    assert tuple(NETWORKS) == benchmark.NETWORKS
    described = {}
    for name, phases in RECIPES.items():
        first = next(iter(phases.values()))
        described[name] = (tuple(phases), (first.__doc__ or "").partition("\n")[0])
    assert described == prepare.SETS


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_list_of_commands_has_a_line_for_each(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, command.help] for line in lines)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("retsore", "did you mean 'restore'"),
        ("make_masks", "did you mean 'make-masks'"),
        ("train.py", "did you mean 'train'"),
        ("xyz", "known: train, test"),
        ("-opt", "the command comes first"),
    ],
)
def test_an_unknown_command_is_a_user_error(word: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert advice in error


def test_python_m_runs_it_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "sam4ir", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"sam4ir {sam4ir.__version__}\n"


@pytest.mark.parametrize(
    ("program", "typed", "usage"),
    [
        ("/usr/bin/sam4ir", "sam4ir restore", "sam4ir restore"),
        ("/lib/sam4ir/__main__.py", f"{Path(sys.executable).name} -m sam4ir restore", "sam4ir restore"),
        ("scripts/restore.py", f"{Path(sys.executable).name} scripts/restore.py restore", "restore.py"),
    ],
)
def test_reports_and_usage_name_what_was_typed(
    program: str, typed: str, usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "restore"])
    assert cli.Parser().prog == usage

    def fault() -> int:
        raise KeyError("x")

    assert cli.run(fault) == 1
    assert f"  command: {typed}\n" in capsys.readouterr().err
