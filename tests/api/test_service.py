"""docs/examples/service.py under uvicorn: 200 requests at once, of mixed sizes, and what it refuses."""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import NETWORK, photograph

import sam4ir
from sam4ir.registry import ARCHS
from sam4ir.utils.image import encode_png

ROOT = Path(__file__).resolve().parents[2]
HAS_SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn"))
REQUESTS = 200
SIZES = ((40, 52), (64, 64), (120, 90), (200, 300), (333, 111), (400, 600), (480, 640), (17, 23))
MOST_GROWTH = 150  # MiB; all 200 images at once would need some GiB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not HAS_SERVER, reason="needs fastapi and uvicorn"),
]


class Server(NamedTuple):
    """A running service. weights: those of its network."""

    port: int
    process: subprocess.Popen[bytes]
    weights: Path

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1000)
        try:
            connection.request("POST", "/restore", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def memory(self, name: str) -> int:
        """Return VmRSS or VmHWM in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        value = re.search(rf"{name}:\s+(\d+) kB", text)
        assert value is not None
        return int(value[1]) // 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weights = tmp_path_factory.mktemp("service") / "tiny.pth"
    torch.manual_seed(0)
    tiny = ARCHS.get("NAFNet")(**{key: value for key, value in NETWORK.items() if key != "type"})
    state = {key: value + 0.05 * torch.randn(value.shape) for key, value in tiny.state_dict().items()}
    torch.save({"params": state}, weights)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", "docs/examples", "--port", str(port), "service:app"]
    environment = {**os.environ, "SAM4IR_WEIGHTS": str(weights), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT, env=environment) as process:
        wait_until_open(port, process)
        yield Server(port, process, weights)
        process.terminate()


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the service has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the service does not listen")


def test_200_requests_at_once_all_get_the_direct_result_in_bounded_memory(server: Server) -> None:
    images = [photograph(number, *size) for number, size in enumerate(SIZES)]
    network = sam4ir.load(server.weights, device="cpu", tile=512)
    expected = [encode_png(network(image)) for image in images]
    files = [encode_png(image) for image in images]
    for file, wanted in zip(files, expected, strict=True):
        assert server.post(file) == (200, wanted)
    before, peak_before = server.memory("VmRSS"), server.memory("VmHWM")
    begun = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(lambda number: server.post(files[number % len(files)]), range(REQUESTS)))
    seconds = time.perf_counter() - begun
    after, peak = server.memory("VmRSS"), server.memory("VmHWM")
    print(f"MiB: {before} before, {after} after, peak {peak_before} before, {peak} after; {seconds:.1f} s")
    assert [status for status, _ in answers] == [200] * REQUESTS
    assert all(body == expected[number % len(files)] for number, (_, body) in enumerate(answers))
    assert peak - peak_before < MOST_GROWTH


def test_what_is_no_image_is_refused_with_the_reason(server: Server) -> None:
    status, text = server.post(b"no image")
    assert status == 422
    assert b"image" in text
    status, text = server.post(b"x" * 32_000_001)
    assert status == 413
