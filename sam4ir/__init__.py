"""sam4ir: image restoration networks trained with Segment Anything's masks, deployed as the plain network.

`load` returns a trained network that restores images, `train` and `score` run option files; docs/python.md shows them.
Importing sam4ir loads no torch: each name is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam4ir.api.network import TrainedNetwork as TrainedNetwork
    from sam4ir.api.network import load as load
    from sam4ir.api.runs import TestScores as TestScores
    from sam4ir.api.runs import TrainingResult as TrainingResult
    from sam4ir.api.runs import score as score
    from sam4ir.api.runs import train as train
    from sam4ir.errors import UserError as UserError

__version__ = "0.1.0"

_MODULES = {
    "TrainedNetwork": "sam4ir.api.network",
    "load": "sam4ir.api.network",
    "TestScores": "sam4ir.api.runs",
    "TrainingResult": "sam4ir.api.runs",
    "score": "sam4ir.api.runs",
    "train": "sam4ir.api.runs",
    "UserError": "sam4ir.errors",
}

__all__ = ["TestScores", "TrainedNetwork", "TrainingResult", "UserError", "__version__", "load", "score", "train"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name, and return what it means (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sam4ir' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access needs no call
    return value


def __dir__() -> list[str]:
    """Return the public names, those that are not imported yet too."""
    return sorted(__all__)
