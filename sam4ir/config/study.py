"""Study files: arms, seeds, a budget rule and comparisons that are declared before anything is trained."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sam4ir.config.load import OptionsError
from sam4ir.config.messages import problems_of
from sam4ir.config.schema import FolderName
from sam4ir.config.yaml_text import LARGEST_TEXT, Problem, parse
from sam4ir.config.yaml_text import Path as YamlPath
from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils.files import read_text

PLACEHOLDER = re.compile(r"\{([a-z]\w*)\}")
GIVEN = ("seed", "folder", "options")  # placeholders that every study has
_OF_A_SEED = re.compile(r".*_s\d+")
_DEVICES = re.compile(r"con|prn|aux|nul|com\d|lpt\d")  # names that Windows keeps for devices


def arm_name(value: str) -> str:
    """Return a text that may name an arm or a step: it becomes part of folder names. Raises UserError otherwise."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value) or len(value) > 60:
        raise UserError(
            f"{value!r}: names have small letters, digits and _, begin with a letter, 60 characters at most"
        )
    if value in GIVEN:
        raise UserError(f"{value!r} is a placeholder of every study; take another name")
    if _OF_A_SEED.fullmatch(value):
        raise UserError(f"{value!r} ends like the name of a run with a seed, ARM_s0; take another name")
    if _DEVICES.fullmatch(value):
        raise UserError(f"{value!r} is the name of a device, and no file of Windows; take another name")
    return value


