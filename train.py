"""Train a network: python train.py -opt options/train/<task>/<net>.yml [--auto_resume] [--force_yml a:b=c ...]"""

from __future__ import annotations

import argparse
import sys

from sam4ir.utils import cli


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a restoration network, plain or with SAM4IR.")
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--auto_resume", action="store_true", help="go on from the newest checkpoint of the run, if any"
    )
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="options that override the file"
    )
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    from sam4ir.config.load import load_options
    from sam4ir.engine.loop import Interrupted, Trainer

    options = load_options(arguments.opt, arguments.force_yml)
    try:
        Trainer(options, resume=arguments.auto_resume).run()
    except Interrupted as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
