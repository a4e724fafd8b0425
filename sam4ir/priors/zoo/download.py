"""Download files so that they arrive whole or not at all: resumable transfer, SHA-256 check, atomic rename.

During the transfer a file is called NAME.part. Once it is accepted, NAME.sha256 (the format of sha256sum) stands beside
it, so that a file of half a gigabyte is hashed once and not at every start. If no hash is published for a file, its
content is checked (`inspect`); then its hash is recorded and compared at every later use.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from pathlib import Path

from tqdm import tqdm

from sam4ir.errors import UserError
from sam4ir.priors.zoo.pages import Page, is_page
from sam4ir.utils.files import writing

log = logging.getLogger(__name__)

Inspect = Callable[[Path], None]  # raises WeightsError if a file is not the expected one

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds to connect, and between two chunks; an offline machine tries the next source soon
ROUNDS = 5  # connections for one file, as long as each brings more bytes

_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class WeightsError(UserError):
    """Weights that cannot be fetched, or are not the expected ones; the message says what would do."""


class UnreachableError(Exception):
    """One source does not answer. The next one is tried."""


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def browser() -> urllib.request.OpenerDirector:
    """Return an opener of addresses that keeps the cookies that they set."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))


def transfer(
    url: str, part: Path, size: int | None = None, opener: urllib.request.OpenerDirector | None = None
) -> None:
    """Download `url` into `part`; go on where an earlier try ended (HTTP Range) if the server can.

    size: the expected bytes, None if unknown. opener: an opener with the cookies that the server asks for.
    Raises WeightsError if the server announces another size. Raises UnreachableError, and leaves `part`, if the server
    cannot be reached, answers with a web page, or breaks off without sending more bytes.
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
                raise UnreachableError(f"{url}: {getattr(error, 'reason', None) or error}") from error
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
        with opener.open(_request(url), timeout=TIMEOUT) as response:
            if not is_page(response):
                return url
            page = Page(response)
            base = response.geturl()
    except _NETWORK_ERRORS as error:
        raise UnreachableError(f"{url}: {getattr(error, 'reason', None) or error}") from error
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
    _write_record(target, digest)
    os.replace(part, target)


def is_accepted(target: Path, sha256: str | None, size: int | None = None, inspect: Inspect | None = None) -> bool:
    """Return whether `target` exists and is the expected file. Raises WeightsError if another file has its name.

    A file that a user put there has no record: it is hashed once, or checked by `inspect` if no hash is published.
    Without a published hash the file is compared with its record each time; a file made here (no `inspect`) needs one.
    """
    if not target.is_file():
        return False
    if size is not None and _length(target) != size:
        raise WeightsError(f"{target}: is {_length(target):,} bytes, expected {size:,}; delete it or put the right one")
    recorded = recorded_sha256(target)
    if sha256 is not None and recorded is not None and recorded.startswith(sha256):
        return True
    expected = sha256 or recorded
    if expected is None:
        return inspect is not None and _passes_check(target, inspect)
    digest = sha256_of(target)
    if not digest.startswith(expected):
        raise WeightsError(f"{target}: sha256 is {digest}, expected {expected}; delete it or put the right one")
    if digest != recorded:
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
        response = opener.open(request, timeout=TIMEOUT)
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
        announced = response.headers.get("Content-Length")
        total = None
        if announced:
            total = start + int(announced)
        if size is not None and total is not None and total != size:
            raise WeightsError(f"{url}: the server offers {total:,} bytes, expected {size:,}; is a proxy answering?")
        _write(response, part, start, total)
    if total is None:
        return size
    return total


def _write(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    """Write a reply into `part`, from byte `start` on, with a progress bar."""
    name = part.name.removesuffix(".part")
    mode = "r+b" if start else "wb"
    with (
        part.open(mode, buffering=0) as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        file.seek(start)
        while chunk := response.read(CHUNK):
            rest = memoryview(chunk)
            with writing(part):
                while rest:
                    rest = rest[file.write(rest) :]
            bar.update(len(chunk))


def _length(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    if path.exists():
        return path.stat().st_size
    return 0


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _write_record(target: Path, digest: str) -> None:
    record = _record(target)
    part = record.with_name(f"{record.name}.{os.getpid()}")  # several processes may write it at the same time
    part.write_text(f"{digest}  {target.name}\n")
    os.replace(part, record)


def recorded_sha256(target: Path) -> str | None:
    """Return the hash that was recorded when `target` was accepted; None if there is no record."""
    record = _record(target)
    if not record.is_file():
        return None
    return record.read_text().split()[0]
