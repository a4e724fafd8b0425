"""YAML file -> frozen Options, every problem of the file at once."""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml

from sam4ir.config.schema import WITHOUT_EFFECT, DatasetOptions, Options
from sam4ir.config.signature import check_block, validate
from sam4ir.config.yaml_text import Path, Problem, parse
from sam4ir.registry import ARCHS, DATASETS, FUSIONS, LOSSES, METRICS, SCHEDULES, Registry

_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


class OptionsError(ValueError):
    """An option file that cannot be used. `problems` lists all that is wrong with it."""

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line))
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n  ".join([f"{path}: {count}", *map(str, self.problems)]))


def load_options(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Options:
    """The options of a YAML file.

    overrides: 'a:b=c' sets key b of block a to the YAML value c, as BasicSR's --force_yml.
    $VAR, ${VAR} and a leading ~ are expanded in every text. Modules named under `plugins:` are
    imported first, so that the parts they register are checked like ours.
    Raises OptionsError listing every problem with line, key path and near miss.
    """
    name = os.fspath(path)
    try:
        text = FilePath(path).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionsError(name, [Problem((), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise OptionsError(name, [Problem((), "is not a UTF-8 text file")]) from None
    values, lines, problems = parse(text)
    if not isinstance(values, dict):
        raise OptionsError(name, [*problems, Problem((), "does not hold `key: value` lines")])
    for override in overrides:
        problems += _override(values, override)
    values = _expand(values, (), problems)
    options = None if problems else _resolve(values, FilePath(path).parent, problems)
    if options is None or problems:
        raise OptionsError(name, [_with_line(p, lines) for p in problems])
    return options


def dump_options(options: Options) -> str:
    """YAML that load_options reads back to an equal value; every default is written out."""
    values = options.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def notices(options: Options) -> list[str]:
    """One line for every key that stands in the file but has no effect here, with the reason."""
    given = options.model_dump(exclude_unset=True, exclude_none=True)
    found = []
    for pattern, reason in WITHOUT_EFFECT.items():
        found += [f"{'.'.join(place)} has no effect: {reason}" for place in _places(given, pattern)]
    return found


def _places(values: Any, pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not pattern:
        yield ()
    elif isinstance(values, Mapping):
        for key in values if pattern[0] == "*" else {pattern[0]} & values.keys():
            yield from ((key, *rest) for rest in _places(values[key], pattern[1:]))


def _with_line(problem: Problem, lines: Mapping[Path, int]) -> Problem:
    """The line of the key, or of the closest block around it."""
    place = problem.path
    while place and place not in lines:
        place = place[:-1]
    return Problem(problem.path, problem.message, problem.line or (lines.get(place, 0) if place else 0))


def _override(values: dict[str, Any], override: str) -> list[Problem]:
    place, equals, text = override.partition("=")
    keys = tuple(place.split(":"))
    if not equals or not all(keys):
        return [Problem((), f"--force_yml {override!r} does not read as key:key=value")]
    value, _, problems = parse(text)
    if problems:
        return [Problem(keys, f"--force_yml {override!r}: {problems[0].message}")]
    block: Any = values
    for i, key in enumerate(keys[:-1]):
        block = block.setdefault(key, {}) if block.get(key, {}) is not None else block.update({key: {}}) or block[key]
        if not isinstance(block, dict):
            return [Problem(keys[: i + 1], f"--force_yml {override!r}: is no block of keys but {block!r}")]
    block[keys[-1]] = copy.deepcopy(value if text.strip() else None)
    return []


def _expand(value: Any, path: Path, problems: list[Problem]) -> Any:
    """$VAR and ~ in every text of a tree."""
    if isinstance(value, dict):
        return {k: _expand(v, (*path, k), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*path, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = [m for m in (v.strip("{}") for v in _VARIABLE.findall(value)) if m not in os.environ]
    problems += [Problem(path, f"{value!r}: the environment variable {m} is not set") for m in missing]
    return os.path.expanduser(os.path.expandvars(value))


def _resolve(values: dict[str, Any], folder: FilePath, problems: list[Problem]) -> Options | None:
    problems += _import_plugins(values.get("plugins"), folder)
    options, found = validate(Options, values)
    problems += found
    for path, registry, block in _blocks(values):
        arguments = {k: v for k, v in block.items() if k not in _declared(path)}
        problems += check_block(registry, arguments, path)
    if not isinstance(options, Options):
        return None
    problems += _consistency(options)
    return options


def _import_plugins(names: Any, folder: FilePath) -> list[Problem]:
    """Import the user's modules; they are looked for beside the option file, here, and on the Python path."""
    problems = []
    for i, name in enumerate(names if isinstance(names, list) else []):
        for place in (str(folder.resolve()), os.getcwd()):
            if place not in sys.path:
                sys.path.append(place)
        try:
            importlib.import_module(str(name))
        except Exception as error:  # a plugin is the user's code and may fail in any way; the message names it
            problems.append(Problem(("plugins", i), f"{name!r} cannot be imported: {type(error).__name__}: {error}"))
    return problems


def _declared(path: Path) -> set[str]:
    """Keys of a data set block that belong to the loader and not to the data set's constructor."""
    return set(DatasetOptions.model_fields) - {"type"} if path[0] == "datasets" else set()


def _blocks(values: Mapping[str, Any]) -> Iterator[tuple[Path, Registry, Mapping[str, Any]]]:
    """Every block with a `type` that can be looked up, with its key path and table."""
    places: list[tuple[Path, Registry]] = [
        (("network_g",), ARCHS),
        (("network_r",), ARCHS),
        (("spf",), FUSIONS),
        (("train", "pixel_opt"), LOSSES),
        (("train", "scheduler"), SCHEDULES),
        (("train", "scheduler_r"), SCHEDULES),
    ]
    places += [(("datasets", key), DATASETS) for key in _keys(values, "datasets")]
    places += [(("val", "metrics", key), METRICS) for key in _keys(values, "val", "metrics")]
    for path, registry in places:
        block = _at(values, path)
        if isinstance(block, Mapping) and isinstance(block.get("type"), str):
            yield path, registry, block


def _at(values: Any, path: Path) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _keys(values: Mapping[str, Any], *path: str) -> list[str]:
    block = _at(values, path)
    return list(block) if isinstance(block, Mapping) else []


def _consistency(options: Options) -> list[Problem]:
    """What no single key can tell: keys that need or exclude each other."""
    problems = [
        Problem(("datasets", key), "the key of a data set starts with train, val or test")
        for key in options.datasets
        if not key.startswith(("train", "val", "test"))
    ]
    if len(options.phase("train")) > 1:
        problems.append(Problem(("datasets",), f"has several training sets ({', '.join(options.phase('train'))}); keep one"))
    if options.phase("train") and options.train is None:
        problems.append(Problem(("train",), "is required with a training set"))
    if options.train and options.train.total_batch and (train := options.phase("train")):
        (batch,) = (d.batch_size_per_gpu for d in train.values())
        if options.train.total_batch % batch:
            problems.append(
                Problem(("train", "total_batch"), f"{options.train.total_batch} is no multiple of batch_size_per_gpu {batch}")
            )
    return problems + (_distillation(options) if options.distills else _plain(options))


def _plain(options: Options) -> list[Problem]:
    train = options.train
    given = {
        "spf": options.spf,
        "network_r": options.network_r,
        "train.spd_opt": train and train.spd_opt,
        "train.sgr_opt": train and train.sgr_opt,
    }
    return [
        Problem(tuple(key.split(".")), f"belongs to model_type SAM4IRModel; this file says {options.model_type}")
        for key, value in given.items()
        if value is not None
    ]


def _distillation(options: Options) -> list[Problem]:
    problems = []
    if options.scale != 1:
        problems.append(Problem(("scale",), f"is {options.scale}; SPF lays masks on the restored image, so SAM4IR needs scale 1"))
    train = options.train
    if train is None:
        return problems
    if train.distill.masks == "store":
        for key, dataset in options.datasets.items():
            wanted = key.startswith("train") or (options.val is not None and options.val.refiner and key.startswith("val"))
            if wanted and dataset.dataroot_mask is None:
                hint = "name a mask store (scripts/masks.py makes one), or set train.distill.masks: empty"
                problems.append(Problem(("datasets", key, "dataroot_mask"), f"is required by SAM4IRModel: {hint}"))
    if train.distill.schedule == "two_phase":
        if not options.path.pretrain_network_g:
            problems.append(Problem(("path", "pretrain_network_g"), "is required by schedule two_phase: the student is frozen first"))
        if (train.distill.refine_iter or 0) >= train.total_iter:
            problems.append(Problem(("train", "distill", "refine_iter"), "must be smaller than total_iter"))
    if train.distill.init_refiner == "student" and not options.path.pretrain_network_g:
        message = "student copies the student's weights, but it has none yet; set path.pretrain_network_g"
        problems.append(Problem(("train", "distill", "init_refiner"), message))
    return problems
