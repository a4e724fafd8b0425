"""What a server sends is bounded and checked: lengths, ranges, redirects, pace; and a cached file is looked at."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sam4ir.errors import FileError
from sam4ir.priors.zoo import download
from sam4ir.priors.zoo.download import UnreachableError, WeightsError, accept, is_accepted, transfer

BODY = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(BODY).hexdigest()
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Serve every request by `answer`; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/net.pth"
        server.shutdown()


def sending(status: int = 200, body: bytes = BODY, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def endless(sent: list[int], block: int = 1 << 16, limit: int = 1 << 26) -> Answer:
    """Send without end and without a length, and count the bytes."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while sent[0] < limit:
            request.wfile.write(bytes(block))
            sent[0] += block

    return answer


def test_an_endless_answer_ends_at_the_known_size(tmp_path: Path) -> None:
    sent = [0]
    with answering(endless(sent)) as url, pytest.raises(WeightsError, match=r"sends more than 256,000 bytes"):
        transfer(url, tmp_path / "x.part", len(BODY))
    assert not (tmp_path / "x.part").exists()
    assert sent[0] < 16 << 20


def test_an_endless_answer_of_unknown_size_ends_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST", 1 << 20)
    sent = [0]
    with answering(endless(sent)) as url, pytest.raises(WeightsError, match=r"sends more than 1,048,576 bytes"):
        transfer(url, tmp_path / "x.part")
    assert sent[0] < 16 << 20


def test_an_offer_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    with answering(sending(Content_Length=str(10**15))) as url, pytest.raises(WeightsError, match="are not taken"):
        transfer(url, tmp_path / "x.part")


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "12, 13", "\u0663", "0x10"])
def test_a_length_that_is_no_number_is_named(length: str, tmp_path: Path) -> None:
    answer = sending(Content_Length=length.encode().decode("latin-1"))
    with answering(answer) as url, pytest.raises(UnreachableError, match="for the length of its answer"):
        transfer(url, tmp_path / "x.part", len(BODY))


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ("bytes 0-255999/256000", "sends from byte 0 on and was asked to from 1,000 on"),
        ("bytes 2000-255999/256000", "sends from byte 2,000 on"),
        ("bytes x-y/z", "for the part that it sends"),
        ("1000-255999", "for the part that it sends"),
        ("bytes 1000-999/256000", "contradict each other"),
        ("bytes 1000-300000/256000", "contradict each other"),
        ("bytes 1000-2000/256000", "contradict each other"),
    ],
)
def test_a_part_that_was_not_asked_for_is_not_appended(span: str, words: str, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(BODY[:1000])
    answer = sending(206, BODY[1000:], Content_Length=str(len(BODY) - 1000), Content_Range=span)
    with answering(answer) as url, pytest.raises(UnreachableError, match=words):
        transfer(url, part, len(BODY))
    assert part.read_bytes() == BODY[:1000]


def test_another_total_of_a_range_is_another_file(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(BODY[:1000])
    answer = sending(206, BODY[1000:], Content_Range="bytes 1000-255999/300000")
    with answering(answer) as url, pytest.raises(WeightsError, match=r"offers 300,000 bytes, expected 256,000"):
        transfer(url, part, len(BODY))


@pytest.mark.parametrize("total", ["256000", "*"])
def test_the_right_part_is_appended(total: str, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(BODY[:1000])
    with answering(sending(206, BODY[1000:], Content_Range=f"bytes 1000-255999/{total}")) as url:
        transfer(url, part, len(BODY))
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x/"])
def test_a_redirect_stays_within_the_web(target: str, tmp_path: Path) -> None:
    with (
        answering(sending(302, Location=target)) as url,
        pytest.raises(UnreachableError, match=r"net\.pth: .*[Rr]edirect"),
    ):
        transfer(url, tmp_path / "x.part", len(BODY))
    assert not (tmp_path / "x.part").exists()


def test_a_redirect_does_not_leave_encryption() -> None:
    request = download.urllib.request.Request("https://example.org/net.pth")
    with pytest.raises(download.urllib.error.URLError, match=r"redirects to http://example\.org"):
        download._WebRedirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/x")


def test_redirects_in_a_circle_end(tmp_path: Path) -> None:
    with (
        answering(sending(302, Location="/net.pth")) as url,
        pytest.raises(UnreachableError, match="infinite loop") as e,
    ):
        transfer(url, tmp_path / "x.part", len(BODY))
    assert "\n" not in str(e.value)


def drip(request: http.server.BaseHTTPRequestHandler) -> None:
    """Send the headers, then a byte now and then, which resets the timeout of each packet."""
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    for _ in range(200):
        request.wfile.write(b"x")
        time.sleep(0.05)


def drip_headers(request: http.server.BaseHTTPRequestHandler) -> None:
    for _ in range(200):
        request.wfile.write(b"H")
        request.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_a_server_that_sends_next_to_nothing_is_given_up(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    monkeypatch.setattr(download, "ROUNDS", 1)
    begun = time.monotonic()
    with answering(answer) as url, pytest.raises(UnreachableError):
        transfer(url, tmp_path / "x.part", len(BODY))
    assert time.monotonic() - begun < 5


def test_a_full_disk_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, place: int) -> None:
            self.file.seek(place)

        def write(self, _: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Full(opened(path, *a, **k)))
    words = r"x\.part: cannot be written \(No space left.*free space"
    with answering(sending(Content_Length=str(len(BODY)))) as url, pytest.raises(FileError, match=words):
        transfer(url, tmp_path / "x.part", len(BODY))


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    (tmp_path / "net.pth.part").write_bytes(BODY)
    accept(tmp_path / "net.pth.part", tmp_path / "net.pth", DIGEST)
    return tmp_path / "net.pth"


def test_an_unchanged_file_is_hashed_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert is_accepted(cached, DIGEST, len(BODY))


def rewritten(path: Path, keep_time: bool) -> None:
    """Change a byte in place; the size stays, and the time of change if asked."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\xfe")
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    """Put another file of the same size and time in its place."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(BODY[::-1])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize(
    "change",
    [lambda path: rewritten(path, keep_time=False), replaced, lambda path: path.write_bytes(BODY + b"x")],
    ids=["in place", "another file", "longer"],
)
@pytest.mark.parametrize("published", [True, False])
def test_a_changed_file_is_hashed_again_and_refused(
    cached: Path, change: Callable[[Path], object], published: bool
) -> None:
    time.sleep(0.02)  # a file system's clock has steps
    change(cached)
    with pytest.raises(WeightsError, match=r"net\.pth: sha256 is "):
        is_accepted(cached, DIGEST if published else None)


def test_a_copied_cache_is_hashed_once_and_its_record_renewed(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(cached, ns=(1, 1))
    assert is_accepted(cached, DIGEST)
    monkeypatch.setattr(download, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert is_accepted(cached, DIGEST)


@pytest.mark.parametrize("record", ["", "\n", f"{DIGEST}  net.pth\n", "no hash at all", f"{'0' * 64}  net.pth\n"])
def test_an_old_or_broken_record_is_not_trusted(cached: Path, record: str) -> None:
    path = cached.with_name("net.pth.sha256")
    path.write_text(record)
    assert is_accepted(cached, DIGEST)
    first, second = path.read_text().splitlines()
    assert first == f"{DIGEST}  net.pth"
    assert second.startswith("# size 256000 mtime_ns ")
