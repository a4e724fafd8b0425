"""Weights that a network has of two files or more, as a source of the zoo: fetched, put into one file, kept as that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sam4ir.priors.zoo.download import Inspect, WeightsError, accept, is_accepted
from sam4ir.priors.zoo.sources import Url
from sam4ir.utils.weights import WeightsFileError, read_weights


@dataclass(frozen=True)
class Joined:
    """Files of weights whose entries, as far as `keep` says yes to their names, become one safetensors file.

    parts: each with its whole hash. One that is in the cache, put there by hand, stays there; one that is fetched goes
    when the file is made. The file tells the parts' hashes in its header.
    """

    parts: Sequence[Url]
    file: str
    keep: Callable[[str], bool]

    @property
    def sha256(self) -> None:
        """Not known: the file is made here, of parts that have one."""
        return None

    @property
    def size(self) -> int | None:
        """Bytes that are fetched."""
        sizes = [part.size for part in self.parts if part.size is not None]
        return sum(sizes) if len(sizes) == len(self.parts) else None

    @property
    def by_hand(self) -> str:
        return " and ".join(part.file for part in self.parts)

    def describe(self) -> str:
        return " and ".join(part.describe() for part in self.parts)

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, None, inspect=inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        fetched = []
        for part in self.parts:  # into the cache itself, where a transfer that broke off is gone on with
            if not part.is_cached(folder):
                part.fetch(folder)
                fetched.append(folder / part.file)
        state = {name: value for part in self.parts for name, value in self._read(folder / part.file).items()}
        joined = folder / (self.file + ".part")
        joined.write_bytes(save(state, metadata={"made_of": json.dumps([part.describe() for part in self.parts])}))
        accept(joined, folder / self.file, sha256=None)
        for file in fetched:
            file.unlink()
            file.with_name(file.name + ".sha256").unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            state = read_weights(path).state
        except WeightsFileError as error:
            raise WeightsError(str(error)) from error
        return {name: value.contiguous() for name, value in state.items() if self.keep(name)}
