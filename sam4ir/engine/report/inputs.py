"""The runs and results that a report is made of, told apart by what their folders hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sam4ir.config.schema import DatasetOptions, Options
from sam4ir.engine.evaluate.results import Result, read_results, read_summary
from sam4ir.engine.report.run_facts import OPTIONS_FILE, ReportError, RunFacts, is_run, read_options, read_run
from sam4ir.engine.run_record import iteration_of
from sam4ir.engine.weights import zoo_name
from sam4ir.errors import UserError
from sam4ir.utils.files import read_text, sha256_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUMMARY = "summary.json"
_LARGEST_NOTE = 1 << 14  # bytes of what sam4ir test --restored writes in place of options


class StoredImages(NamedTuple):
    """Images that another program restored, and their ground truth."""

    gt: Path
    restored: Path


@dataclass(frozen=True)
class Scored:
    """Scores of a network, and where the images of them lie.

    letter: its name in charts and views. iteration: of the validation, where the scores are those of a run; None for a
    result of sam4ir test. options: by which the images were scored; None where they cannot be read, as `problem` says.
    stored: the folders of a result of sam4ir test --restored, which has no option file.
    suffixes: that the names of its restored images may have behind the key. run: the run of its weights.
    spreads: {dataset: {output: {metric: {samples, image, mean}}}} over several samples. facts: rows of its table.
    """

    letter: str
    result: Result
    folder: Path
    options: Options | None = None
    problem: str = ""
    stored: StoredImages | None = None
    iteration: int | None = None
    suffixes: tuple[str, ...] = ("",)
    run: Path | None = None
    spreads: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its result or run."""
        return self.result.name

    @property
    def title(self) -> str:
        """Letter and name."""
        return f"{self.letter} {self.name}"

    def blocks(self) -> dict[str, tuple[str, DatasetOptions]]:
        """Return {name of a data set: (its key, its options)} of the sets that were scored."""
        if self.options is None:
            return {}
        sets = self.options.scored
        if self.iteration is not None:
            sets = self.options.phase("val")
        named = {}
        for key, block in sets.items():
            named[block.name or key] = key, block
        return named


@dataclass(frozen=True)
class Inputs:
    """What a report is made of. scored: the results, or the last validations of the runs where no result is named."""

    runs: tuple[RunFacts, ...]
    scored: tuple[Scored, ...]


def read_inputs(paths: Sequence[Path], option_file: Path | None = None) -> Inputs:
    """Read runs and results. option_file: names the data sets in place of the results' own option files.

    Raises ReportError for a path that is neither, for two of one kind with one path, and where a file is damaged.
    """
    _refuse_twice(paths)
    run_paths, result_paths = [], []
    for path in paths:
        if not path.exists():
            raise ReportError(f"{path}: no such folder; name experiments/NAME of a run, or results/NAME of a test")
        if is_run(path):
            run_paths.append(path)
        else:
            result_paths.append(path)
    runs = []
    for path, name in zip(run_paths, _names(run_paths), strict=True):
        runs.append(read_run(path, name))
    scored: list[Scored] = []
    for path, result in zip(result_paths, read_results(result_paths), strict=True):
        scored.append(_scored_result(path, result, LETTERS[len(scored) % 26], option_file))
    if not scored:
        for run in runs:
            if run.validation is not None:
                scored.append(_scored_run(run, LETTERS[len(scored) % 26]))
    return Inputs(tuple(runs), tuple(scored))


def _refuse_twice(paths: Sequence[Path]) -> None:
    """Raise ReportError for a folder that is named twice, and for more than there are letters."""
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ReportError(f"{paths[number]}: is named twice")
    if len(paths) > len(LETTERS):
        raise ReportError(f"{len(paths)} runs and results are too many for one report; name {len(LETTERS)} at most")


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of folders, or their paths where names are equal."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        return list(map(str, paths))
    return names


