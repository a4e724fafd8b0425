"""The scores of a study's runs, and what it finds in them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import World, photograph, sam_masks
from engine.report.test_report import Page
from engine.study.small_study import IMAGES, finish, finish_all, small_plan

from sam4ir.config.study import BandOptions
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.engine.study.bands import BandReader
from sam4ir.engine.study.findings import StudyFindings, findings_of
from sam4ir.engine.study.pilot import pilot_finding, pilot_plan, pilot_text
from sam4ir.engine.study.plan import StudyError
from sam4ir.engine.study.report import study_json, study_page, study_text
from sam4ir.engine.study.scores import read_scores, refuse_unscored
from sam4ir.utils.image import write_image

GAINS = (0.30, 0.34, 0.32)


@pytest.fixture(autouse=True)
def _in_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)


def found(world: World, gains: Sequence[float] = GAINS, **changes: object) -> StudyFindings:
    plan = small_plan(world, **changes)  # type: ignore[arg-type]
    finish_all(plan, gains)
    return findings_of(read_scores(plan))


def test_means_differences_and_verdict(world: World) -> None:
    findings = found(world)
    plain, l1 = findings.arms
    assert plain.means == pytest.approx({0: 22.0, 1: 22.0, 2: 22.0})
    assert l1.mean == pytest.approx(22.32)
    assert l1.deviation == pytest.approx(0.02)
    assert (l1.iterations, l1.step, l1.hours) == (8, 1.0, pytest.approx(24 / 3600))
    (each,) = findings.comparisons
    assert each.difference.means == pytest.approx(GAINS)
    assert each.verdict == "better"
    assert findings.notes == []


def test_a_lower_value_is_better_where_the_metric_says_so(world: World) -> None:
    values = world.values()
    values["val"]["metrics"] = {"psnr": {"type": "lpips_alex"}}
    rule = {"better": "l1", "than": "plain", "least": 0.2, "then": "nothing follows."}
    plan = small_plan(world, values, stop=rule)
    finish_all(plan, (-0.30, -0.34, -0.32))
    findings = findings_of(read_scores(plan))
    assert findings.comparisons[0].verdict == "better"
    assert findings.stop == "Go on: l1 is better than plain by +0.320; declared before: at least 0.2."


@pytest.mark.parametrize(("least", "words"), [(0.3, "Go on: "), (0.4, "STOP: ")])
def test_the_stop_rule_is_judged_when_all_seeds_are_done(least: float, words: str, world: World) -> None:
    rule = {"better": "l1", "than": "plain", "least": least, "then": "nothing follows."}
    findings = found(world, stop=rule)
    assert findings.stop.startswith(words)
    assert ("So: nothing follows." in findings.stop) == (words == "STOP: ")
    plan = small_plan(world, stop=rule)
    (plan.folder / "done" / "l1_s1.json").unlink()
    findings = findings_of(read_scores(plan))
    assert findings.stop == "The stop rule waits for all 3 seeds (2 are done)."
    assert findings.notes == ["1 runs are not done yet: l1_s1"]
    assert findings.comparisons[0].difference.seeds == 2


def test_one_seed_calls_no_difference(world: World) -> None:
    findings = found(world, seeds=1)
    assert findings.comparisons[0].verdict == "one seed"
    text = study_text(findings)
    assert "nothing: one seed" in text
    assert "one seed: no difference is called, since another seed can turn it round" in text
    assert "better\n" not in text


def test_comparisons_to_come_count_in_the_correction(world: World) -> None:
    arms = {"plain": {}, "l1": {}, "later": {}}
    comparisons = [{"better": better, "than": "plain", "matters": 0.1} for better in ("l1", "later")]
    plan = small_plan(world, arms=arms, comparisons=comparisons)
    for seed, gain in enumerate(GAINS):
        finish(plan, f"plain_s{seed}", dict.fromkeys(IMAGES, 20.0))
        finish(plan, f"l1_s{seed}", dict.fromkeys(IMAGES, 20.0 + gain))
    first, later = findings_of(read_scores(plan)).comparisons
    assert first.corrected == pytest.approx(2 * first.difference.p)
    assert later.difference is None
    assert "no seed has both" in study_text(findings_of(read_scores(plan)))


def test_images_that_some_run_lacks_or_scores_without_end_do_not_count(world: World) -> None:
    plan = small_plan(world, seeds=2)
    finish(plan, "plain_s0", {"a": 20.0, "b": 30.0, "c": 40.0})
    finish(plan, "plain_s1", {"a": 21.0, "b": math.inf, "c": 40.0})
    finish(plan, "l1_s0", {"a": 22.0, "b": 30.0})
    finish(plan, "l1_s1", {"b": 30.0, "a": 23.0})
    findings = findings_of(read_scores(plan))
    assert findings.scores.images() == [("small_val", "a")]
    assert findings.comparisons[0].difference.means == (2.0, 2.0)
    assert findings.notes == [
        "runs scored 3 images, of which only the 2 count that all have",
        "1 images do not count, since their psnr is not finite in some run",
    ]


def test_runs_without_an_image_in_common_are_refused(world: World) -> None:
    plan = small_plan(world)
    finish(plan, "plain_s0", {"a": 20.0})
    finish(plan, "l1_s0", {"b": 20.0})
    with pytest.raises(StudyError, match="no image in common"):
        read_scores(plan)


def test_a_run_whose_last_validation_is_not_its_end_is_refused(world: World) -> None:
    plan = small_plan(world)
    run = finish(plan, "plain_s0", {"a": 20.0})
    log = run / "log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    with pytest.raises(StudyError, match=r"its last validation is 4, not at its end \(8\)"):
        read_scores(plan)


def test_a_report_without_runs_says_how_to_train_them(world: World) -> None:
    with pytest.raises(StudyError, match="none of its runs is done; sam4ir study run trains them"):
        findings_of(read_scores(small_plan(world)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {"metric": "lpips"}}, "score.metric: lpips is none of val.metrics: psnr, ssim"),
        ({"score": {"output": "refined"}}, "needs val:refiner: true"),
        ({"score": {"sets": ["other"]}}, "other is none of its validation sets: small_val"),
        ({"set": {"val:val_freq": None}}, "has no validation"),
        ({"arms": {"plain": {}, "l1": {"val:val_freq": None}}}, "l1_s0: has no validation"),
        ({"set": {"val:patience": 1, "val:save_best": "psnr"}}, "may end it early"),
        ({"bands": {"store": "masks.lmdb"}}, "bands need `val:save_img: true`"),
    ],
)
def test_a_study_that_would_have_no_scores_is_refused_before_it_trains(
    changes: dict, message: str, world: World
) -> None:
    with pytest.raises(StudyError, match=message):
        refuse_unscored(small_plan(world, **changes))
    refuse_unscored(small_plan(world))


def test_the_headroom_is_the_refiners_gain(world: World) -> None:
    plan = small_plan(world, world.values(sam=True), seeds=2)
    for arm, gain in (("plain", 0.1), ("l1", 0.5)):
        for seed in (0, 1):
            restored = dict.fromkeys(IMAGES, 20.0)
            finish(plan, f"{arm}_s{seed}", restored, dict.fromkeys(IMAGES, 20.0 + gain))
    plain, l1 = findings_of(read_scores(plan)).arms
    assert (plain.headroom, l1.headroom) == (pytest.approx({0: 0.1, 1: 0.1}), pytest.approx({0: 0.5, 1: 0.5}))
    assert l1.masks == "clean image (an oracle)"
    plan = small_plan(world, world.values(sam=True), seeds=2, score={"output": "refined"}, set={"val:refiner": True})
    for name in ("plain_s0", "plain_s1", "l1_s0", "l1_s1"):
        done = plan.folder / "done" / f"{name}.json"
        done.write_text(json.dumps({"facts": plan.jobs[name].facts, "seconds": 8.0}))
    plain, l1 = findings_of(read_scores(plan)).arms
    assert l1.mean == pytest.approx(20.5)
    assert l1.headroom == pytest.approx({0: 0.5, 1: 0.5})


def plain_parts(labels: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The parts of an image by loops over pixels, as docs/studies.md describes them."""
    height, wide = labels.shape
    on_border = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(wide):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= y + dy < height and 0 <= x + dx < wide and labels[y, x] != labels[y + dy, x + dx]:
                    on_border[y, x] = True
    near = np.zeros(labels.shape, bool)
    for y, x in np.argwhere(on_border):
        near[max(y - width + 1, 0) : y + width, max(x - width + 1, 0) : x + width] = True
    shares = np.zeros(labels.shape)
    for region in np.unique(labels):
        shares[labels == region] = (labels == region).mean()
    inside = labels > 0
    return {
        "near borders": near,
        "inside regions": inside & ~near,
        "no region": ~inside,
        "small regions": inside & (shares <= 0.01),
        "medium regions": inside & (shares > 0.01) & (shares <= 0.1),
        "large regions": inside & (shares > 0.1),
    }


