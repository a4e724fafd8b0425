"""The part of a report that shows images: a viewer for each, which compares any two of its views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam4ir.engine.evaluate.report import BASELINES, titled
from sam4ir.engine.report.chosen import Judged
from sam4ir.engine.report.inputs import Scored
from sam4ir.engine.report.markup import Markup, data_address, element, table
from sam4ir.engine.report.pictures import REDUCED, RESULT, Encoded
from sam4ir.engine.report.run_section import notes_list
from sam4ir.engine.report.score_table import image_metrics, number

_HEIGHT = 78  # of a viewer, as a percentage of the window's height
_LARGEST_PIXEL = 4  # pixels of the screen for one of an image that is not zoomed
HELP = (
    "Each picture shows two views, cut at the handle. Drag the handle or the slider below it; choose the views above. "
    "Zoom by the buttons, a double click, two fingers, or the wheel with Ctrl or Shift; drag to pan. "
    "With the keyboard: the arrow keys move the slider; in the picture +, - and 0 zoom, and the arrow keys pan."
)


@dataclass(frozen=True)
class ShownImage:
    """An image with its views. id: of its part in the page. reduced: whether its views are smaller than the image."""

    id: str
    judged: Judged
    views: Sequence[Encoded]
    notes: Sequence[str]
    reduced: bool = False


def image_section(
    images: Sequence[ShownImage], scored: Sequence[Scored], total: int, lossless: bool, notes: Sequence[str]
) -> Markup:
    """Return the section of images, '' where there is neither an image nor a note. total: images of all results."""
    if not images and not notes:
        return Markup("")
    parts = [element("h2", "Images", id="images"), notes_list(notes)]
    full = [image for image in images if not image.reduced]
    others = [image for image in images if image.reduced]
    if images:
        words = f"{len(full)} of {total} images in full. {HELP} "
        words += "Error maps are the mean over channels of |image - GT|, times 5."
        if not lossless:
            words += (
                " Views beyond 256 x 256 pixels are compressed (WebP); scores and error maps are of the exact pixels."
            )
        parts.append(element("p", words, class_="soft"))
    parts += [_image(image, scored) for image in full]
    if others:
        summary = f"{len(others)} further images, with views of {REDUCED} pixels at most"
        articles = [_image(image, scored) for image in others]
        parts.append(element("details", element("summary", summary), *articles))
    return element("section", *parts, aria_labelledby="images")


def _image(image: ShownImage, scored: Sequence[Scored]) -> Markup:
    """Return the part of one image: its scores and its viewer."""
    judged = image.judged
    badge = element("span", judged.reason, class_="badge") if judged.reason else Markup("")
    parts = [element("h3", f"{judged.dataset}/{judged.image} ", badge), _scores(judged, scored)]
    if image.views:
        parts.append(_viewer(image))
    parts.append(notes_list(image.notes))
    return element("article", *parts, class_="image", id=image.id)


def _scores(judged: Judged, scored: Sequence[Scored]) -> Markup:
    """Return the table of the values of an image: a row for each output; degraded images of equal values stand once."""
    metrics = image_metrics(scored)
    rows: dict[tuple[str, ...], None] = {}
    for each in scored:
        for output, images in each.result.values.get(judged.dataset, {}).items():
            row = images.get(judged.image)
            if row is None:
                continue
            title = f"{each.title}, {output}"
            if output in BASELINES:
                title = output
            cells = [number(row[metric]) if metric in row else "-" for metric in metrics]
            line = (title, *cells)
            rows[line] = None
    heads = [titled(metric, lower_is_better) for metric, lower_is_better in metrics.items()]
    return table(["", *heads], rows, "numbers")


def _viewer(image: ShownImage) -> Markup:
    """Return the viewer of an image: controls, the stage with all views, and the slider."""
    left, right = starting_views([view.role for view in image.views])
    height = max(view.height for view in image.views)
    width = max(view.width for view in image.views)
    name = f"{image.judged.dataset}/{image.judged.image}"
    controls = element(
        "div",
        _choice("Left view", "left", image.views, left),
        _choice("Right view", "right", image.views, right),
        element("button", "Swap", type="button", data_role="swap"),
        element(
            "div",
            element("button", "−", type="button", data_role="out", aria_label="zoom out"),
            element("output", "100 %", aria_label="size of the image's pixels on the screen"),
            element("button", "+", type="button", data_role="in", aria_label="zoom in"),
            element("button", "Fit", type="button", data_role="fit"),
            element("button", "1:1", type="button", data_role="actual", aria_label="one pixel of the image on one"),
            class_="zoom",
        ),
        class_="controls",
    )
    pictures = []
    for place, view in enumerate(image.views):
        address = data_address(view.data, view.kind)
        alt = f"{view.label} of {name}"
        pictures.append(
            element("img", src=address, alt=alt, decoding="async", draggable="false", hidden=place not in (left, right))
        )
    stage = element(
        "div",
        *pictures,
        element("span", image.views[left].label, class_="side left", aria_hidden="true"),
        element("span", image.views[right].label, class_="side right", aria_hidden="true"),
        element("div", class_="divider"),
        class_="stage",
        tabindex="0",
        role="group",
        aria_label=f"views of {name}; + and - zoom, the arrow keys pan",
        style=f"aspect-ratio: {width} / {height}; {_widest(width, height)}",
    )
    slider = element(
        "input",
        type="range",
        min="0",
        max="100",
        step="0.5",
        value="50",
        class_="slider",
        aria_label=f"share of the left view of {name}",
        style=f"{_widest(width, height)}; margin-inline: auto",
    )
    return element("div", controls, stage, slider, class_="viewer", data_width=str(width))


def _widest(width: int, height: int) -> str:
    """Return the style that keeps a viewer within the window's height, and small images from becoming huge."""
    return f"max-width: min({_HEIGHT}vh * {width / height:.4f}, {max(_LARGEST_PIXEL * width, 320)}px)"


def _choice(title: str, role: str, views: Sequence[Encoded], chosen: int) -> Markup:
    """Return the list from which one of the views is chosen."""
    options = []
    for place, view in enumerate(views):
        options.append(element("option", view.label, value=str(place), selected=place == chosen))
    return element("label", title, element("select", *options, data_role=role, autocomplete="off"))


def starting_views(roles: Sequence[str]) -> tuple[int, int]:
    """Return the views that a viewer begins with: those of the first two results, else the first and that of a result.

    roles: of the views (Encoded.role).
    """
    restored = [place for place, role in enumerate(roles) if role == RESULT]
    if len(restored) > 1:
        return restored[0], restored[1]
    if restored and restored[0] > 0:
        return 0, restored[0]
    return 0, min(1, len(roles) - 1)
