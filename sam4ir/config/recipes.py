"""The option files that come with sam4ir: their list, and a copy of one to edit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils.files import write_text
from sam4ir.utils.shipped import shipped

STUDIES = "studies"  # folder of study files, below options
_SUFFIXES = (".yml", ".yaml")
_BESIDE = re.compile(r"(?<=base: )\.\./")
_NETWORK = re.compile(r"^network_g:[^\n{]*(?:\{\s*|\n\s+)type:\s*(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class OptionFile:
    """An option file of sam4ir.

    name: path below options/ without suffix, such as train/denoising/nafnet_w32_sidd. network: the type of its
    network_g, '' without one. comment: its first line. trains: it has a block `train`; without it, it scores.
    """

    name: str
    path: Path
    network: str
    comment: str
    trains: bool

    @property
    def task(self) -> str:
        """The folder that it lies in: 'train/denoising'."""
        return self.name.rpartition("/")[0]


def option_files() -> list[OptionFile]:
    """Return all option files, sorted by name; study files are none."""
    folder = shipped("options")
    files = []
    for path in sorted(folder.rglob("*.yml")):
        if path.parent == folder / STUDIES:
            continue
        text = path.read_text(encoding="utf-8")
        network = _NETWORK.search(text)
        comment = text.partition("\n")[0]
        if not comment.startswith("#"):
            comment = ""
        name = path.relative_to(folder).with_suffix("").as_posix()
        trains = re.search(r"^train:", text, re.MULTILINE) is not None
        files.append(OptionFile(name, path, network[1] if network else "", comment.strip("# "), trains))
    return files


def study_files() -> list[OptionFile]:
    """Return all study files, sorted by name, such as studies/decisive_blur15."""
    folder = shipped("options")
    files = []
    for path in sorted((folder / STUDIES).glob("*.yml")):
        comment = path.read_text(encoding="utf-8").partition("\n")[0].strip("# ")
        files.append(OptionFile(f"{STUDIES}/{path.stem}", path, "", comment, True))
    return files


def matching(words: Sequence[str]) -> list[OptionFile]:
    """Return the option files that have all of the words in name, network or comment, whatever their case."""
    return _with_words(option_files(), words)


def matching_studies(words: Sequence[str]) -> list[OptionFile]:
    """Return the study files that have all of the words in name or comment, whatever their case."""
    return _with_words(study_files(), words)


def _with_words(files: Sequence[OptionFile], words: Sequence[str]) -> list[OptionFile]:
    chosen = []
    for file in files:
        text = f"{file.name} {file.network} {file.comment}".lower()
        if all(word.lower() in text for word in words):
            chosen.append(file)
    return chosen


def find_option_file(name: str) -> OptionFile:
    """Return an option or study file by name: with or without options/, train/ or test/, and .yml; train/ goes first.

    Raises UserError for an unknown name, with the closest one.
    """
    known = {file.name: file for file in (*option_files(), *study_files())}
    asked = Path(name.removeprefix("options/")).as_posix().removesuffix(".yml")
    for candidate in (asked, f"train/{asked}", f"test/{asked}"):
        if candidate in known:
            return known[candidate]
    raise UserError(f"{name!r}: sam4ir has no such option file{_advice(asked, known)}")


def _advice(asked: str, known: dict[str, OptionFile]) -> str:
    """Return the names of that file in other folders, else the closest one, and how to list all."""
    alike = []
    for name in known:
        if name.rpartition("/")[2] == asked.rpartition("/")[2]:
            alike.append(repr(name))
    near = near_miss(asked, [*known, *(name.partition("/")[2] for name in known)])
    if alike:
        near = f"; did you mean {' or '.join(alike)}?"
    return f"{near or ';'} sam4ir options list prints all"


def copy_option_file(name: str, target: Path | None, overwrite: bool = False) -> Path:
    """Copy an option file to edit it; return the path of the copy.

    target: a file, or a folder that gets a file of the same name; default the current folder. Raises UserError for an
    unknown name, and where the file exists, unless overwrite is set.
    """
    file = find_option_file(name)
    path = target or Path()
    if path.is_dir():
        path = path / file.path.name
    if path.suffix not in _SUFFIXES:
        raise UserError(f"{path}: is no name of an option file; give one that ends in .yml, or a folder that exists")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; --overwrite replaces it, another name keeps it")
    text = file.path.read_text(encoding="utf-8")
    if file.name.startswith(f"{STUDIES}/"):
        text = _BESIDE.sub("", text)  # names of option files, which are found from any folder
    write_text(path, text)
    return path


def copy_hint(path: str) -> str:
    """Return how to get an option file that is not there, at that place: '; `sam4ir options copy NAME FILE` ...'."""
    try:
        file = find_option_file(path)
    except UserError:
        return "; sam4ir options list prints those that come with sam4ir, sam4ir options copy NAME copies one"
    target = path
    if Path(path).suffix not in _SUFFIXES:
        target = file.path.name
    return f"; sam4ir options copy {file.name} {target} copies the one that comes with sam4ir"
