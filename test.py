"""Score a network: python test.py -opt options/test/<task>/<net>.yml [--overwrite] [--force_yml key:key=value ...]"""

from __future__ import annotations

import argparse
import sys

from sam4ir.utils import cli


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Restore test sets with a plain network and score them.")
    cli.add_options(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results of the same name made with other options"
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    from sam4ir.config.load import load_options
    from sam4ir.engine.build import wants_cuda
    from sam4ir.engine.score import score
    from sam4ir.utils import dist

    options = load_options(arguments.opt, arguments.force_yml)
    with dist.world(arguments.launcher, wants_cuda(options)) as world:
        print(score(options, arguments.overwrite, world), end="")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
