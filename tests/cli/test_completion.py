"""`sam4ir completion`: a real bash completes commands, flags, choices and names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam4ir.cli.completion import SHELLS
from sam4ir.cli.main import main

pytest.importorskip("argcomplete")
ROOT = Path(__file__).resolve().parents[2]
# The function that `complete` names for sam4ir, called as bash calls it when Tab is pressed.
ASK = """
eval "$(sam4ir completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9
COMP_POINT=${#COMP_LINE}
definition=$(complete -p sam4ir)
function=$(echo "$definition" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function sam4ir "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has `sam4ir`."""
    command = tmp_path / "bin" / "sam4ir"
    command.parent.mkdir()
    start = "import sys; from sam4ir.cli.main import main; sys.exit(main())"
    command.write_text(f"#!{sys.executable}\n{start}\n")
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mas"], ["masks"]),
        (["restore", "--sampler", "dd"], ["ddim", "ddpm"]),
        (["masks", "export", "--form"], ["--format"]),
        (["options", "copy", "train/sr/rrdb_x"], ["train/sr/rrdb_x4"]),
        (["options", "copy", "sr/rrdb_x"], ["sr/rrdb_x4"]),
        (["train", "-opt", "opt"], ["options.yml"]),
    ],
    ids=" ".join,
)
def test_bash_completes(words: list[str], expected: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "options.yml").touch()
    done = subprocess.run(
        ["bash", "-c", ASK, "ask", "sam4ir", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.strip() for line in done.stdout.splitlines()] == expected, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_lines_that_ask_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    lines = capsys.readouterr().out
    assert "sam4ir" in lines
    assert "_ARGCOMPLETE" in lines
