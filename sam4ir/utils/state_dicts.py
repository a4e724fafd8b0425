"""Find the state dict in the content of a weights file, whichever tool wrote it.

Entries: {params}, {params_ema}, {state_dict}, {model}, {generator}, {net_g}, nested such as {state_dict: {model}}, a
plain state dict, and any other single state dict beside plain values. Averages of the weights (params_ema, ema,
model_ema, state_dict_ema, g_ema ...) go before the weights themselves, unless the caller wants these.

Keys: wrappers such as `module.`, `_orig_mod.`, `model.` or `net_g.` are removed in any nesting, and counters that tools
add (thop's total_ops and total_params, n_averaged) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sam4ir.errors import UserError

State = dict[str, Tensor]

# entries that hold the weights of a network, the usual ones first; `X_ema` is the average of X
PREFERRED = ("params", "state_dict", "model", "generator", "net_g", "netG", "model_state_dict", "model_state")
AVERAGED = ("", *PREFERRED, "g", "G", "net", "network")  # without `ema`, which `ema` alone becomes ''
OTHER_NETWORKS = {"d", "net_d", "netD", "discriminator", "D"}
NO_NETWORKS = {"optimizer", "optimizers", "optimizer_states", "optim", "lr_scheduler", "schedulers", "scaler", "rng"}
DEPTH = 4  # of entries in entries
ALWAYS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before keys
WRAPPERS = {"module", "_orig_mod", "model", "net_g", "netG", "generator", "net", "network"}
AVERAGES = {"ema_model", "model_ema", "ema", "net_g_ema", "generator_ema", "g_ema"}
WRAPPED = {*WRAPPERS, *AVERAGES, "online_model"}
# what a training module holds beside the network: never deployed
COMPANIONS = {*OTHER_NETWORKS, "loss", "loss_fn", "criterion", "perceptual", "perceptual_loss", "vgg", "lpips"}
COUNTERS = {"total_ops", "total_params", "n_averaged"}  # of thop, and of torch's averages
STEPS = {"initted", "step", "decay", "num_updates"}  # of other averages


class WeightsFileError(UserError):
    """A weights file that cannot be read or does not fit; the message names it."""


class Weights(NamedTuple):
    """A state dict and its origin.

    state: tensors by key, on the CPU. entry: the file's entry that held them, such as params or state_dict.model; None
    where the file is a state dict. average: whether they are an average. passed_over: the entries that hold other
    weights of a network. stages: the state under the file's own keys, and after each wrapper that was removed.
    """

    state: State
    path: Path
    entry: str | None
    average: bool = False
    passed_over: tuple[str, ...] = ()
    stages: tuple[State, ...] = ()

    def __str__(self) -> str:
        return f"{self.entry} of {self.path}" if self.entry else str(self.path)

    @property
    def description(self) -> str:
        """Return the file and the entry that was taken, and what else the file holds."""
        words = []
        if self.average:
            words.append("their average")
        if self.passed_over:
            words.append(f"{', '.join(self.passed_over)} left aside, param_key_g chooses")
        if not words:
            return str(self)
        return f"{self} ({'; '.join(words)})"

    def named_as(self, own: Collection[str], adapted: Callable[[State], State] = dict) -> State:
        """Return the state under the keys of which most are a network's own; by default, without all wrappers.

        adapted: translates keys of other programs into the network's own.
        """
        best = adapted(self.state)
        for stage in reversed(self.stages):
            state = adapted(stage)
            if len(state.keys() & own) > len(best.keys() & own):
                best = state
        return best


class _Candidate(NamedTuple):
    """A state dict in a file. names: the entries on the way to it."""

    names: tuple[str, ...]
    tensors: State

    @property
    def entry(self) -> str | None:
        return ".".join(self.names) or None

    @property
    def average(self) -> bool:
        return self._average_of is not None

    @property
    def _average_of(self) -> str | None:
        """Return what it is the average of, by the first of its names that says so; None where none does."""
        for name in self.names:
            stem = _stem(name)
            if stem is not None:
                return stem
        return None

    @property
    def rank(self) -> int:
        """Return the place of its first entry among the usual ones; unusual names share the last."""
        name = (self.names or ("",))[0]
        usual: tuple[str, ...] = PREFERRED
        stem = self._average_of
        if stem is not None:
            name, usual = stem, AVERAGED
        return usual.index(name) if name in usual else len(usual)


def find_state(content: Any, path: Path, key: str | None = None, average: bool = True) -> Weights:
    """Find the state dict inside the content of a weights file; wrappers such as `module.` are removed from its keys.

    key: the entry to read. None reads the content itself if it is a state dict, and else the average of the usual
    entry, or that entry (params, state_dict, model ...), or the only entry with weights. average: False prefers the
    weights themselves to their average, as BasicSR's option files do.

    Raises WeightsFileError naming the entries that the file has, and for tensors without values (meta device) or of
    whole numbers alone.
    """
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path}: holds no named weights but a {type(content).__name__}")
    if key is None:
        candidates = _candidates(content)
    else:
        names = _way_to(key, content, path)
        candidates = _candidates(_entry(content, names), names, inside=True)
    if not candidates:
        place = f" under {key!r}" if key else ""
        if key is None:
            place = _usual_entry(content)
        raise WeightsFileError(f"{path}: holds no weights{place}")
    chosen = _chosen(candidates, path, average)
    stages, below_average = _stages(chosen.tensors, average)
    state = stages[-1]
    _require_values(state, path)
    passed_over = []
    for other in candidates:
        if other is not chosen and other.names[-1] not in OTHER_NETWORKS:
            passed_over.append(str(other.entry))
    return Weights(state, path, chosen.entry, chosen.average or below_average, tuple(passed_over), tuple(stages))


def _way_to(key: str, content: Mapping[Any, Any], path: Path) -> tuple[str, ...]:
    """Return the names that lead to an entry: the key as it is, or its parts, as Weights.entry spells entries inside.

    Raises WeightsFileError naming the entries that the file has.
    """
    if key in content:
        return (key,)
    names = tuple(key.split("."))
    if len(names) > 1 and _entry(content, names) is not None:
        return names
    entries = ", ".join(_short(name) for name in list(content)[:5])
    raise WeightsFileError(f"{path}: has no entry {key!r} (it has {entries}); name none, and the usual ones are tried")


def _entry(content: Any, names: Collection[str]) -> Any:
    """Return the entry of an entry that the names lead to; None where one of them is missing."""
    for name in names:
        if not isinstance(content, Mapping) or name not in content:
            return None
        content = content[name]
    return content


def _candidates(content: Any, names: tuple[str, ...] = (), inside: bool = False) -> list[_Candidate]:
    """Return the state dicts in a mapping and in its entries; further inside, only in entries with usual names.

    What lies inside an average is one too, whatever its name: classes of averages store {shadow}, {average_model} ...
    """
    if not isinstance(content, Mapping) or len(names) > DEPTH:
        return []
    tensors = _tensors(content)
    if tensors:
        return [_Candidate(names, tensors)]
    candidates = []
    inside = inside and not any(_stem(name) is not None for name in names)
    for name, value in content.items():
        if not isinstance(name, str) or name in NO_NETWORKS:
            continue
        if not inside or name in PREFERRED or name in WRAPPED or _stem(name) is not None:
            candidates += _candidates(value, (*names, name), inside=True)
    return candidates


def _chosen(candidates: list[_Candidate], path: Path, average: bool) -> _Candidate:
    """Return the state dict that is meant: the average or the weights themselves, of the most usual name."""
    averages, plain = [], []
    for candidate in candidates:
        if candidate.average:
            averages.append(candidate)
        else:
            plain.append(candidate)
    first, second = (averages, plain) if average else (plain, averages)
    group = sorted(first or second, key=lambda candidate: candidate.rank)
    if len(group) > 1 and group[0].rank == group[1].rank:
        names = ", ".join(str(candidate.entry) for candidate in group[:5])
        raise WeightsFileError(
            f"{path}: holds no weights under a usual name, but several networks ({names}); name one in param_key_g"
        )
    return group[0]


def _stem(name: str) -> str | None:
    """Return the name without its word for an average, such as g for g_ema; None for a name without one."""
    words = re.split(r"[_\-.]", name)
    for word in ("ema", "EMA", "averaged", "average", "swa"):
        if word in words:
            words.remove(word)
            return "_".join(words)
    return None


def _usual_entry(content: Mapping[Any, Any]) -> str:
    """Return ' under NAME' for the first usual entry of the file; '' without one."""
    for name in PREFERRED:
        if name in content:
            return f" under {name!r}"
    return ""


def _tensors(state: Mapping[Any, Any]) -> State:
    """Return the tensors of a mapping that are no counters of tools."""
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and str(name).rsplit(".", 1)[-1] not in COUNTERS:
            tensors[str(name)] = value
    if tensors.keys() <= STEPS:
        return {}
    return tensors


def _stages(tensors: State, average: bool) -> tuple[list[State], bool]:
    """Return the state under its own keys and after each removal of wrappers, and whether one was of an average."""
    stages, averaged = [tensors], False
    while True:
        state = _without_always(stages[-1])
        if state.keys() == stages[-1].keys():
            head, inside = _below_wrapper(state, average)
            averaged = averaged or head in AVERAGES
            state = inside or state
        if state.keys() == stages[-1].keys():
            return stages, averaged
        stages.append(state)


def _without_always(tensors: State) -> State:
    """Remove `module.` and `_orig_mod.`, before some keys alone too; not where two keys would become one."""
    state = {}
    for name, tensor in tensors.items():
        while name.startswith(ALWAYS):
            name = name.split(".", 1)[1]
        state[name] = tensor
    return state if len(state) == len(tensors) else tensors


def _by_first_part(tensors: State) -> dict[str, State]:
    """Return the tensors by the first part of their names; none where a name has one part alone."""
    groups: dict[str, State] = {}
    for name, tensor in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(head, {})[rest] = tensor
        elif head not in STEPS:
            return {}
    return groups


def _below_wrapper(tensors: State, average: bool) -> tuple[str | None, State]:
    """Return a wrapper and the part of a state below it, where each key lies below one or is no part of the network.

    Without such a wrapper: None and an empty state.
    """
    groups = _by_first_part(tensors)
    plain, averages = [], []
    for head, state in groups.items():
        if head in AVERAGES:
            averages.append(head)
            for step in STEPS:
                state.pop(step, None)
        elif head in WRAPPED:
            plain.append(head)
        elif head not in COMPANIONS:
            return None, {}
    group = (averages or plain) if average else (plain or averages)
    if len(group) != 1:
        return None, {}
    state = groups[group[0]]
    if group == averages and len(plain) == 1:
        state = _with_dots(state, groups[plain[0]])
    return group[0], state


def _with_dots(average: State, plain: State) -> State:
    """Give an average whose names have lost their dots (the EMA of latent diffusion) the names of the weights."""
    by_letters = {}
    for name in plain:
        by_letters[name.replace(".", "")] = name
    state = {}
    for name, tensor in average.items():
        state[by_letters.get(name, name)] = tensor
    return state


def _require_values(state: State, path: Path) -> None:
    """Raise WeightsFileError for tensors without values, in a form that no network loads, or of whole numbers alone."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise WeightsFileError(
                f"{path}: {_short(name)} has a shape and no values (meta device): the file was saved before its "
                "weights were loaded; save it anew from the trained network"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise WeightsFileError(
                f"{path}: {_short(name)} is sparse or quantised; save the network's weights as plain floating-point "
                "numbers"
            )
        if tensor.is_complex():
            raise WeightsFileError(
                f"{path}: {_short(name)} holds complex numbers, which no network here has; it is of another network"
            )
    kinds = set()
    for tensor in state.values():
        if tensor.is_floating_point():
            return
        kinds.add(str(tensor.dtype).removeprefix("torch."))
    if kinds:
        raise WeightsFileError(
            f"{path}: holds whole numbers alone ({', '.join(sorted(kinds))}) and no weights; quantised weights "
            "must be converted to floating-point numbers first"
        )


def _short(name: Any) -> str:
    """Return a name of at most 80 letters."""
    return str(name)[:80]
