"""The page of a report in a headless browser: pictures load, the slider moves, both views zoom and pan together."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import World

from sam4ir.cli.main import main
from sam4ir.utils.image import read_image, write_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT = 60.0
PICTURES = "SAM4IR_REPORT_PICTURES"  # a folder, where pictures of the page are wanted


@pytest.fixture
def address(world: World) -> str:
    """Train once, score nothing but the validations, change the restored images of a copy, and report both."""
    values = world.values(sam=True)
    values["val"]["save_img"] = True
    assert main(["train", "-opt", str(world.write(values))]) == 0
    run = world.root / "experiments" / "small"
    other = shutil.copytree(run, run.with_name("a_run_with_a_long_name_that_tables_have_to_wrap_or_scroll"))
    for path in (other / "visualization").rglob("*.png"):
        write_image(path, 255 - read_image(path))
    options = yaml.safe_load((other / "options.yml").read_text())
    options["train"]["optim_g"]["lr"] = 0.125
    (other / "options.yml").write_text(yaml.safe_dump(options))
    output = world.root / "report.html"
    assert main(["report", str(run), str(other), "--images", "3", "--output", str(output)]) == 0
    return output.as_uri()


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


def show(browser: Any, address: str, width: int, *, dark: bool = False) -> None:
    """Open the page in a window of this width."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(address)
    end = time.monotonic() + WAIT
    while browser.execute_script("return document.documentElement.dataset.ready") != "true":
        assert time.monotonic() < end, "the script of the page did not run"
        time.sleep(0.1)
    picture(browser, f"{width}{'-dark' * dark}")


def picture(browser: Any, name: str) -> None:
    folder = os.environ.get(PICTURES)
    if folder:
        browser.save_screenshot(str(Path(folder) / f"report-{name}.png"))


def first(browser: Any, selector: str) -> Any:
    return browser.find_elements("css selector", selector)[0]


def test_all_pictures_load_and_the_console_is_silent(browser: Any, address: str) -> None:
    show(browser, address, 1280)
    loaded = browser.execute_script("return [...document.images].map((i) => i.decode().then(() => i.naturalWidth))")
    assert len(loaded) == 5 * 11
    widths = browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map((i) => i.decode())).then("
        "() => done([...document.images].map((i) => i.naturalWidth)), (error) => done(String(error)))"
    )
    assert set(widths) == {52}
    assert browser.get_log("browser") == []


def cut_of(browser: Any) -> tuple[float, float]:
    """Where the divider stands, and how much of the left view is cut off, in percent."""
    script = """
        const stage = document.querySelector(".stage");
        const divider = stage.querySelector(".divider").getBoundingClientRect();
        const box = stage.getBoundingClientRect();
        const left = [...stage.querySelectorAll("img")].find((image) => image.style.zIndex === "1");
        const inset = left.style.clipPath.match(/inset\\((?:0%?|0px) ([\\d.]+)%/);
        return [(100 * (divider.left + 1 - box.left)) / box.width, Number(inset[1])];
    """
    at, hidden = browser.execute_script(script)
    return at, hidden


def test_the_slider_moves_by_keyboard_and_by_dragging(browser: Any, address: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(browser, address, 1280)
    assert cut_of(browser) == pytest.approx((50, 50), abs=0.5)
    slider = first(browser, ".slider")
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert cut_of(browser) == pytest.approx((55, 45), abs=0.5)
    slider.send_keys(Keys.HOME)
    assert cut_of(browser) == pytest.approx((0, 100), abs=0.5)
    stage = first(browser, ".stage")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    width = stage.size["width"]
    drag = ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(int(width / 4), 0).release()
    drag.perform()
    assert cut_of(browser) == pytest.approx((75, 25), abs=1)


def test_the_slider_moves_by_touch(browser: Any, address: str) -> None:
    show(browser, address, 400)
    stage = first(browser, ".stage")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", stage)
    box = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width]", stage)
    x, y = box[0] + box[2] / 2, box[1] + 40
    touches = [("touchStart", x), ("touchMove", x - 30), ("touchMove", x - box[2] / 4), ("touchEnd", None)]
    for kind, place in touches:
        points = [] if place is None else [{"x": place, "y": y}]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert cut_of(browser) == pytest.approx((25, 75), abs=2)