@pytest.mark.parametrize("width", [1, 3])
def test_bands_are_those_of_a_plain_computation(width: int, world: World) -> None:
    plan = small_plan(world, seeds=1, set={"val:save_img": True})
    rng = np.random.default_rng(0)
    run = finish(plan, "l1_s0", dict.fromkeys(IMAGES, 20.0))
    restored = {}
    for i, image in enumerate(IMAGES):
        noisy = photograph(i) + rng.normal(0, 10, photograph(i).shape)
        restored[image] = noisy.clip(0, 255).round().astype(np.uint8)
        write_image(run / "visualization" / "small_val" / "8" / f"{image}.png", restored[image])
    store = world.root / "masks.lmdb"
    scores = read_scores(plan).by_arm["l1"][0]
    bands = BandReader(BandOptions(store=str(store), width=width)).of_run(scores, "restored")
    assert {"near borders", "inside regions", "no region"} <= set(bands)
    for i, image in enumerate(IMAGES):
        labels = MaskStore(store).read(image).region_map(0, 0, 40, 52)
        for part, inside in plain_parts(labels, width).items():
            if inside.sum() < 64:
                assert ("small_val", image) not in bands.get(part, {})
                continue
            error = np.mean((restored[image][inside].astype(float) - photograph(i)[inside].astype(float)) ** 2)
            assert bands[part]["small_val", image] == pytest.approx(10 * math.log10(255**2 / error), rel=1e-9)


