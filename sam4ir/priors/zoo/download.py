"""Download files so that they arrive whole or not at all: resumable transfer, SHA-256 check, atomic rename.

During the transfer a file is called NAME.part. Once it is accepted, NAME.sha256 (the format of sha256sum) stands beside
it with the file's size, time of change and inode, so that a file of half a gigabyte is hashed once and not at every
start, and again where one of them differs. If no hash is published for a file, its
content is checked (`inspect`); then its hash is recorded and compared at every later use.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sam4ir.errors import UserError
from sam4ir.priors.zoo.pages import Page, is_page
from sam4ir.utils.files import sha256_of, writing

log = logging.getLogger(__name__)

Inspect = Callable[[Path], None]  # raises WeightsError if a file is not the expected one

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds to connect, and between two chunks; an offline machine tries the next source soon
ROUNDS = 5  # connections for one file, as long as each brings more bytes

MOST = 8 << 30  # bytes of a file whose size nobody states; the largest of the zoo has 2.6e9
SLOWEST = 1000  # bytes a second, over PATIENCE; a server that sends less would never end
PATIENCE = 60.0  # seconds

_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class WeightsError(UserError):
    """Weights that cannot be fetched, or are not the expected ones; the message says what would do."""


class UnreachableError(Exception):
    """One source does not answer. The next one is tried."""


def browser() -> urllib.request.OpenerDirector:
    """Return an opener of addresses that keeps the cookies that they set, and follows them within the web only."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()), _WebRedirects())


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect from http(s) to http(s), and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and scheme != urllib.parse.urlsplit(req.full_url).scheme:
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def transfer(
    url: str, part: Path, size: int | None = None, opener: urllib.request.OpenerDirector | None = None
) -> None:
    """Download `url` into `part`; go on where an earlier try ended (HTTP Range) if the server can.

    size: the expected bytes, None if unknown; no more than these, or than 8 GiB if unknown, are taken. opener: an
    opener with the cookies that the server asks for.
    Raises WeightsError if the server announces another size or sends more. Raises UnreachableError, and leaves `part`,
    if the server cannot be reached, answers with a web page or with headers that contradict each other, sends less than
    SLOWEST, or breaks off without sending more bytes. Raises FileError if `part` cannot be written.
    """
    opener = opener or browser()
    for _ in range(ROUNDS):
        before = _length(part)
        if size is not None and before == size:
            return
        try:
            total = _receive(url, part, size, opener)
        except _NETWORK_ERRORS as error:
            if _length(part) <= before:
                raise UnreachableError(f"{url}: {_reason(error)}") from error
            continue
        if total is None or _length(part) == total:
            return
    raise UnreachableError(f"{url}: broke off at {_length(part):,} bytes; run again to go on from there")


def confirmed(url: str, opener: urllib.request.OpenerDirector) -> str:
    """Return the address of the file behind a Google Drive link.

    A file too large for Drive's virus scan is behind a page with a form (`download-form`); its hidden fields, one of
    them new for each visit, must be sent along. A smaller file comes at once. Raises UnreachableError if the page has
    no such form (too many downloads, not shared), and if nothing answers.
    """
    try:
        with _within(PATIENCE, lambda: opener.open(_request(url), timeout=TIMEOUT)) as response:
            if not is_page(response):
                return url
            page = Page(response)
            base = response.geturl()
    except _NETWORK_ERRORS as error:
        raise UnreachableError(f"{url}: {_reason(error)}") from error
    if page.action is None:
        raise UnreachableError(f"{url}: answers with a page that offers no download ({page.title})")
    address = urllib.parse.urljoin(base, page.action)
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise UnreachableError(f"{url}: its page leads to {address}")
    separator = "&" if "?" in address else "?"
    return f"{address}{separator}{urllib.parse.urlencode(page.fields)}"


