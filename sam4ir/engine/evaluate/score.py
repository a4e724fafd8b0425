"""The two tasks of sam4ir test: score one network, or score several weights of it one after the other.

Several weights get a folder of results each, a table and curves. The table is a function of the summaries in
results/<name>/<weights>/, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sam4ir.config.load import dump_options, notices
from sam4ir.config.schema import Options, ValOptions
from sam4ir.engine import build
from sam4ir.engine.agreement import agree, run_facts, weights_facts
from sam4ir.engine.devices import choose_device
from sam4ir.engine.evaluate.build import build_test_bed
from sam4ir.engine.evaluate.candidates import Candidate, candidates
from sam4ir.engine.evaluate.curves import write_curves
from sam4ir.engine.evaluate.metric import protocols_of
from sam4ir.engine.evaluate.published import Published, beside, published_table
from sam4ir.engine.evaluate.report import means
from sam4ir.engine.evaluate.result_folder import (
    NOT_SCORED,
    OPTIONS_FILE,
    ResultsExistError,
    holds_options,
    refuse_other_options,
    write_results,
)
from sam4ir.engine.evaluate.results import read_summary
from sam4ir.engine.evaluate.testbed import Scores, TestBed
from sam4ir.engine.precision import settle_restoring
from sam4ir.utils.dist import ALONE, World
from sam4ir.utils.files import remove_left_over, write_text

log = logging.getLogger(__name__)


def with_weights(options: Options, source: str | None) -> Options:
    """Return the options with other weights (a file or a name of the zoo)."""
    return options.model_copy(update={"path": options.path.model_copy(update={"pretrain_network_g": source})})


def with_published(options: Options, name: str) -> Options:
    """Return the options with a table of published figures (val.published)."""
    val = (options.val or ValOptions()).model_copy(update={"published": name})
    return options.model_copy(update={"val": val})


def score_network(
    options: Options, overwrite: bool = False, world: World = ALONE, faults: list[str] | None = None
) -> str:
    """Score the test sets of an option file (Options.scored); return the table that is also written.

    world: the processes that share the images; the main one writes, the others return ''. faults: grows by a sentence
    for each image that could not be scored.
    Writes results/<name>/{metrics.csv, summary.json, summary.txt, options.yml} and, with val.save_img,
    visualization/<data set>/<image>_<name>.png. Results of other options are not touched without `overwrite`.
    """
    agree(world, *run_facts(options))
    formats = settle_restoring(options, choose_device(options.device, world), world)
    options = formats.options
    folder, text = build.run_paths(options.path, options.name).results, _comparable_text(options)
    table = _begin(folder, text, overwrite, options.val, notices(options), world)
    if world.main:
        formats.log(log)
    bed = build_test_bed(options, world)
    results = bed.score(options.path.pretrain_network_g, folder, options.name)
    if faults is not None:
        faults.extend(results.faults)
    if not world.main:
        return ""
    write_text(folder / OPTIONS_FILE, text)
    return write_results(folder, results, bed.metrics, _published_lines(table, results, bed)) + f"results: {folder}\n"


def score_all(
    options: Options,
    sources: Sequence[str],
    overwrite: bool = False,
    world: World = ALONE,
    faults: list[str] | None = None,
) -> str:
    """Score weights one after the other; return the table that is also written.

    faults: grows by a sentence for each image that could not be scored.
    sources: files or names of the zoo. Those that results/<name> holds already are not scored again unless `overwrite`.
    Writes results/<name>/{curve.csv, curve.txt, curve_<metric>.png, options.yml}, and below it for each of the weights
    a folder with the files of `score_network`. Raises UserError as `score_network` does, and where a file changed since
    it was scored.
    """
    agree(world, *run_facts(with_weights(options, None)), lambda: weights_facts({source: source for source in sources}))
    formats = settle_restoring(options, choose_device(options.device, world), world)
    any_weights = with_weights(formats.options, None)
    folder, text = build.run_paths(options.path, options.name).results, _comparable_text(any_weights)
    table = _begin(folder, text, overwrite, options.val, notices(options), world)
    if world.main:
        formats.log(log)
    listed = candidates(sources)
    unscored: list[Candidate] = []

    def decide() -> None:
        if overwrite:
            _remove_summaries(folder, listed, text)
        unscored.extend(_unscored(folder, listed))
        write_text(folder / OPTIONS_FILE, text)

    world.main_first(decide)
    unscored = world.from_main(unscored)
    if unscored:
        bed = build_test_bed(any_weights, world)
        for number, candidate in enumerate(unscored, 1):
            log.info("%s, %d of %d.", candidate.source, number, len(unscored))
            missing = _score_one(bed, candidate, folder / candidate.name, table)
            if faults is not None:
                faults.extend(f"{candidate.name}: {fault}" for fault in missing)
            if world.main:
                write_curves(folder, table, options.scale)
    if not world.main:
        return ""
    return f"{write_curves(folder, table, options.scale)}results: {folder}\n"


def _comparable_text(options: Options) -> str:
    """Return the options as YAML, as they lie beside results; without val.published, which changes no result."""
    if options.val is not None:
        val = options.val.model_copy(update={"published": None})
        options = options.model_copy(update={"val": val})
    return dump_options(options)


def _begin(
    folder: Path, text: str, overwrite: bool, val: ValOptions | None, warnings: Sequence[str], world: World
) -> Published | None:
    """Refuse results of other options, log warnings about keys without effect, and return the published table."""

    def refuse() -> None:
        if not overwrite:
            refuse_other_options(folder, text)
        remove_left_over(folder)

    world.main_first(refuse)
    table = None
    if val is not None:
        table = published_table(val.published)
    if world.main:
        for warning in warnings:
            log.warning(warning)
    return table


def _score_one(bed: TestBed, candidate: Candidate, folder: Path, table: Published | None) -> Sequence[str]:
    """Score one of several weights; the main process writes the results to its folder. Return the images at fault."""
    results = bed.score(candidate.source, folder, candidate.name)
    if bed.world.main:
        lines = _published_lines(table, results, bed)
        write_results(folder, results, bed.metrics, lines, candidate.origin())
    return results.faults


def _published_lines(table: Published | None, results: Scores, bed: TestBed) -> list[str]:
    """Return lines of published figures beside ours; none without a table."""
    if table is None:
        return []
    return beside(table, means(results.scores, results.sets), protocols_of(bed.metrics), bed.recipe.scale)


def _remove_summaries(folder: Path, listed: Sequence[Candidate], text: str) -> None:
    """Remove the summaries to write anew: those of the list, and all of them where the options were others."""
    same = holds_options(folder, text)
    names = {candidate.name for candidate in listed}
    for summary in folder.glob("*/summary.json"):
        if not same or summary.parent.name in names:
            summary.unlink()


def _unscored(folder: Path, listed: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without a summary of all images. Raises ResultsExistError where one is of another file."""
    unscored = []
    for candidate in listed:
        summary = folder / candidate.name / "summary.json"
        if not summary.is_file():
            unscored.append(candidate)
        elif read_summary(summary).get("weights", {}).get("sha256") != candidate.origin()["sha256"]:
            raise ResultsExistError(
                f"{summary.parent}: holds scores of another file than {candidate.source} is now. Nothing was changed. "
                "Add --overwrite to replace them"
            )
        elif read_summary(summary).get(NOT_SCORED):
            unscored.append(candidate)
        else:
            log.info("%s is scored already.", candidate.source)
    return unscored
