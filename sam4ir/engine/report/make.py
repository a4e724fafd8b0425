"""Make a report: read runs and results, choose and encode images, write the page (sam4ir report)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sam4ir.engine.report.chosen import Judged, choice_metric, choose_images, judged_images
from sam4ir.engine.report.image_section import ShownImage, image_section
from sam4ir.engine.report.inputs import Inputs, Scored
from sam4ir.engine.report.page import whole_page
from sam4ir.engine.report.pictures import Encoded, Gallery, ImageViews, encoded_panel, reduced_panel
from sam4ir.engine.report.run_facts import ReportError
from sam4ir.engine.report.run_section import run_section
from sam4ir.engine.report.score_section import score_section
from sam4ir.engine.report.score_table import score_table
from sam4ir.utils.files import write_text

SUFFIXES = (".html", ".htm")
_BASE64 = 4 / 3  # characters of a byte
_THREADS = 2
_SHARE_OF_OTHERS = 0.4  # of the file, at most, for the reduced views of images that were not chosen
_ROOM = 2_000_000  # bytes for all but pictures, which a report stays below but for thousands of images


@dataclass(frozen=True)
class ReportChoice:
    """What the user wants to see.

    images: how many get full views, where the others get reduced ones; 0 leaves all views out. metric: by which they
    are chosen; None for the first. lossless: whether full views are exact. largest: bytes of the file, by which further
    views are left out. title: of the page.
    """

    images: int = 15
    metric: str | None = None
    lossless: bool = False
    largest: int = 60_000_000
    title: str | None = None


@dataclass(frozen=True)
class Report:
    """A whole report. html: the page. images, reduced: with full and with reduced views. notes: what is missing."""

    html: str
    images: int
    reduced: int
    notes: tuple[str, ...]


def refuse_output(path: Path) -> None:
    """Raise ReportError for an output that is no HTML file by its name, before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise ReportError(f"--output {path}: a report is an HTML file; give it a name that ends with .html")
    if path.is_dir():
        raise ReportError(f"--output {path}: is a folder; name a file")


def make_report(inputs: Inputs, choice: ReportChoice) -> Report:
    """Return the report of runs and results. Raises ReportError where neither says anything."""
    if not inputs.runs and not inputs.scored:
        raise ReportError("name a run (experiments/NAME) or a result (results/NAME)")
    shown: list[ShownImage] = []
    notes: list[str] = []
    total = 0
    if inputs.scored:
        metric = choice_metric(inputs.scored, choice.metric)
        judged = judged_images(inputs.scored, metric)
        total = len(judged)
        gallery = Gallery(inputs.scored, inputs.runs)
        chosen = choose_images(judged, choice.images, compared=len(inputs.scored) > 1)
        shown = _shown_images(gallery, chosen, _others(judged, chosen), choice)
        notes += dict.fromkeys(gallery.notes)
        shown, common = _common_notes(shown)
        notes += common
        notes += _size_notes(shown, len(chosen), total, choice)
    links = {image.judged.place: image.id for image in shown}
    sections = [
        score_section(inputs.scored, score_table(inputs.scored), links),
        image_section(shown, inputs.scored, total, choice.lossless, notes),
        run_section(inputs.runs),
    ]
    page = whole_page(choice.title or _title(inputs), sections)
    reduced = sum(1 for image in shown if image.reduced)
    return Report(page, len(shown) - reduced, reduced, (*notes, *_image_notes(shown)))


def write_report(path: Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    write_text(path, report.html)


def _title(inputs: Inputs) -> str:
    """Return the title of a report: what it is made of."""
    names: dict[str, None] = {}
    for each in inputs.scored:
        names[each.name] = None
    for run in inputs.runs:
        names[run.name] = None
    return f"sam4ir report: {', '.join(names)}"


def _others(judged: Sequence[Judged], chosen: Sequence[Judged]) -> list[Judged]:
    """Return the images that were not chosen, from the worst on; none where no views are wanted."""
    if not chosen:
        return []
    places = {each.place for each in chosen}
    return [each for each in choose_images(judged, len(judged), compared=True) if each.place not in places]


def _shown_images(
    gallery: Gallery, chosen: Sequence[Judged], others: Sequence[Judged], choice: ReportChoice
) -> list[ShownImage]:
    """Return the images with their encoded views, as far as the file has room: the chosen ones, then the others.

    The others have reduced views, as have those of the chosen ones that are too large.
    """
    room = choice.largest - _ROOM
    left = _SHARE_OF_OTHERS * room
    largest = 0
    names = {each.place: f"image-{number}" for number, each in enumerate([*chosen, *others], 1)}
    small: list[ShownImage] = []
    full: list[ShownImage] = []
    with ThreadPoolExecutor(_THREADS) as pool:

        def encoded(views: ImageViews, *, reduced: bool) -> tuple[list[Encoded], int]:
            if reduced:
                panels = list(pool.map(reduced_panel, views.views))
            else:
                panels = list(pool.map(lambda view: encoded_panel(view, choice.lossless), views.views))
            return panels, round(_BASE64 * sum(len(panel.data) for panel in panels))

        for judged in others:
            views = gallery.views(*judged.place)
            panels, size = encoded(views, reduced=True)
            if size > left:
                break
            left, room, largest = left - size, room - size, max(largest, size)
            small.append(ShownImage(names[judged.place], judged, panels, views.notes, reduced=True))
        for number, judged in enumerate(chosen, 1):
            views, reduced = gallery.views(*judged.place), False
            panels, size = encoded(views, reduced=False)
            if size > room - largest * (len(chosen) - number):  # reduced views of the rest shall have room too
                reduced = True
                panels, size = encoded(views, reduced=True)
            if size > room:
                break
            room -= size
            full.append(ShownImage(names[judged.place], judged, panels, views.notes, reduced))
    return [*full, *small]


def _size_notes(shown: Sequence[ShownImage], chosen: int, total: int, choice: ReportChoice) -> list[str]:
    """Return notes on views that the largest size of the file makes smaller or leaves out."""
    notes = []
    size = f"{choice.largest / 1e6:g} MB (--max-size)"
    full = sum(1 for image in shown if not image.reduced)
    if full < chosen:
        notes.append(f"{chosen - full} of {chosen} chosen images have no full views: the file would exceed {size}")
    if chosen and len(shown) < total:
        notes.append(f"{total - len(shown)} of {total} images have no views: the file would exceed {size}")
    return notes


def _common_notes(shown: Sequence[ShownImage]) -> tuple[list[ShownImage], list[str]]:
    """Return the images without the notes that all of several images have, and these notes."""
    if len(shown) < 2:
        return list(shown), []
    common = [note for note in shown[0].notes if all(note in image.notes for image in shown)]
    rest = []
    for image in shown:
        own = [note for note in image.notes if note not in common]
        rest.append(dataclasses.replace(image, notes=own))
    return rest, common


def _image_notes(shown: Sequence[ShownImage]) -> list[str]:
    """Return the notes on images, each with the number of images that have it."""
    counts: dict[str, int] = {}
    for image in shown:
        for note in image.notes:
            counts[note] = counts.get(note, 0) + 1
    lines = []
    for note, count in counts.items():
        lines.append(note if count == 1 else f"{note} ({count} images)")
    return lines


def scores_only(scored: Sequence[Scored]) -> None:
    """Raise ReportError where a table of results is asked for and no result is there."""
    if not scored:
        raise ReportError("--table: none of the runs has a validation, so there are no results to print")