def accept(part: Path, target: Path, sha256: str | None, inspect: Inspect | None = None) -> None:
    """Check `part`, write its hash beside `target` and rename it to `target`.

    sha256: the hash in hex, or only its first digits as in torch hub's file names, or None if none is published: then
    `inspect` checks the file, if it is given (a file that was made here needs no check).
    Raises WeightsError and removes `part` if the hash differs or the check fails.
    """
    digest = sha256_of(part)
    if sha256 is None and inspect is not None:
        try:
            inspect(part)
        except WeightsError as error:
            part.unlink()
            raise WeightsError(f"{error}; it was removed") from error
        _log_recorded(target, digest)
    if sha256 is not None and not digest.startswith(sha256):
        length = _length(part)
        part.unlink()
        raise WeightsError(
            f"{target.name}: the file that came ({length:,} bytes) has sha256 {digest}, expected {sha256}; "
            "it was removed. Try again, and look whether a proxy answers in the server's place"
        )
    _write_record(target, digest, part)
    os.replace(part, target)


def is_accepted(target: Path, sha256: str | None, size: int | None = None, inspect: Inspect | None = None) -> bool:
    """Return whether `target` exists and is the expected file. Raises WeightsError if another file has its name.

    A file that a user put there has no record: it is hashed once, or checked by `inspect` if no hash is published. It
    is hashed again where its size, time of change or inode is not the recorded one; without a published hash it is
    compared with the recorded hash then. A file made here (no `inspect`) needs a record.
    """
    if not target.is_file():
        return False
    if size is not None and _length(target) != size:
        raise WeightsError(f"{target}: is {_length(target):,} bytes, expected {size:,}; delete it or put the right one")
    recorded = recorded_sha256(target)
    unchanged = recorded is not None and _recorded_state(target) == _state(target)
    if unchanged and recorded is not None and recorded.startswith(sha256 or ""):
        return True
    expected = sha256 or recorded
    if expected is None:
        return inspect is not None and _passes_check(target, inspect)
    digest = sha256_of(target)
    if not digest.startswith(expected):
        raise WeightsError(f"{target}: sha256 is {digest}, expected {expected}; delete it or put the right one")
    if digest != recorded or not unchanged:
        with contextlib.suppress(OSError):  # a file in a shared read-only cache is hashed each time
            _write_record(target, digest)
    return True


def _passes_check(target: Path, inspect: Inspect) -> bool:
    """Check the file, record its hash and return True. Raises WeightsError for another file."""
    try:
        inspect(target)
    except WeightsError as error:
        raise WeightsError(f"{error}; delete it or put the right one") from error
    digest = sha256_of(target)
    _log_recorded(target, digest)
    with contextlib.suppress(OSError):  # a file in a shared read-only cache is checked each time
        _write_record(target, digest)
    return True


def _log_recorded(target: Path, digest: str) -> None:
    log.info(
        "%s: no hash is published for it; it loads strictly into its network. Its sha256 %s is recorded in %s and "
        "compared from now on",
        target.name,
        digest,
        _record(target).name,
    )


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"User-Agent": "sam4ir"})


def _receive(url: str, part: Path, size: int | None, opener: urllib.request.OpenerDirector) -> int | None:
    """Receive what one connection sends, at the end of `part` or from its start.

    Returns the whole file's size if the server or the caller states it.
    """
    start = _length(part)
    if size is not None and start > size:
        start = 0
    request = _request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = _within(PATIENCE, lambda: opener.open(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        part.unlink()  # longer than the server's file: from the start
        return _receive(url, part, size, opener)
    with response:
        if is_page(response):
            raise UnreachableError(f"{url}: answers with a web page ({Page(response).title}), not a file")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        total = _announced(url, response, start)
        if size is not None and total is not None and total != size:
            raise WeightsError(f"{url}: the server offers {total:,} bytes, expected {size:,}; is a proxy answering?")
        if total is not None and total > MOST:
            raise WeightsError(f"{url}: the server offers {total:,} bytes; more than {MOST:,} are not taken")
        _write(response, part, start, total or size, url)
    if total is None:
        return size
    return total


def _announced(url: str, response: http.client.HTTPResponse, start: int) -> int | None:
    """Return the whole file's size by the headers, None if they do not state it.

    Raises UnreachableError for headers that are no numbers, and for a part of the file that was not asked for.
    """
    length = response.headers.get("Content-Length")
    if length is not None and not _is_count(length):
        raise UnreachableError(f"{url}: the server states {length[:40]!r} for the length of its answer")
    total = None
    if length is not None:
        total = start + int(length)
    span = response.headers.get("Content-Range")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or span is None:
        return total
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|[*])", span.strip())
    if match is None:
        raise UnreachableError(f"{url}: the server states {span[:40]!r} for the part that it sends")
    first, last = int(match[1]), int(match[2])
    if first != start:
        raise UnreachableError(f"{url}: the server sends from byte {first:,} on and was asked to from {start:,} on")
    whole = last + 1
    if match[3] != "*":
        whole = int(match[3])
    if last < first or last >= whole or (total is not None and total != last + 1):
        raise UnreachableError(f"{url}: the lengths that the server states contradict each other ({span}, {length})")
    return whole


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text.strip()) is not None


