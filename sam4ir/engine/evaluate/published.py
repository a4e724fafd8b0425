"""Published figures of benchmarks, to be printed beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam4ir.engine.evaluate.metric import Metric
from sam4ir.engine.evaluate.report import Means, columns
from sam4ir.errors import UserError
from sam4ir.registry import METRICS, near_miss

Figures = Mapping[str, Mapping[str, float]]  # {data set: {quantity: value}}


class PublishedError(UserError):
    """A table that is not known; the message names those that are."""


@dataclass(frozen=True)
class Published:
    """Figures of one source.

    quantities: {what the source calls it: metric types that come nearest to it here, the nearest first, all with
    default arguments on 8-bit images}. methods: {name: figures}. note: how they were computed.
    """

    source: str
    scale: int
    quantities: Mapping[str, Sequence[str]]
    methods: Mapping[str, Figures]
    note: str


def _figures(*rows: tuple[str, float, float, float]) -> dict[str, dict[str, float]]:
    return {name: {"PSNR": psnr, "SSIM": ssim, "FID": fid} for name, psnr, ssim, fid in rows}


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
_STAGE = "restored"


def find(name: str) -> Published:
    """The table called `name`, whatever its case and punctuation. Raises PublishedError with the near miss."""
    known = {_folded(key): key for key in TABLES}
    if _folded(name) not in known:
        near = near_miss(name, TABLES) or ";"
        raise PublishedError(f"val.published: no table is called {name!r}{near} known: {', '.join(TABLES)}")
    return TABLES[known[_folded(name)]]


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def dataset_of(name: str, known: Sequence[str]) -> str | None:
    """Which of the known data sets a name means: 'set 5', 'Set5_x4' and 'test_Set5' are Set5; None for another."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word not in _ASIDE]
    folded = "".join(words)
    return {_folded(k): k for k in known}.get(_SPELLINGS.get(folded, folded))


def rows_of(table: Published, dataset: str, protocols: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """{method: {our metric: published figure}} of a data set of ours. protocols: of our metrics, by their names."""
    name = dataset_of(dataset, _names(table))
    ours = {q: _nearest(protocols, types) for q, types in table.quantities.items()}
    found: dict[str, dict[str, float]] = {}
    for method, figures in table.methods.items() if name is not None else ():
        told = figures.get(str(name), {})
        row = {metric: told[q] for q, metric in ours.items() if metric is not None and q in told}
        if row:
            found[method] = row
    return found


def beside(table: Published, means: Means, protocols: Mapping[str, str], scale: int) -> list[str]:
    """Lines of the published table with our means of the deployed network; data sets that it lacks are left out.

    protocols: of our metrics, by their names; only one of the right protocol stands beside a figure. scale: ours.
    """
    names = _names(table)
    ours = {q: _nearest(protocols, types) for q, types in table.quantities.items()}
    rows = [["dataset", "quantity", "ours", "as", *table.methods]]
    for (dataset, stage), found in means.items():
        name = dataset_of(dataset, names)
        for quantity, metric in ours.items() if name is not None and stage == _STAGE else ():
            told = [figures.get(str(name), {}).get(quantity) for figures in table.methods.values()]
            if any(figure is not None for figure in told):
                own = str(found[metric]) if metric in found else "-"
                rows.append([dataset, quantity, own, metric or "-", *("-" if f is None else f"{f:g}" for f in told)])
    if len(rows) == 1:
        return [f"published ({table.source}): no data set here has the name of one of {', '.join(names)}"]
    lacking = [f"{q} ({' or '.join(types)})" for q, types in table.quantities.items() if ours[q] is None]
    told_lacking = [f"without a metric of that protocol here: {', '.join(lacking)}"] if lacking else []
    return [*origin(table, scale), *columns(rows), *told_lacking]


def origin(table: Published, scale: int) -> list[str]:
    """Where the figures come from, and whether they are of another task than with our scale."""
    lines = [f"published, x{table.scale}: {table.source}. {table.note}."]
    if scale != table.scale:
        lines.append(f"scale is {scale} here, so that these figures are of another task")
    return lines


def _names(table: Published) -> list[str]:
    """The table's data sets."""
    return list(dict.fromkeys(name for figures in table.methods.values() for name in figures))


def _nearest(protocols: Mapping[str, str], types: Sequence[str]) -> str | None:
    """The name of our metric that comes nearest to a figure's protocol."""
    names = {protocol: name for name, protocol in protocols.items()}
    wanted = [Metric("", type_name, METRICS.get(type_name), {}).protocol for type_name in types]
    return next((names[protocol] for protocol in wanted if protocol in names), None)
