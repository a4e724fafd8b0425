"""A source of the zoo for a network whose weights come in several files: fetch them and merge them into one file."""

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
class MergedFiles:
    """Several weights files whose entries become one safetensors file.

    parts: the files, each with its whole hash. A part that a user put into the cache stays there; a part that was
    fetched is removed once the merged file exists. keep: whether an entry of this name goes into the merged file. The
    header of the merged file holds the hashes of its parts.
    """

    parts: Sequence[Url]
    file: str
    keep: Callable[[str], bool]

    @property
    def sha256(self) -> None:
        """None: the file is made here, of parts whose hashes are known."""
        return None

    @property
    def size(self) -> int | None:
        """The bytes to fetch, None if one part's size is unknown."""
        total = 0
        for part in self.parts:
            if part.size is None:
                return None
            total += part.size
        return total

    @property
    def by_hand(self) -> str:
        return " and ".join(part.file for part in self.parts)

    def describe(self) -> str:
        return " and ".join(part.describe() for part in self.parts)

    def is_cached(self, folder: Path, inspect: Inspect | None = None) -> bool:
        return is_accepted(folder / self.file, None, inspect=inspect)

    def fetch(self, folder: Path, inspect: Inspect | None = None) -> None:
        fetched = []
        for part in self.parts:  # into the cache itself, so that an interrupted transfer can go on
            if not part.is_cached(folder):
                part.fetch(folder)
                fetched.append(folder / part.file)
        state: dict[str, Tensor] = {}
        for part in self.parts:
            state |= self._read(folder / part.file)
        merged = folder / (self.file + ".part")
        merged.write_bytes(save(state, metadata={"made_of": json.dumps([part.describe() for part in self.parts])}))
        accept(merged, folder / self.file, sha256=None)
        for file in fetched:
            file.unlink()
            file.with_name(file.name + ".sha256").unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            state = read_weights(path).state
        except WeightsFileError as error:
            raise WeightsError(str(error)) from error
        return {name: value.contiguous() for name, value in state.items() if self.keep(name)}
