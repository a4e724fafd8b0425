"""Files that arrive whole or not at all: resumable transfer, SHA-256 check, atomic rename.

While a file is on its way it is called NAME.part; once accepted, NAME.sha256 (the format of sha256sum) stands beside
it, so that a file of half a gigabyte is hashed once and not at every start. A file whose hash nobody published is
accepted by what it holds (`inspect`), its hash is recorded then and compared ever after.
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

log = logging.getLogger(__name__)

Inspect = Callable[[Path], None]  # raises WeightsError where a file is not what it should be

CHUNK = 1 << 20
TIMEOUT = 10.0  # seconds to connect, and between two chunks: offline machines fall through to the next source
ROUNDS = 5  # connections for one file, as long as each brings it further

_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class WeightsError(UserError):
    """Weights that cannot be had, or are not what they should be; the message says what would do."""


class UnreachableError(Exception):
    """One source does not answer; the next one is tried."""


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def browser() -> urllib.request.OpenerDirector:
    """Opens addresses and keeps the cookies that they set."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))


def transfer(
    url: str, part: Path, size: int | None = None, opener: urllib.request.OpenerDirector | None = None
) -> None:
    """Bring all bytes of `url` into `part`, going on where an earlier try ended (HTTP Range) if the server can.

    size: the bytes expected, None where unknown. opener: with the cookies that the server asks for.
    A server that announces another size gives WeightsError; one that cannot be reached, answers with a web page, or
    breaks off without bringing the file further, gives UnreachableError and leaves `part`.
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
    """The address of the file behind a Google Drive link.

    Files too large for Drive's virus scan come after a page with a form (`download-form`) whose hidden fields, one of
    them made anew for each visit, must be sent along; smaller ones come at once. Raises UnreachableError where the
    page has no such form (too many downloads, not shared) and where nothing answers.
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
    return f"{address}{'&' if '?' in address else '?'}{urllib.parse.urlencode(page.fields)}"


def accept(part: Path, target: Path, sha256: str | None, inspect: Inspect | None = None) -> None:
    """Check `part`, write its hash beside `target` and rename it to `target`.

    sha256: the hash in hex, or only its first digits as torch hub's file names state it, or None where none is known:
    `inspect` judges the file then, if given (a file made here needs none).
    Raises WeightsError and removes `part` where the hash differs or the file is another one.
    """
    digest = sha256_of(part)
    if sha256 is None and inspect is not None:
        try:
            inspect(part)
        except WeightsError as error:
            part.unlink()
            raise WeightsError(f"{error}; it was removed") from error
        _say_recorded(target, digest)
    if sha256 is not None and not digest.startswith(sha256):
        length = _length(part)
        part.unlink()
        raise WeightsError(
            f"{target.name}: what came ({length:,} bytes) has sha256 {digest}, expected {sha256}; it was removed. "
            "Try again, and look whether a proxy answers in the server's place"
        )
    _write_record(target, digest)
    os.replace(part, target)


def is_accepted(target: Path, sha256: str | None, size: int | None = None, inspect: Inspect | None = None) -> bool:
    """True where `target` is there and is the file expected; WeightsError where something else has its name.

    A file that was put there by hand has no record: it is hashed once, or judged by `inspect` where no hash is known.
    Without a known hash a file is compared with its record each time; a file made here (no `inspect`) needs one.
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
        return inspect is not None and _judged(target, inspect)
    digest = sha256_of(target)
    if not digest.startswith(expected):
        raise WeightsError(f"{target}: sha256 is {digest}, expected {expected}; delete it or put the right one")
    if digest != recorded:
        with contextlib.suppress(OSError):  # a shared read-only cache is hashed each time
            _write_record(target, digest)
    return True


def _judged(target: Path, inspect: Inspect) -> bool:
    """True, with the hash recorded, for the right file; WeightsError for another one."""
    try:
        inspect(target)
    except WeightsError as error:
        raise WeightsError(f"{error}; delete it or put the right one") from error
    digest = sha256_of(target)
    _say_recorded(target, digest)
    with contextlib.suppress(OSError):  # a shared read-only cache is judged each time
        _write_record(target, digest)
    return True


def _say_recorded(target: Path, digest: str) -> None:
    log.info(
        "%s: no hash is published for it; it loads strictly into its network, and its sha256 %s is kept in %s to be "
        "compared from now on",
        target.name,
        digest,
        _record(target).name,
    )


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"User-Agent": "sam4ir"})


def _receive(url: str, part: Path, size: int | None, opener: urllib.request.OpenerDirector) -> int | None:
    """One connection; appends to or restarts `part` and returns the whole file's size where the server tells it."""
    have = _length(part)
    if size is not None and have > size:
        have = 0
    request = _request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        part.unlink()  # longer than the server's file: from the start
        return _receive(url, part, size, opener)
    with response:
        if is_page(response):
            raise UnreachableError(f"{url}: answers with a web page ({Page(response).title}), not a file")
        have = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        announced = response.headers.get("Content-Length")
        total = have + int(announced) if announced else None
        if size is not None and total is not None and total != size:
            raise WeightsError(f"{url}: the server offers {total:,} bytes, expected {size:,}; is a proxy answering?")
        _write(response, part, have, total)
    return total if total is not None else size


def _write(response: http.client.HTTPResponse, part: Path, have: int, total: int | None) -> None:
    name = part.name.removesuffix(".part")
    with (
        part.open("r+b" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        file.seek(have)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _write_record(target: Path, digest: str) -> None:
    record = _record(target)
    part = record.with_name(f"{record.name}.{os.getpid()}")  # processes that start at once may all write it
    part.write_text(f"{digest}  {target.name}\n")
    os.replace(part, record)


def recorded_sha256(target: Path) -> str | None:
    """The hash that was recorded when `target` was accepted; None where it was not."""
    record = _record(target)
    return record.read_text().split()[0] if record.is_file() else None
