"""Commands that messages show come back from a shell as they are meant."""

from __future__ import annotations

import shlex
import subprocess

import pytest
import yaml

from sam4ir.utils.shell import command_words, force_yml, yaml_line

NAMES = (
    "plain",
    "with space",
    "it's",
    'a"b',
    "$HOME",
    "a;b",
    "~",
    "*",
    "a\\b",
    "--x",
    "",
    "a: b",
    "{x}",
    "2024_2",
    "#1",
)


@pytest.mark.parametrize("name", NAMES)
def test_bash_reads_back_the_words(name: str) -> None:
    line = f"printf '%s\\n' {command_words('masks.py', name)}"
    printed = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout
    assert printed == f"masks.py\n{name}\n"


@pytest.mark.parametrize("value", [*NAMES, None, 3, [1, 2]])
def test_a_forced_key_comes_back_through_shell_and_yaml(value: object) -> None:
    flag, assignment = shlex.split(force_yml("a:b", value))
    assert flag == "--force_yml"
    key, _, text = assignment.partition("=")
    assert key == "a:b"
    assert yaml.safe_load(text) == value


def test_a_key_is_removed_by_null_which_no_shell_expands() -> None:
    assert force_yml("train", None) == "--force_yml train=null"


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_yaml_comes_back(name: str) -> None:
    line = yaml_line({"store": name})
    assert "\n" not in line
    assert yaml.safe_load(f"masks: {line}") == {"masks": {"store": name}}
