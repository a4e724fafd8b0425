"""The weights that a user names: those of a run, and the list that sam4ir test scores with names of its results."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.files import sha256_of
from sam4ir.utils.weights import SAVE_FORMATS

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"net_g_(\d+)\.(?:pth|safetensors)")
_ITERATION = re.compile(r"(?:net_[^\W\d]+|iter|model|model_ckpt_steps)_(\d+)")


class WeightsListError(UserError):
    """A list of weights that cannot be scored; the message names the file that is missing or listed twice."""


@dataclass(frozen=True)
class Candidate:
    """Weights to score.

    source: the file or the name of the zoo that the user gives. name: that of the folder of its results. iteration:
    the one in the file's name; None where it holds none.
    """

    source: str
    name: str
    iteration: int | None

    def origin(self) -> dict[str, str]:
        """Return {source, sha256}, by which a summary shows whether a file of that name is still the same."""
        return {"source": self.source, "sha256": sha256_of(locate(self.source))}


def checkpoints(folder: Path) -> list[str]:
    """Return the weights of a run, net_g_<iteration>.pth or .safetensors, sorted by iteration.

    folder: experiments/<name> or its models folder. Of two formats of an iteration the .pth file is taken.
    Raises WeightsListError where the folder holds no such file.
    """
    models = folder / "models"
    if not models.is_dir():
        models = folder
    by_iteration: dict[int, Path] = {}
    for path in sorted(models.glob("net_g_*"), reverse=True):  # .safetensors before .pth, which replaces it
        match = _CHECKPOINT.fullmatch(path.name)
        if match:
            by_iteration[int(match.group(1))] = path
    if not by_iteration:
        raise WeightsListError(
            f"{folder}: holds no net_g_<iteration>.pth or .safetensors; name experiments/<name> of a run"
        )
    return [str(path) for _, path in sorted(by_iteration.items())]


def weights_of(source: str) -> str:
    """Return the weights that a user names: those of a run where `source` is its folder, else `source` itself.

    Of a run, experiments/<name>, they are the latest, or the last checkpoint where it has not ended.
    Raises UserError for a folder without either.
    """
    run = Path(source)
    if not run.is_dir():
        return source
    for save_format in SAVE_FORMATS:
        latest = run / "models" / f"net_g_latest.{save_format}"
        if latest.is_file():
            return str(latest)
    with contextlib.suppress(WeightsListError):
        last = checkpoints(run)[-1]
        log.info("%s: the run has not ended; its last checkpoint is %s", run, last)
        return last
    raise UserError(f"{run}: is no folder of a run: it holds neither models/net_g_latest nor a checkpoint")


def candidates(sources: Sequence[str]) -> list[Candidate]:
    """Return the weights with names that differ: the stem of the file, and as many folders above it as are needed.

    Raises WeightsListError for a file that is listed twice, and for one that is not there.
    """
    paths = []
    for source in sources:
        file = locate(source)
        if not file.is_file():
            raise WeightsListError(f"--weights {source}: no such file")
        paths.append(file.resolve())
    if len(set(paths)) < len(paths):
        raise WeightsListError(f"--weights {' '.join(sources)}: names a file twice")
    listed = []
    for source, path, name in zip(sources, paths, _distinct_names(paths), strict=True):
        listed.append(Candidate(source, name, iteration_in(path.stem)))
    return listed


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return names of whole paths: the stem, and as many folders above it as make the names differ.

    Where only their suffixes differ, these stay.
    """
    stems = Counter(path.with_suffix("") for path in paths)
    all_parts = []
    for path in paths:
        bare = path.with_suffix("")
        if stems[bare] > 1:  # a.pth beside a.pt
            bare = path
        all_parts.append(bare.parts)
    depth = 1
    while len({parts[-depth:] for parts in all_parts}) < len(all_parts):
        depth += 1
    return [file_name("_".join(parts[-depth:]).removeprefix("/_")) for parts in all_parts]


def file_name(text: str) -> str:
    """Return the text with _ in place of all that does not belong in a file name."""
    return re.sub(r"[^\w.+-]", "_", text)


def iteration_in(stem: str) -> int | None:
    """Return the iteration in the name of a weights file, such as 5000 in net_g_5000; None where there is none."""
    match = _ITERATION.fullmatch(stem)
    if match is None:
        return None
    return int(match.group(1))
