"""Dockerfile and .dockerignore: what the image copies is there, and it runs the command as a user without rights."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their words, without comments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    pairs = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, words = line.partition(" ")
        pairs.append((name, words.strip()))
    return pairs


def last_stage() -> list[tuple[str, str]]:
    pairs = instructions()
    starts = [number for number, (name, _) in enumerate(pairs) if name == "FROM"]
    return pairs[starts[-1] :]


def copied() -> list[str]:
    """What COPY takes of the checkout."""
    names = []
    for name, words in instructions():
        if name == "COPY" and "--from=" not in words:
            names += words.split()[:-1]
    return names


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out: the last pattern that fits it or a folder above decides."""
    parts = Path(path).parts
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        for count in range(1, len(parts) + 1):
            above = "/".join(parts[:count])
            name = parts[count - 1] if line.startswith("**/") else above
            if fnmatch.fnmatchcase(name, pattern) and ("*" not in pattern or "/" not in name):
                out = not line.startswith("!")
    return out


def test_the_image_copies_only_what_there_is() -> None:
    assert copied()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert not ignored(name), name


@pytest.mark.parametrize(
    "name", [".git/config", "experiments/a/models/x.pth", "datasets/GoPro/a.png", "tests/conftest.py"]
)
def test_weights_data_and_history_stay_out(name: str) -> None:
    assert ignored(name)


@pytest.mark.parametrize("name", ["sam4ir/api/network.py", "options/example.yml", "datasets/quickstart/summary.md"])
def test_the_package_goes_in(name: str) -> None:
    assert not ignored(name)


def test_setup_finds_all_that_it_reads() -> None:
    """What setup.py reads while the package is installed, beside the package itself."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name in re.findall(r'HERE / "([\w./-]+)"', text):
        assert name.split("/")[0] in {copy.split("/")[0] for copy in copied()}, name


def test_the_image_runs_the_command_without_rights() -> None:
    stage = dict(last_stage())
    assert stage["ENTRYPOINT"] == '["sam4ir"]'
    user = stage["USER"].split(":")[0]
    assert user not in ("root", "0")
    names = [name for name, _ in last_stage()]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert not any(name == "USER" for name in names[names.index("ENTRYPOINT") :])


def test_the_image_is_built_in_two_stages_for_cpu_or_cuda() -> None:
    names = [name for name, _ in instructions()]
    assert names.count("FROM") == 2
    assert ("ARG", "TORCH=cpu") in instructions()
    installs = " ".join(words for name, words in instructions() if name == "RUN")
    assert "whl/${TORCH}" in installs
    assert "PIP_NO_CACHE_DIR=1" in " ".join(words for name, words in instructions() if name == "ENV")
    assert not any(name == "RUN" and "pip" in words for name, words in last_stage())


def test_torch_of_the_image_is_what_the_package_needs() -> None:
    required = dict(
        re.findall(r"^(torch|torchvision)>=([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    )
    arguments = dict(words.split("=", 1) for name, words in instructions() if name == "ARG")
    for package, key in (("torch", "TORCH_VERSION"), ("torchvision", "TORCHVISION_VERSION")):
        have, need = (tuple(map(int, text.split("."))) for text in (arguments[key], required[package]))
        assert have[: len(need)] >= need


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_a_linter_has_nothing_to_say() -> None:
    subprocess.run(["hadolint", str(ROOT / "Dockerfile")], check=True)