Name = Annotated[str, AfterValidator(arm_name)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Changes = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SharedStep(_Part):
    """Work that several arms use, done once for each seed: a training, or a command of sam4ir."""

    base: str | None = None
    """Option file of a training, which then has none of the study's `set`; without it the study's."""
    set: Changes | None = None
    """Keys that differ from the option file, spelt a:b as in --force_yml; {NAME} is then the trained network."""
    command: tuple[str, ...] | None = None
    """Words of a command of sam4ir that may be given again, such as make-masks; {NAME} is then `output`."""
    output: str | None = None
    """What the command makes; needed by a command."""
    every_seed: bool = True
    """Whether each seed has its own; false does it once for all."""

    @model_validator(mode="after")
    def _one_kind(self) -> SharedStep:
        if (self.command is None) == (self.set is None):
            raise UserError("give `set` for a training or `command` for a command of sam4ir, one of them")
        if (self.command is None) != (self.output is None):
            raise UserError("`output` says what a command makes: give both or neither")
        if self.command is not None and (not self.command or self.base is not None):
            raise UserError("`command` has words, and no base")
        if self.command is not None and self.command[0] == "study":
            raise UserError("`command` may not be another study, which could run itself; run it before this one")
        return self


class DeclaredComparison(_Part):
    """A difference that the study is made to see: of arm `better` minus arm `than`."""

    better: Name
    """Arm that is expected to be better."""
    than: Name
    """Arm that it is compared with."""
    matters: Annotated[float, Field(gt=0)]
    """Smallest difference that would matter, in the unit of the metric."""


class StopRule(_Part):
    """A difference without which the work that would follow is not worth its time."""

    better: Name
    """Arm of one of the comparisons."""
    than: Name
    """The other arm of it."""
    least: float
    """Mean gain of `better` over seeds below which the study says stop."""
    then: str
    """What is not done in that case, in words."""


class ScoreOptions(_Part):
    """What is compared: a metric of the last validation of each run."""

    metric: str = "psnr"
    """Name among val.metrics."""
    output: Literal["restored", "refined"] = "restored"
    """The deployed network's images, or the refiner's, which need val.refiner."""
    sets: tuple[str, ...] | None = None
    """Validation sets that count; without it all. Each image has the same weight."""


class BandOptions(_Part):
    """Regions by which PSNR is split up: near their borders, inside, and by their size."""

    store: str
    """Mask store with the regions, of the ground truth."""
    width: Annotated[int, Field(ge=1, le=64)] = 3
    """Pixels on both sides of a border that count as near."""


class StudyOptions(_Part):
    """A study: runs that differ in their arm and seed, and what they are made to show."""

    name: FolderName
    """Name of the study, which begins the names of its runs: experiments/NAME_ARM_sSEED."""
    base: str
    """Option file of all runs: a path beside the study file, or as `sam4ir options list` names one."""
    note: str = ""
    """What the study asks, for its report."""
    set: Changes = {}
    """Keys that differ from the option file in all runs, spelt a:b as in --force_yml."""
    seeds: Annotated[int, Field(ge=1, le=1000)] | tuple[Seed, ...]
    """Number of seeds, from 0 on, or the seeds themselves; manual_seed of the runs."""
    budget: Literal["equal_steps", "equal_time", "equal_compute"] = "equal_steps"
    """What arms have in common: iterations, or measured seconds, or multiply-adds of their trainings. Other budgets
    than equal_steps change the iterations of all arms but the control."""
    mask_compute: Annotated[float, Field(ge=0)] = 0.0
    """Multiply-adds, in units of 1e9, that the masks of one training image took, for arms that read masks."""
    shared: dict[Name, SharedStep] = {}
    """Work that several arms use."""
    arms: Annotated[dict[Name, Changes], Field(min_length=1)]
    """Keys that each arm sets, spelt a:b as in --force_yml; {seed}, {folder} (studies/NAME), {options} (the
    option files of sam4ir) and names of `shared` are replaced."""
    control: Name | None = None
    """Arm that pilots train and budgets refer to; without it the first."""
    score: ScoreOptions = ScoreOptions()
    """What is compared."""
    comparisons: tuple[DeclaredComparison, ...] = ()
    """Differences of interest, declared in advance; Holm's correction is over them."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability of calling a difference that is not there, over all comparisons."""
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    """Probability of seeing a difference that matters, for the number of seeds that a report asks for."""
    stop: StopRule | None = None
    """Difference without which the work that would follow is not done."""
    bands: BandOptions | None = None
    """Splits PSNR by regions; it needs val.save_img in the runs."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyOptions:
        """Refuse what does not fit together. A message begins with the key that it is about: 'arms.NAME: ...'."""
        seeds = self.all_seeds
        if not seeds:
            raise UserError("seeds: is empty; give a number of seeds, or a list such as [0, 1, 2]")
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise UserError(f"seeds: {twice[0]} is given twice")
        if self.control is not None and self.control not in self.arms:
            raise UserError(f"control: {self._no_arm(self.control)}")
        for name in self.shared:
            if name in self.arms:
                raise UserError(f"shared.{name}: is the name of an arm too; rename one")
        self._check_comparisons()
        self._check_placeholders()
        return self

    def _no_arm(self, name: str) -> str:
        """Return the message about a name that is no arm, with the closest one."""
        hint = near_miss(name, list(self.arms)) or f"; arms are {', '.join(self.arms)}"
        return f"{name!r} is no arm{hint}"

    def _check_comparisons(self) -> None:
        """Refuse comparisons of arms that are not there, or that are given twice, and a stop rule about none."""
        pairs: list[tuple[str, str]] = []
        for number, each in enumerate(self.comparisons):
            place = f"comparisons.{number}"
            for key, arm in (("better", each.better), ("than", each.than)):
                if arm not in self.arms:
                    raise UserError(f"{place}.{key}: {self._no_arm(arm)}")
            if each.better == each.than:
                raise UserError(f"{place}: {each.better!r} is compared with itself")
            if (each.better, each.than) in pairs:
                raise UserError(f"{place}: {each.better} than {each.than} is given twice")
            if (each.than, each.better) in pairs:
                raise UserError(
                    f"{place}: {each.better} than {each.than} is declared the other way round too; a test sees both "
                    "directions, so one is enough"
                )
            pairs.append((each.better, each.than))
        if self.stop is not None and (self.stop.better, self.stop.than) not in pairs:
            raise UserError("stop: is about none of the comparisons; declare better and than there too")

    def _check_placeholders(self) -> None:
        """Refuse placeholders of nothing, and steps that need each other in a circle."""
        known = (*GIVEN, *self.shared)
        places: dict[str, Any] = {"set": self.set}
        for name, changes in self.arms.items():
            places[f"arms.{name}"] = changes
        for name, step in self.shared.items():
            places[f"shared.{name}"] = [step.set, step.command, step.output]
        for place, value in places.items():
            for name in placeholders(value):
                if name not in known:
                    hint = near_miss(name, known) or f"; known: {', '.join(known)}"
                    raise UserError(f"{place}: {{{name}}} is neither a shared step nor a placeholder{hint}")
        for name in self.shared:
            self.needs(name)

    def needs(self, name: str) -> tuple[str, ...]:
        """Return the shared steps that an arm or a shared step needs, those first that others need."""
        ordered: dict[str, None] = {}
        self._add_needs(name, (), ordered)
        del ordered[name]
        return tuple(ordered)

    def _add_needs(self, name: str, above: tuple[str, ...], ordered: dict[str, None]) -> None:
        """Add a step behind all that it needs. above: the steps on the way to it. Raises UserError for a circle."""
        if name in above:
            circle = (*above[above.index(name) :], name)
            raise UserError(f"shared.{name}: {' needs '.join(circle)}, which is a circle")
        if name in ordered:
            return
        for needed in dict.fromkeys(placeholders(self._content(name))):
            if needed in self.shared:
                self._add_needs(needed, (*above, name), ordered)
        ordered[name] = None

    def _content(self, name: str) -> list[Any]:
        """Return all values of an arm or a shared step that may hold placeholders."""
        if name in self.arms:
            return [self.set, self.arms[name]]
        step = self.shared[name]
        if step.set is not None and step.base is None:
            return [self.set, step.set]
        return [step.set, step.command, step.output]

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one by one."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seeds))
        return self.seeds

    @property
    def control_arm(self) -> str:
        """The arm that budgets and pilots refer to."""
        return self.control or next(iter(self.arms))


def placeholders(value: Any) -> list[str]:
    """Return the names in braces of all texts in a value, in their order."""
    if isinstance(value, str):
        return PLACEHOLDER.findall(value)
    names = []
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, (list, tuple)) or isinstance(value, Mapping):
        for part in parts:
            names += placeholders(part)
    return names


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """Return a value whose texts have the placeholders replaced; braces around other words stay."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: names.get(match[1], match[0]), value)
    if isinstance(value, Mapping):
        return {key: filled(part, names) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(part, names) for part in value]
    return value


def load_study(path: str | os.PathLike[str]) -> StudyOptions:
    """Return the study of a YAML file. Raises OptionsError listing every problem with its line."""
    name = os.fspath(path)
    try:
        text = read_text(Path(name), LARGEST_TEXT)
    except OSError as error:
        raise OptionsError(name, [Problem((), f"cannot be read: {error.strerror}")]) from None
    values, lines, problems = parse(text)
    if not isinstance(values, dict):
        raise OptionsError(name, problems or [Problem((), "does not hold `key: value` lines")])
    if problems:
        raise OptionsError(name, problems)
    try:
        return StudyOptions.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error, StudyOptions, values, (), ())
    raise OptionsError(name, [_located(problem, lines) for problem in problems])


def _located(problem: Problem, lines: Mapping[YamlPath, int]) -> Problem:
    """Return a problem with the line of its key, or of the closest block around it.

    A problem of the whole file begins with the key that it is about, as StudyOptions writes it: 'arms.NAME: ...'.
    """
    path, message = problem.path, problem.message
    if not path:
        key, _, rest = message.partition(": ")
        parts = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        if parts[:1] in lines:
            path, message = parts, rest
    place = path
    while place and place not in lines:
        place = place[:-1]
    return Problem(path, message, lines.get(place, 0))
