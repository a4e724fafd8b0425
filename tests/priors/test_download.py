"""Transfers against a local server: resumed, refused, wrong, and asked for twice at once."""

import concurrent.futures
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sam4ir.priors import zoo
from sam4ir.priors.download import UnreachableError, WeightsError, accept, is_accepted, transfer
from sam4ir.priors.sources import Url
from sam4ir.priors.zoo import Entry, cached, load_state, resolve

BODY = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY. ranges: whether Range is understood; breaks: bytes after which each of the next replies stops."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.breaks, self.asked = True, [], []
        self.url = f"http://127.0.0.1:{self.server_port}/tiny-{DIGEST[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start : start + server.breaks.pop(0)] if server.breaks else BODY[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny(server, monkeypatch):
    """The zoo with one entry, served locally."""
    entry = Entry("tiny", "a test", "none", (Url(server.url, DIGEST, len(BODY)),))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    return entry


def test_a_missing_file_is_fetched_once_and_then_found_without_the_network(server, tiny, tmp_path):
    path = resolve("tiny", tmp_path)
    assert path == tmp_path / f"tiny-{DIGEST[:8]}.pth"
    assert path.read_bytes() == BODY
    assert resolve("tiny", tmp_path) == path
    assert server.asked == [None]
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_transfer_goes_on_where_it_ended(server, tmp_path):
    server.breaks = [100_000, 50_000]
    transfer(server.url, tmp_path / "x.part", len(BODY))
    assert (tmp_path / "x.part").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_part_file_of_an_earlier_run_is_used(server, tiny, tmp_path):
    (tmp_path / f"{tiny.sources[0].file}.part").write_bytes(BODY[:777])
    assert resolve("tiny", tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=777-"]


def test_a_server_that_ignores_ranges_sends_it_all_again(server, tmp_path):
    server.ranges = False
    part = tmp_path / "x.part"
    part.write_bytes(b"something else")
    transfer(server.url, part, len(BODY))
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY)])
def test_a_part_file_longer_than_the_whole_is_started_again(server, tmp_path, size):
    part = tmp_path / "x.part"
    part.write_bytes(BODY + b"more")
    transfer(server.url, part, size)
    assert part.read_bytes() == BODY


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_is_kept(server, tmp_path):
    server.breaks = [1000] * 50
    with pytest.raises(UnreachableError, match="broke off at 5,000 bytes; run again"):
        transfer(server.url, tmp_path / "x.part", len(BODY))
    assert (tmp_path / "x.part").stat().st_size == 5000


def test_a_wrong_hash_is_an_error_and_leaves_nothing(server, monkeypatch, tmp_path):
    wrong = Entry("tiny", "a test", "none", (Url(server.url, "0" * 64),))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": wrong})
    with pytest.raises(WeightsError, match=rf"sha256 {DIGEST}, expected 0000"):
        resolve("tiny", tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    with pytest.raises(WeightsError, match=r"offers 1,280,000 bytes, expected 7"):
        transfer(server.url, tmp_path / "x.part", 7)
    assert not (tmp_path / "x.part").exists()


def test_a_hash_may_be_given_by_its_first_digits(tmp_path):
    (tmp_path / "x.part").write_bytes(BODY)
    accept(tmp_path / "x.part", tmp_path / "x", DIGEST[:8])
    assert is_accepted(tmp_path / "x", DIGEST[:8])
    assert (tmp_path / "x.sha256").read_text() == f"{DIGEST}  x\n"


def test_when_no_source_answers_the_error_says_which_file_to_put_where(monkeypatch, tmp_path):
    closed = "http://127.0.0.1:9/vgg-12345678.pth"
    entry = Entry("tiny", "a test", "none", (Url(closed, "12345678", 4096), Url(closed + "2", "ab")))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    with pytest.raises(WeightsError) as caught:
        resolve("tiny", tmp_path)
    for part in (closed, "refused", "4,096 bytes", "12345678", str(tmp_path / "vgg-12345678.pth")):
        assert part in str(caught.value)


def test_the_next_source_is_tried_when_the_first_does_not_answer(server, monkeypatch, tmp_path):
    sources = (Url("http://127.0.0.1:9/other.pth", "12345678"), Url(server.url, DIGEST))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": Entry("tiny", "a test", "none", sources)})
    assert resolve("tiny", tmp_path).name == sources[1].file
    put_by_hand = tmp_path / "other.pth"
    put_by_hand.write_bytes(b"wrong")
    with pytest.raises(WeightsError, match="delete it"):
        resolve("tiny", tmp_path)


def test_a_file_put_there_by_hand_is_checked(tiny, tmp_path):
    path = tmp_path / tiny.sources[0].file
    path.write_bytes(BODY)
    assert resolve("tiny", tmp_path, download=False) == path
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match=r"is 1,279,999 bytes, expected 1,280,000"):
        resolve("tiny", tmp_path)
    path.with_name(path.name + ".sha256").unlink()
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"sha256 is .* delete it"):
        resolve("tiny", tmp_path)


def test_without_downloading_nothing_is_asked(server, tiny, tmp_path):
    assert cached("tiny", tmp_path) is None
    with pytest.raises(WeightsError, match="downloading is off"):
        resolve("tiny", tmp_path, download=False)
    assert server.asked == []


def test_the_cache_follows_sam4ir_home(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    assert resolve("tiny").parent == tmp_path / "weights"


def test_unknown_names_get_the_near_miss():
    with pytest.raises(WeightsError, match=r"'vg16'; did you mean 'vgg16'\? known: vgg16, vgg19"):
        resolve("vg16")
    with pytest.raises(WeightsError, match="no such file"):
        load_state("nowhere.pth")


def test_threads_that_ask_at_once_fetch_once(server, tiny, tmp_path):
    together = threading.Barrier(4)

    def ask(_):
        together.wait()
        return resolve("tiny", tmp_path).read_bytes() == BODY

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
    assert server.asked == [None]


@pytest.mark.slow  # two more imports of torch
def test_two_processes_that_ask_at_once_fetch_once(server, tmp_path):
    program = (
        "import sys; from pathlib import Path; from sam4ir.priors import zoo; from sam4ir.priors.sources import Url\n"
        f"zoo.ENTRIES = {{'tiny': zoo.Entry('tiny', '', '', (Url({server.url!r}, {DIGEST!r}),))}}\n"
        "print('ready', flush=True); input()\n"
        f"print(zoo.resolve('tiny', Path({str(tmp_path)!r})))"
    )
    command = [sys.executable, "-c", program]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate()[0].strip() for process in both]
    assert printed == [str(tmp_path / f"tiny-{DIGEST[:8]}.pth")] * 2
    assert Path(printed[0]).read_bytes() == BODY
    assert server.asked == [None]
