"""The page of `sam4ir demo` in a headless browser: a photograph is dropped, restored, compared and downloaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from sam4ir.registry import ARCHS
from sam4ir.utils.image import read_image, write_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SERVED = re.compile(r"http://127\.0\.0\.1:\d+/?")
WAIT = 240.0  # seconds; the machines of tests are small


def brightening() -> dict[str, torch.Tensor]:
    """Weights of a small NAFNet that adds 20/255 to each value and nothing else."""
    network = ARCHS.get("NAFNet")(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["ending.bias"] += 20 / 255
    return state


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("gradio")
    torch.save({"params": brightening()}, tmp_path / "brighter.pth")
    command = [sys.executable, "-m", "sam4ir", "demo", "--weights", str(tmp_path / "brighter.pth"), "--device", "cpu"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "SAM4IR_HOME": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        match = None
        for line in process.stdout:
            match = SERVED.search(line)
            if match is not None:
                break
        assert match is not None
        yield match[0]
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,820"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    window.set_page_load_timeout(WAIT)
    yield window
    window.quit()


def test_a_photograph_is_restored_compared_and_downloaded(address: str, browser: Any, tmp_path: Path) -> None:
    photograph = pytest.importorskip("skimage.data").astronaut()[:256, :320]
    write_image(tmp_path / "photo.png", photograph)
    browser.get(address)
    upload(browser, tmp_path / "photo.png")
    press(browser, "#restore")
    words = text_of(browser, "#words", "NAFNet")
    assert "320 x 256 pixels" in words
    assert "(brighter.pth)" in words
    shown = eventually(lambda: pictures(browser) if len(pictures(browser)) == 2 else None)
    assert all(shown)
    picture = os.environ.get("SAM4IR_DEMO_PICTURE")  # where a picture of the page is wanted
    if picture:
        browser.save_screenshot(picture)
    press(browser, "#download")
    file = eventually(lambda: next(iter((tmp_path / "downloads").glob("*.png")), None))
    expected = np.minimum(photograph.astype(int) + 20, 255)
    assert np.array_equal(read_image(file), expected)
    assert foreign_requests(browser) == []


def test_a_file_that_is_too_large_is_refused_with_a_message(address: str, browser: Any, tmp_path: Path) -> None:
    write_image(tmp_path / "wide.png", np.zeros((2000, 6001, 3), np.uint8))
    browser.get(address)
    upload(browser, tmp_path / "wide.png")
    press(browser, "#restore")
    assert "more than the 12,000,000" in text_of(browser, ".toast-body", "more than")


def upload(browser: Any, file: Path) -> None:
    """Give a file to the page's first image, and wait until the page shows it."""
    entry = eventually(lambda: (browser.find_elements("css selector", "#input input[type=file]") or [None])[0])
    entry.send_keys(str(file))
    eventually(lambda: browser.find_elements("css selector", "#input img"))


def press(browser: Any, selector: str) -> None:
    """Press a button of the page."""
    button = eventually(lambda: (browser.find_elements("css selector", selector) or [None])[0])
    eventually(lambda: button.is_enabled())
    browser.execute_script("arguments[0].click()", button)


def text_of(browser: Any, selector: str, part: str) -> str:
    """Wait for a part of the text of an element; return the text."""

    def text() -> str | None:
        for element in browser.find_elements("css selector", selector):
            if part in element.text:
                return str(element.text)
        return None

    return str(eventually(text))


def pictures(browser: Any) -> list[int]:
    """Return the widths of the pictures in the slider that the browser has loaded."""
    script = "return Array.from(document.querySelectorAll('#slider img')).map(i => i.naturalWidth)"
    return [width for width in browser.execute_script(script) if width]


def foreign_requests(browser: Any) -> list[str]:
    """Return the addresses that the page asked for on other machines, and those that its policy refused."""
    addresses = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).hostname != "127.0.0.1":
                addresses.append(url)
    for entry in browser.get_log("browser"):
        if "Content Security Policy" in entry["message"]:
            addresses.append(entry["message"])
    return addresses


def eventually(look: Any) -> Any:
    """Return what `look` returns once it is true; fail after some time."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        value = look()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError("the page did not come to it")
