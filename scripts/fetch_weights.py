"""Fetch the pretrained weights that sam4ir uses, or list them.

python scripts/fetch_weights.py list
python scripts/fetch_weights.py vgg16 [--to FOLDER]
python scripts/fetch_weights.py --all
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.priors.zoo import ENTRIES, Entry, WeightsError, cache_folder, cached, resolve


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 where something could not be fetched."""
    options = _parser().parse_args(arguments)
    folder = options.to or cache_folder()
    if options.names == ["list"]:
        for entry in ENTRIES.values():
            print(_row(entry, folder))
        return 0
    names = list(ENTRIES) if options.all else options.names
    if not names:
        _parser().error(f"give names, --all or list; known: {', '.join(ENTRIES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return max([_fetch(name, folder) for name in names])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="fetch_weights.py"
    )
    parser.add_argument("names", nargs="*", help="names of weights, or: list")
    parser.add_argument("--all", action="store_true", help="all that the list names")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help=f"folder to put them in (default {cache_folder()})")
    return parser


def _row(entry: Entry, folder: Path) -> str:
    try:
        state = str(cached(entry.name, folder) or "not fetched")
    except WeightsError as error:
        state = str(error)
    sources = "\n".join(f"    from {source.describe()}" for source in entry.sources)
    return f"{entry.name}: {entry.description}\n    licence {entry.licence}\n{sources}\n    {state}"


def _fetch(name: str, folder: Path) -> int:
    try:
        path = resolve(name, folder)
    except (WeightsError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    entry = ENTRIES[name]
    print(f"{name}: {entry.description}\n    licence {entry.licence}\n    {path.stat().st_size:,} bytes, {path}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; run again to go on")