def _scored_result(path: Path, result: Result, letter: str, option_file: Path | None) -> Scored:
    """Return a result of sam4ir test with what lies beside it."""
    folder = path if path.is_dir() else path.parent
    stored = _stored_images(folder / OPTIONS_FILE)
    options, problem = None, ""
    if option_file is not None or stored is None:
        options, problem = _options_of(folder, option_file)
    summary: Mapping[str, Any] = {}
    if (folder / SUMMARY).is_file():
        summary = read_summary(folder / SUMMARY)
    suffixes = [f"_{folder.resolve().name}"]
    if options is not None:
        suffixes.insert(0, f"_{options.name}")
    facts, run = _weights_facts(options, summary)
    if stored is not None:
        facts = {"restored images": str(stored.restored)}
    notes = [str(note) for note in _list(summary.get("notes"))]
    notes += [f"not scored: {fault}" for fault in _list(summary.get("not_scored"))]
    return Scored(
        letter,
        result,
        folder,
        options,
        problem,
        stored,
        suffixes=tuple(dict.fromkeys(suffixes)),
        run=run,
        spreads=_mapping(summary.get("spread")),
        facts=facts,
        notes=tuple(notes),
    )


def _stored_images(file: Path) -> StoredImages | None:
    """Return the folders that sam4ir test --restored notes in place of options; None for any other file."""
    try:
        content = yaml.safe_load(read_text(file, _LARGEST_NOTE))
    except (OSError, UserError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if not isinstance(content, dict) or set(content) != {"gt", "restored", "metrics"}:
        return None
    gt, restored = content["gt"], content["restored"]
    if not isinstance(gt, str) or not isinstance(restored, str):
        return None
    return StoredImages(Path(gt), Path(restored))


def _options_of(folder: Path, option_file: Path | None) -> tuple[Options | None, str]:
    """Return the options of a result: of the named file, else of its folder, or of that above it (several weights)."""
    if option_file is not None:
        from sam4ir.config.load import load_options

        return load_options(option_file, named_by_user=True), ""
    file = folder / OPTIONS_FILE
    if not file.is_file() and (folder.parent / OPTIONS_FILE).is_file():
        file = folder.parent / OPTIONS_FILE
    options, _, problem = read_options(file)
    return options, problem


def _weights_facts(options: Options | None, summary: Mapping[str, Any]) -> tuple[dict[str, str], Path | None]:
    """Return rows on the weights of a result, and the folder of the run that trained them, if there is one."""
    origin = _mapping(summary.get("weights"))
    source, stated = origin.get("source"), origin.get("sha256")
    if source is None and options is not None:
        source = options.path.pretrain_network_g
    if source is None:
        return {"weights": "not recorded"}, None
    facts, run = {"weights": str(source)}, None
    if stated is not None:
        facts["SHA-256"] = str(stated)
    path = Path(str(source))
    if _is_file(path):
        if stated is None:
            facts["SHA-256"] = f"{sha256_of(path)} (of the file as it is now)"
        iteration = _iteration(path)
        if iteration is not None:
            facts["iteration"] = f"{iteration:,}"
        folder = path.resolve().parent.parent
        if is_run(folder):
            run = folder
    elif stated is None:
        facts["SHA-256"] = "not known: the file is not there"
    return facts, run


def _is_file(path: Path) -> bool:
    """Return whether a path of a summary is a file; False for what no disk can hold, and for a name of the zoo."""
    try:
        return path.is_file() and zoo_name(path) is None
    except (OSError, ValueError):
        return False


def _iteration(path: Path) -> int | None:
    try:
        return iteration_of(path)
    except UserError:
        return None


def _scored_run(run: RunFacts, letter: str) -> Scored:
    """Return the last validation of a run."""
    assert run.validation is not None
    facts = {"scores": f"of the validation at iteration {run.iteration:,}"}
    lower = run.validation.lower
    return Scored(
        letter,
        Result(run.name, _protocols(run), run.validation.values, run.validation.sets, lower),
        run.folder,
        run.options,
        run.problem,
        iteration=run.iteration,
        run=run.folder,
        facts=facts,
    )


def _protocols(run: RunFacts) -> dict[str, str]:
    """Return {metric: definition} of the metrics of a run, by its options; {} where they cannot be built."""
    if run.options is None:
        return {}
    from sam4ir.engine.evaluate.build import build_metrics
    from sam4ir.engine.evaluate.metric import protocols_of

    try:
        return protocols_of(build_metrics(run.options.val, run.options.basicsr))
    except UserError:
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping of a file as it is; {} for anything else."""
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    """Return a list of a file as it is; [] for anything else."""
    return value if isinstance(value, list) else []
