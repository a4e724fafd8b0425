"""Train a network: sam4ir train -opt options/train/<task>/<net>.yml [--auto_resume] [--check] [--force_yml a:b=c]

Many processes: torchrun --nproc_per_node=8 -m sam4ir train -opt ...
Under Slurm: srun sam4ir train -opt ... --launcher slurm
"""

from __future__ import annotations

from collections.abc import Sequence

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description="Train a restoration network, plain or with SAM4IR.")
    cli.add_options(command)
    command.add_argument(
        "--auto-resume",
        "--auto_resume",
        action="store_true",
        help="go on from the newest checkpoint of the run, if any",
    )
    command.add_argument(
        "--check", action="store_true", help="examine data, masks, weights, memory and time; train nothing"
    )
    command.add_argument("--debug", action="store_true", help="train as debug_<name>; validate and save every 8 steps")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Train, or check a run; return the exit status, 130 or 143 where a signal stopped it."""
    arguments = parser().parse_args(words)
    from sam4ir.config.debug import debugged
    from sam4ir.config.load import load_options
    from sam4ir.engine.devices import wants_cuda
    from sam4ir.engine.interrupt import Interrupted
    from sam4ir.engine.train.check import check
    from sam4ir.engine.train.loop import Trainer
    from sam4ir.utils import dist

    options = load_options(arguments.opt, arguments.force_yml, named_by_user=True)
    if arguments.debug:
        options = debugged(options)
    with dist.world(arguments.launcher, wants_cuda(options.device)) as world:
        if arguments.check:
            return check(options, arguments.auto_resume, world)
        try:
            Trainer(options, arguments.auto_resume, world).run()
        except Interrupted as stop:
            return stop.exit_code
    return 0
