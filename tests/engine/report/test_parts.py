"""Parts of a report: markup, charts, the choice of images, and the arithmetic of views."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sam4ir.engine.evaluate.results import Result
from sam4ir.engine.report.charts import MOST_POINTS, Curve, Dot, line_chart, scatter_chart, thinned
from sam4ir.engine.report.chosen import Judged, choice_metric, choose_images, judged_images
from sam4ir.engine.report.image_section import starting_views
from sam4ir.engine.report.inputs import Scored
from sam4ir.engine.report.markup import element, joined
from sam4ir.engine.report.pictures import (
    RESULT,
    NamedView,
    boundaries_on,
    encoded_panel,
    error_map,
    reduced_panel,
    spread_map,
)
from sam4ir.engine.report.run_facts import ReportError
from sam4ir.utils.image import decode_image


def test_texts_are_escaped_and_elements_are_not() -> None:
    inner = element("b", "<i>", title="\"'&")
    assert inner == '<b title="&quot;&#x27;&amp;">&lt;i&gt;</b>'
    assert element("p", inner, "&", hidden=True, id=None) == f"<p hidden>{inner}&amp;</p>"
    assert joined(["<", inner]) == f"&lt;{inner}"
    assert element("img", alt="\udcff\x00") == '<img alt="\ufffd\ufffd">', "bytes that are no text"


def test_thinning_keeps_means_and_the_end() -> None:
    points = [(float(x), float(x)) for x in range(1, 10 * MOST_POINTS + 1)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert thin[0] == (10, 5.5)
    assert thin[-1][0] == points[-1][0]
    assert thinned([(1, math.nan), (2, 3.0), (3, math.inf)]) == [(2, 3.0)]


def places(chart: str) -> list[list[list[float]]]:
    """Where the points of each curve lie in the picture."""
    (text,) = re.findall(r'data-curves="([^"]*)"', chart)
    return [curve["at"] for curve in json.loads(text.replace("&quot;", '"'))]


def test_a_chart_places_its_points_on_its_axes() -> None:
    chart = line_chart("loss", [Curve("a", [(0, 0.0), (50, 5.0), (100, 10.0)])])
    ((start, middle, end),) = places(chart)
    assert middle[0] == pytest.approx((start[0] + end[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((start[1] + end[1]) / 2, abs=0.1)
    assert end[1] < start[1], "larger values lie higher"


def test_rates_have_a_logarithmic_axis() -> None:
    chart = line_chart("rate", [Curve("a", [(0, 1.0), (1, 0.1), (2, 0.01)])], rates=True)
    ((first, second, third),) = places(chart)
    assert second[1] - first[1] == pytest.approx(third[1] - second[1], abs=0.2)


def test_equal_curves_become_one_and_single_points_no_chart() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    chart = line_chart("t", [Curve("a", points), Curve("b", points), Curve("c", [(0.0, 2.0), (1.0, 2.0)])])
    assert len(places(chart)) == 2
    assert "a; b" in chart
    assert line_chart("t", [Curve("a", points[:1])]) == ""
    assert line_chart("t", []) == ""


def test_numbers_that_no_chart_can_show_are_left_out() -> None:
    good = [(3, 1.0), (4, 2.0)]
    chart = line_chart("l", [Curve("a", [(1, 1e308), (2, -1e308), *good, (10**400, 1.0), (5, math.nan)])])
    assert places(chart) == places(line_chart("l", [Curve("a", good)]))
    for last in (0.0, 1.0):
        assert line_chart("rate", [Curve("a", [(1, 5e-324), (2, last)])], rates=True)


def test_a_scatter_counts_and_links_its_points() -> None:
    dots = [Dot("<x>", 1, 2, "image-1"), Dot("y", 3, 2), Dot("z", math.nan, 1), Dot("w", math.inf, 1)]
    chart = scatter_chart("psnr", "A", "B", dots)
    assert chart.count("<circle") == 2
    assert '<a href="#image-1" aria-label="&lt;x&gt;: 1.0000, 2.0000 (+1.0000)">' in chart
    assert "2 images, 1 above the diagonal" in chart


def judged(gains: list[float]) -> list[Judged]:
    return [Judged("set", f"image_{number}", gain) for number, gain in enumerate(gains)]


def test_a_third_are_the_worst_a_third_the_best_and_the_others_lie_evenly_between() -> None:
    chosen = choose_images(judged([float(number) for number in range(100)]), 9, compared=True)
    assert [each.gain for each in chosen] == [0, 1, 2, 99, 98, 97, 18, 50, 81]
    assert [each.reason for each in chosen] == ["worst"] * 3 + ["best"] * 3 + ["evenly chosen"] * 3


@pytest.mark.parametrize("count", range(12))
def test_any_number_of_images_can_be_chosen(count: int) -> None:
    images = judged([3.0, math.nan, -1.0, 2.0, math.inf, 0.0, 1.0, -math.inf, 5.0, 4.0])
    chosen = choose_images(images, count, compared=False)
    assert len({each.place for each in chosen}) == len(chosen) == min(count, 10)


def test_images_without_a_number_are_no_best_ones() -> None:
    images = judged([math.nan, 1.0, math.nan, 2.0, 3.0, 4.0, math.nan])
    assert [each.gain for each in choose_images(images, 3, compared=True)] == [1, 4, 3]
    five = choose_images(images, 5, compared=True)
    assert [each.gain for each in five[:4]] == [1, 2, 3, 4]
    assert math.isnan(five[4].gain)


def scored(name: str, values: dict[str, float], metric: str = "psnr", lower: bool = False) -> Scored:
    images = {image: {metric: value} for image, value in values.items()}
    result = Result(name, {}, {"set": {"restored": images}}, {}, frozenset([metric] if lower else []))
    return Scored("A", result, Path(name))


def test_gains_are_positive_where_the_second_result_is_better() -> None:
    a, b = {"x": 1.0, "y": 2.0, "z": 1.0, "same": math.inf}, {"x": 3.0, "y": 1.0, "same": math.inf}
    gains = {each.image: each.gain for each in judged_images([scored("a", a), scored("b", b)], "psnr")}
    assert math.isnan(gains.pop("z"))  # b lacks it
    assert gains == {"x": 2, "y": -1, "same": 0}
    lower = judged_images([scored("a", a, lower=True), scored("b", b, lower=True)], "psnr")
    assert {each.image: each.gain for each in lower}["x"] == -2


def test_the_metric_of_the_choice_must_be_in_all_results() -> None:
    results = [scored("a", {"x": 1.0}), scored("b", {"x": 1.0})]
    assert choice_metric(results, None) == "psnr"
    with pytest.raises(ReportError, match=r"--metric: a has no metric 'lpips' of images; it has psnr"):
        choice_metric(results, "lpips")


def test_an_error_map_is_the_mean_difference_times_five() -> None:
    gt = np.full((2, 2, 3), 100, np.uint8)
    image = gt.copy()
    image[0, 0] = [103, 97, 100]
    image[1, 1] = 200
    assert error_map(image, gt)[..., 0].tolist() == [[10, 0], [0, 255]]


def test_a_spread_is_the_deviation_of_samples_times_five() -> None:
    samples = [np.full((1, 1, 3), value, np.uint8) for value in (10, 14)]
    assert spread_map(samples)[0, 0, 0] == round(5 * 8**0.5)


def test_boundaries_are_red_on_grey() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0] = [30, 60, 90]
    assert boundaries_on(image, np.array([[False, True]])).tolist() == [[[60, 60, 60], [255, 40, 40]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_small_views_are_exact_and_large_ones_close(channels: int) -> None:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (256, 256, channels), np.uint8)
    png = encoded_panel(NamedView("x", small), lossless=False)
    assert png.kind == "image/png"
    assert np.array_equal(decode_image(png.data, "x", channels), small)  # type: ignore[arg-type]
    rows, columns = np.mgrid[:300, :300]
    large = np.repeat(((rows + columns) / 3)[..., None], channels, axis=2).astype(np.uint8)
    webp = encoded_panel(NamedView("x", large), lossless=False)
    assert webp.kind == "image/webp"
    assert np.abs(decode_image(webp.data, "x").astype(int) - large).mean() < 2
    assert encoded_panel(NamedView("x", large), lossless=True).kind == "image/png"
    assert reduced_panel(NamedView("x", small)) == png
    reduced = reduced_panel(NamedView("x", np.zeros((700, 1400, 1), np.uint8)))
    assert (reduced.kind, reduced.height, reduced.width) == ("image/webp", 240, 480)
    assert reduced_panel(NamedView("x", np.zeros((3, 2000, 3), np.uint8))).height == 1


def test_a_viewer_begins_with_two_results_or_with_input_and_result() -> None:
    assert starting_views(["", RESULT, "output", RESULT, "", ""]) == (1, 3)
    assert starting_views(["", RESULT, ""]) == (0, 1)
    assert starting_views(["", "output", "output", ""]) == (0, 1)
    assert starting_views([RESULT]) == (0, 0)