def transforms(browser: Any) -> list[str]:
    """The zoom and pan of the views that the first viewer shows."""
    script = "return [...document.querySelector('.stage').querySelectorAll('img:not([hidden])')]"
    return [image.value_of_css_property("transform") for image in browser.execute_script(script)]


def test_any_two_views_zoom_and_pan_together(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    show(browser, address, 1280)
    labels = [option.text for option in Select(first(browser, "[data-role=left]")).options]
    assert labels[0] == "LQ (input)"
    assert labels[-1] == "region boundaries"
    for left, right in (("GT", "A refined"), ("region boundaries", "error of A small × 5"), ("GT", "GT")):
        Select(first(browser, "[data-role=left]")).select_by_visible_text(left)
        Select(first(browser, "[data-role=right]")).select_by_visible_text(right)
        shown = browser.execute_script(
            "return [...document.querySelector('.stage').querySelectorAll('img:not([hidden])')].map((i) => i.alt)"
        )
        assert {alt.partition(" of small_val/")[0] for alt in shown} == {left, right}
    Select(first(browser, "[data-role=right]")).select_by_visible_text("LQ (input)")
    before = transforms(browser)
    assert len(set(before)) == 1
    first(browser, "[data-role=in]").click()
    zoomed = transforms(browser)
    assert len(set(zoomed)) == 1
    assert zoomed != before
    first(browser, ".stage").send_keys(Keys.ARROW_LEFT)
    panned = transforms(browser)
    assert len(set(panned)) == 1
    assert panned != zoomed
    first(browser, "[data-role=swap]").click()
    assert Select(first(browser, "[data-role=left]")).first_selected_option.text == "LQ (input)"
    first(browser, "[data-role=fit]").click()
    assert transforms(browser) == before


def test_a_link_opens_the_group_of_its_image_and_the_viewer_there_works(browser: Any, address: str) -> None:
    show(browser, address, 1280)
    group = first(browser, "details:has(.viewer)")
    assert not group.get_property("open")
    last = browser.find_elements("css selector", "article.image")[-1]
    browser.execute_script("location.hash = arguments[0]", last.get_attribute("id"))
    end = time.monotonic() + WAIT
    while not group.get_property("open"):
        assert time.monotonic() < end, "the link opened nothing"
        time.sleep(0.05)
    slider = last.find_element("css selector", ".slider")
    slider.send_keys("\ue010")  # the key End
    divider = last.find_element("css selector", ".divider")
    stage = last.find_element("css selector", ".stage")
    assert divider.rect["x"] == pytest.approx(stage.rect["x"] + stage.rect["width"], abs=2)


@pytest.mark.parametrize("width", [400, 1280])
def test_no_page_is_wider_than_its_window(browser: Any, address: str, width: int) -> None:
    show(browser, address, width)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.body.scrollWidth") <= width


def brightness(colour: str) -> float:
    """The mean of the three values of 'rgb(r, g, b)'."""
    return float(np.mean([float(value) for value in colour[colour.index("(") + 1 : -1].split(",")[:3]]))


def test_the_page_is_dark_where_the_reader_prefers_it(browser: Any, address: str) -> None:
    papers = {}
    for dark in (False, True):
        show(browser, address, 1280, dark=dark)
        body = first(browser, "body")
        papers[dark] = brightness(body.value_of_css_property("background-color"))
        ink = brightness(body.value_of_css_property("color"))
        assert abs(ink - papers[dark]) > 150
    assert papers[False] > 240
    assert papers[True] < 40


def test_charts_show_values_by_keyboard(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, address, 1280)
    chart = first(browser, "svg.chart")
    chart.send_keys(Keys.ARROW_RIGHT * 2)
    bubble = first(browser, ".bubble").text.splitlines()
    box, around = first(browser, ".bubble").rect, chart.rect
    assert around["x"] <= box["x"] <= around["x"] + around["width"] - box["width"]
    assert around["y"] <= box["y"] <= around["y"] + around["height"] - box["height"]
    assert bubble[0] == "iteration 8"
    assert any(line.startswith("small") for line in bubble[1:])
    chart.send_keys(Keys.ESCAPE)
    assert browser.find_elements("css selector", ".bubble") == []
