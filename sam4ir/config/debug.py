"""The --debug flag of BasicSR: a run prints, validates and saves within a few iterations."""

from __future__ import annotations

from sam4ir.config.schema import Options

FREQUENCY = 8


def debugged(options: Options) -> Options:
    """Return the options with `debug_` before the name, a line each iteration, and all else every eight iterations."""
    logger = options.logger.model_copy(update={"print_freq": 1, "save_checkpoint_freq": FREQUENCY})
    val = options.val
    if val is not None and val.val_freq is not None:
        val = val.model_copy(update={"val_freq": FREQUENCY})
    return options.model_copy(update={"name": f"debug_{options.name}", "logger": logger, "val": val})
