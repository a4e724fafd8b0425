"""Published figures of benchmarks, which sam4ir test prints beside ours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam4ir.engine.evaluate.metric import Metric
from sam4ir.engine.evaluate.report import Means, columns
from sam4ir.errors import UserError
from sam4ir.registry import METRICS, near_miss

PublishedFigures = Mapping[str, Mapping[str, float]]  # {data set: {quantity: value}}


class PublishedError(UserError):
    """A name that no published table has; the message lists the names."""


@dataclass(frozen=True)
class Published:
    """The table of one source.

    quantities: {the source's name of a figure: metric types here, the nearest definition first, all with default
    arguments on 8-bit images}. methods: {name: figures}. note: how the source computed them.
    """

    source: str
    scale: int
    quantities: Mapping[str, Sequence[str]]
    methods: Mapping[str, PublishedFigures]
    note: str


def _figures(*rows: tuple[str, float, float, float]) -> dict[str, dict[str, float]]:
    """Return {data set: figures} of rows (data set, PSNR, SSIM, FID)."""
    figures = {}
    for name, psnr, ssim, fid in rows:
        figures[name] = {"PSNR": psnr, "SSIM": ssim, "FID": fid}
    return figures


TABLES: Mapping[str, Published] = {
    "SAM-DiffSR": Published(
        source="SAM-DiffSR from the README of its released code, SRDiff from the paper (Wang et al., arXiv 2402.17133)",
        scale=4,
        quantities={"PSNR": ("psnr_y",), "SSIM": ("ssim_y_rounded", "ssim_y"), "FID": ("fid",)},
        methods={
            "SAM-DiffSR": _figures(
                ("Set5", 30.99, 0.8731, 48.20),
                ("Set14", 27.14, 0.7484, 49.84),
                ("Urban100", 25.54, 0.7721, 4.5276),
                ("BSDS100", 26.47, 0.7003, 60.81),
                ("Manga109", 29.43, 0.8899, 2.3994),
                ("General100", 30.30, 0.8353, 38.42),
                ("DIV2K", 29.34, 0.8109, 0.3809),
            ),
            "SRDiff": {"DIV2K": {"PSNR": 28.60, "FID": 0.4649}},
        },
        note=(
            "PSNR and SSIM are of Y without border crop, of images as 8-bit files. The README's come from pyiqa, whose "
            "SSIM rounds Y (ssim_y_rounded; ssim_y is 0.0007 higher for bicubic Set14)"
        ),
    ),
}
_SPELLINGS = {"b100": "bsds100", "bsd100": "bsds100", "div2k100": "div2k"}
_ASIDE = {"x4", "test", "val", "valid", "validation", "benchmark"}  # in names such as Set5_x4, DIV2K_valid
_OUTPUT = "restored"


def published_table(name: str | None) -> Published | None:
    """Return the table of a name (val.published), whatever its case and punctuation; None for no name.

    Raises PublishedError, with the nearest name, for one that no table has.
    """
    if name is None:
        return None
    keys = {_folded(key): key for key in TABLES}
    if _folded(name) not in keys:
        near = near_miss(name, TABLES) or ";"
        raise PublishedError(f"val.published: no table is called {name!r}{near} known: {', '.join(TABLES)}")
    return TABLES[keys[_folded(name)]]


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def dataset_of(name: str, datasets: Sequence[str]) -> str | None:
    """Return the data set that a name means: 'set 5', 'Set5_x4' and 'test_Set5' are Set5; None for no one of them."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    folded = "".join(word for word in words if word not in _ASIDE)
    by_spelling = {_folded(dataset): dataset for dataset in datasets}
    return by_spelling.get(_SPELLINGS.get(folded, folded))


def rows_of(table: Published, dataset: str, protocols: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return {method: {our metric: published figure}} of a data set of ours. protocols: of our metrics, by name."""
    name = dataset_of(dataset, _names(table))
    if name is None:
        return {}
    ours = _our_metrics(table, protocols)
    rows: dict[str, dict[str, float]] = {}
    for method, figures in table.methods.items():
        row = {}
        for quantity, figure in figures.get(name, {}).items():
            metric = ours[quantity]
            if metric is not None:
                row[metric] = figure
        if row:
            rows[method] = row
    return rows


def beside(table: Published, means: Means, protocols: Mapping[str, str], scale: int) -> list[str]:
    """Return lines of the published table beside our means of the deployed network; other data sets are left out.

    protocols: of our metrics, by name; a metric stands beside a figure of the same protocol only. scale: ours.
    """
    names = _names(table)
    ours = _our_metrics(table, protocols)
    rows = [["dataset", "quantity", "ours", "as", *table.methods]]
    for (dataset, output), values in means.items():
        name = dataset_of(dataset, names)
        if name is None or output != _OUTPUT:
            continue
        for quantity, metric in ours.items():
            cells = _figure_cells(table, name, quantity)
            if set(cells) == {"-"}:
                continue
            own = "-"
            if metric in values:
                own = str(values[metric])
            rows.append([dataset, quantity, own, metric or "-", *cells])
    if len(rows) == 1:
        return [f"published ({table.source}): no data set here has the name of one of {', '.join(names)}"]
    lacking = []
    for quantity, types in table.quantities.items():
        if ours[quantity] is None:
            lacking.append(f"{quantity} ({' or '.join(types)})")
    lines = [*origin(table, scale), *columns(rows)]
    if lacking:
        lines.append(f"without a metric of that protocol here: {', '.join(lacking)}")
    return lines


def _our_metrics(table: Published, protocols: Mapping[str, str]) -> dict[str, str | None]:
    """Return {quantity: our metric of the nearest protocol}; None where there is no such metric."""
    metrics = {}
    for quantity, types in table.quantities.items():
        metrics[quantity] = _nearest(protocols, types)
    return metrics


def _figure_cells(table: Published, dataset: str, quantity: str) -> list[str]:
    """Return the figure of each method, '-' where the source has none."""
    cells = []
    for figures in table.methods.values():
        figure = figures.get(dataset, {}).get(quantity)
        cells.append("-" if figure is None else f"{figure:g}")
    return cells


def origin(table: Published, scale: int) -> list[str]:
    """Return lines about the source of the figures, and a warning where they are of another scale than ours."""
    lines = [f"published, x{table.scale}: {table.source}. {table.note}."]
    if scale != table.scale:
        lines.append(f"scale is {scale} here, so that these figures are of another task")
    return lines


def _names(table: Published) -> list[str]:
    """Return the table's data sets."""
    return list(dict.fromkeys(itertools.chain.from_iterable(table.methods.values())))


def _nearest(protocols: Mapping[str, str], types: Sequence[str]) -> str | None:
    """Return the name of our metric whose protocol comes nearest to a figure's; None where there is none."""
    names = {protocol: name for name, protocol in protocols.items()}
    for type_name in types:
        protocol = Metric("", type_name, METRICS.get(type_name), {}).protocol
        if protocol in names:
            return names[protocol]
    return None