def _reason(error: BaseException) -> str:
    """Return what a failed connection says of itself, in one line."""
    text = str(getattr(error, "reason", None) or error).strip() or type(error).__name__
    return " ".join(text.split())[:300]


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise TimeoutError after some seconds; a thread then still waits for it.

    urllib's own timeout is of each packet, so that a server that sends its headers byte by byte never ends.
    """
    results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # raised in the caller's thread
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None
    if error is not None:
        raise error
    return value


def _write(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, url: str) -> None:
    """Write a reply into `part`, from byte `start` on, with a progress bar.

    Raises WeightsError, and removes `part`, if more than the whole file's `total` bytes come, or than MOST if it is
    None.
    """
    most = MOST
    if total is not None:
        most = total
    name = part.name.removesuffix(".part")
    mode = "r+b" if start else "wb"
    with (
        part.open(mode, buffering=0) as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        file.seek(start)
        pace = _Pace()
        while chunk := response.read1(CHUNK):
            start += len(chunk)
            if start > most:
                break
            rest = memoryview(chunk)
            with writing(part):
                while rest:
                    rest = rest[file.write(rest) :]
            bar.update(len(chunk))
            pace.add(len(chunk))
    if start > most:
        part.unlink()
        raise WeightsError(
            f"{url}: the server sends more than {most:,} bytes, which is all that is taken; it was removed. "
            "Is a proxy answering?"
        )


class _Pace:
    """Raise TimeoutError where less than SLOWEST bytes a second came for PATIENCE seconds."""

    def __init__(self) -> None:
        self.since, self.received = time.monotonic(), 0

    def add(self, count: int) -> None:
        self.received += count
        passed = time.monotonic() - self.since
        if passed > PATIENCE:
            if self.received < SLOWEST * passed:
                raise TimeoutError(f"only {self.received:,} bytes came in {passed:.0f} seconds")
            self.since, self.received = time.monotonic(), 0


def _length(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    if path.exists():
        return path.stat().st_size
    return 0


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _state(path: Path) -> str:
    """Return size, time of change and inode of a file; where one differs, the file may be another."""
    status = path.stat()
    return f"# size {status.st_size} mtime_ns {status.st_mtime_ns} inode {status.st_ino}"


def _recorded_state(target: Path) -> str | None:
    """Return size, time and inode that the file had when its hash was recorded; None in records that lack them."""
    lines = _record(target).read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) < 2:
        return None
    return lines[1]


def _write_record(target: Path, digest: str, file: Path | None = None) -> None:
    """Record the hash of `target`, and the state of `file`, which has or will have its name.

    The second line is a comment to sha256sum.
    """
    record = _record(target)
    state = _state(file or target)
    part = record.with_name(f"{record.name}.{os.getpid()}")  # several processes may write it at the same time
    part.write_text(f"{digest}  {target.name}\n{state}\n", encoding="utf-8")
    os.replace(part, record)


def recorded_sha256(target: Path) -> str | None:
    """Return the hash that was recorded when `target` was accepted; None if there is no record."""
    record = _record(target)
    if not record.is_file():
        return None
    digest = record.read_text(encoding="utf-8", errors="replace").partition(" ")[0]
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        return None
    return digest