def test_bands_of_two_arms_are_compared_on_the_images_that_both_have(world: World) -> None:
    plan = small_plan(world, seeds=2, set={"val:save_img": True}, bands={"store": str(world.root / "masks.lmdb")})
    for name, shift, images in (
        ("plain_s0", 8, IMAGES),
        ("plain_s1", 8, IMAGES),
        ("l1_s0", 4, IMAGES[:3]),
        ("l1_s1", 4, IMAGES[1:]),
    ):
        run = finish(plan, name, dict.fromkeys(images, 20.0))
        for image in images:
            picture = photograph(IMAGES.index(image))
            moved = np.where(picture < 128, picture + shift, picture - shift)
            write_image(run / "visualization" / "small_val" / "8" / f"{image}.png", moved.astype(np.uint8))
    findings = findings_of(read_scores(plan))
    (each,) = findings.comparisons
    assert each.bands["near borders"].mean == pytest.approx(20 * math.log10(2))
    assert "l1 - plain by part of the images, not corrected:" in study_text(findings)
    next((world.root / "experiments").rglob("8/photo_1.png")).unlink()
    with pytest.raises(StudyError, match="is missing; bands need"):
        findings_of(read_scores(plan))


class _Tags(HTMLParser):
    """Checks that tags are closed in their order."""

    void = ("meta", "img", "br", "input", "link", "hr", "line", "path", "circle", "rect", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_report_as_text_json_and_page(world: World) -> None:
    findings = found(
        world, note="Is <b>L1</b> better & why?", name="small & <study>".replace("<", "(").replace(">", ")")
    )
    text = study_text(findings)
    assert "better" in text
    assert "[+0.2703, +0.3697]" in text  # 0.32 -+ 4.303 x 0.02 / sqrt(3)
    figures = json.loads(study_json(findings), parse_constant=lambda word: pytest.fail(word))
    assert figures["arms"]["l1"]["means"] == pytest.approx({"0": 22.30, "1": 22.34, "2": 22.32})
    assert figures["arms"]["l1"]["images"]["0"]["small_val/photo_0"] == pytest.approx(20.3)
    assert figures["comparisons"][0]["verdict"] == "better"
    html = study_page(findings)
    _Tags().feed(html)
    page = Page(html)
    assert "Is <b>L1</b> better & why?" in page.text
    assert "<b>L1" not in html
    assert "22.3200" in page.text
    ids = [element["id"] for elements in page.elements.values() for element in elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert not [link for link in page.elements.get("link", []) if "//" in str(link.get("href"))]
    assert not [script for script in page.elements.get("script", []) if script.get("src")]
    assert len([svg for svg in page.elements["svg"] if "chart" in str(svg.get("class"))]) == 2


def test_numbers_that_are_none_are_null_in_json(world: World) -> None:
    findings = found(world, seeds=1)
    text = study_json(findings)
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["arms"]["l1"]["deviation"] is None
    Page(study_page(findings))


def test_a_pilot_states_what_its_spread_lets_a_study_see(world: World) -> None:
    plan = small_plan(world)
    pilot = pilot_plan(plan.study, plan.file, 4)
    for seed, mean in enumerate((20.00, 20.02, 20.04, 20.06)):
        finish(pilot, f"plain_s{seed}", dict.fromkeys(IMAGES, mean))
    finding = pilot_finding(read_scores(pilot, ["plain"]))
    assert finding.means == pytest.approx((20.00, 20.02, 20.04, 20.06))
    assert finding.deviation == pytest.approx(math.sqrt(2) * 0.0258199, rel=1e-5)
    assert finding.lowest == pytest.approx(finding.deviation * math.sqrt(3 / 7.8147), rel=1e-4)  # chi-square tables
    assert finding.highest == pytest.approx(finding.deviation * math.sqrt(3 / 0.35185), rel=1e-4)
    text = pilot_text(finding, plan.study)
    assert "Pilot of small_study: plain with 4 seeds" in text
    assert "To see 0.1, which matters by the study file, takes 4 seeds." in text


def test_a_pilot_takes_the_studys_seeds_first_and_two_at_least(world: World) -> None:
    plan = small_plan(world, seeds=[7, 1])
    assert pilot_plan(plan.study, plan.file, 4).study.all_seeds == (7, 1, 0, 2)
    assert pilot_plan(plan.study, plan.file, 2).study.all_seeds == (7, 1)
    with pytest.raises(StudyError, match="needs two seeds or more"):
        pilot_plan(plan.study, plan.file, 1)
    with pytest.raises(StudyError, match="fewer than two seeds of plain are done"):
        pilot_finding(read_scores(plan, ["plain"]))


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"generator": "drawn", "source": "gt"}, "clean image (an oracle)"),
        ({"generator": "drawn", "source": "restored"}, "restored image"),
        ({"generator": "control: shuffled", "source": "gt"}, "clean image, shuffled (a control)"),
        ({"generator": "control: slic", "source": "restored"}, "restored image, superpixels (a control)"),
    ],
)
def test_the_report_names_the_masks_of_an_arm(meta: dict, words: str, world: World) -> None:
    store = world.root / "other.lmdb"
    with MaskStoreWriter(store, meta) as writer:
        writer.put("photo_0", sam_masks())
    plan = small_plan(world, world.values(sam=True), seeds=1, set={"datasets:train:masks:store": str(store)})
    finish(plan, "l1_s0", dict.fromkeys(IMAGES, 20.0))
    assert findings_of(read_scores(plan)).arms[0].masks == words
