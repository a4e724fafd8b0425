"""YAML file -> frozen Options, every problem of the file at once."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

from sam4ir.config.consistency import consistency
from sam4ir.config.notices import notices as notices
from sam4ir.config.official import GEOMETRIC, as_ours, is_placeholder, takes_geometric
from sam4ir.config.schema import DatasetOptions, Options
from sam4ir.config.signature import check_block, validate
from sam4ir.config.yaml_text import DEEPEST, Path, Problem, dump, parse
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, FUSIONS, LOSSES, METRICS, SCHEDULES, VIEWS, Registry

# as os.path.expandvars reads them
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


class OptionsError(UserError):
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
    values, lines, problems = parse(_text(name))
    if not isinstance(values, dict):
        raise OptionsError(name, problems or [Problem((), "does not hold `key: value` lines")])
    forced: list[Path] = []
    for override in overrides:
        place, found = _override(values, override)
        forced.append(place)
        problems += found
    values = _expand(values, (), problems)
    said = {p.path for p in problems}
    options, found = _resolve(values, FilePath(path).parent)
    problems += [p for p in found if p.path not in said]  # a value that did not read is not judged again
    if options is None or problems:
        raise OptionsError(name, [_located(p, lines, forced) for p in problems])
    return options


def _text(name: str) -> str:
    try:
        return FilePath(name).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionsError(name, [Problem((), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError:
        raise OptionsError(name, [Problem((), "is not a UTF-8 text file")]) from None


def dump_options(options: Options) -> str:
    """YAML that load_options reads back to an equal value; every default is written out."""
    return dump(options.model_dump(mode="json"))


def changes(earlier: str, options: Options) -> list[str]:
    """'train.optim_g.lr: 0.001, now 0.002' for every option that differs from a saved file's text.

    A key that the file lacks, having been saved before there was one, counts as its default.
    """
    saved = parse(earlier)[0]
    if isinstance(saved, Mapping):
        loaded = validate(Options, saved)[0]
        saved = loaded.model_dump(mode="json") if loaded else saved
    before, now = (dict(_leaves(v)) for v in (saved, options.model_dump(mode="json")))
    places = [p for p in {**before, **now} if before.get(p) != now.get(p) and p[0] not in {"name", "path", "logger"}]
    return [f"{'.'.join(p)}: {before.get(p)}, now {now.get(p)}" for p in places]


def _leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(key path, value) of everything that is neither a block nor a list of blocks."""
    inside = enumerate(values) if isinstance(values, list) else values.items() if isinstance(values, Mapping) else ()
    for key, value in inside:
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(v, Mapping) for v in value)):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _located(problem: Problem, lines: Mapping[Path, int], forced: Iterable[Path]) -> Problem:
    """With the line of the key, or of the closest block around it; what --force_yml set has no line."""
    place = problem.path
    if problem.line:
        return problem
    if any(path and place[: len(path)] == path for path in forced):
        return Problem(place, f"{problem.message} (set by --force_yml)")
    while place and place not in lines:
        place = place[:-1]
    return Problem(problem.path, problem.message, lines.get(place, 0) if place else 0)


def _override(values: dict[str, Any], override: str) -> tuple[Path, list[Problem]]:
    """Set one key of `values`; its key path, and what is wrong with the override."""
    place, equals, text = override.partition("=")
    keys = tuple(key.strip() for key in place.split(":"))
    if not equals or not all(keys) or len(keys) > DEEPEST or not place.isprintable():
        return (), [Problem((), f"--force_yml {override!r} does not read as key:key=value")]
    value, _, problems = parse(text)
    if problems:
        return keys, [Problem(keys, p.message) for p in problems]
    block = values
    for i, key in enumerate(keys[:-1]):
        if block.get(key) is None:
            block[key] = {}
        block = block[key]
        if not isinstance(block, dict):
            return keys, [Problem(keys, f"{'.'.join(keys[: i + 1])} is {block!r} and no block of keys")]
    block[keys[-1]] = value
    return keys, []


def _expand(value: Any, path: Path, problems: list[Problem]) -> Any:
    """$VAR and ~ in every text of a tree."""
    if isinstance(value, dict):
        return {k: _expand(v, (*path, k), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*path, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = [m for m in (v.strip("{}") for v in _VARIABLE.findall(value)) if m not in os.environ]
    if missing:
        problems += [Problem(path, f"{value!r}: the environment variable {m} is not set") for m in missing]
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if expanded != value and not _is_plain_text(expanded):
        problems.append(Problem(path, f"{value!r} stands for {expanded!r}, which no option file can hold"))
        return value
    return expanded


def _is_plain_text(value: str) -> bool:
    """Whether a text is UTF-8 and reads back from a saved option file as itself."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not _VARIABLE.search(value)


def _resolve(values: Mapping[str, Any], folder: FilePath) -> tuple[Options | None, list[Problem]]:
    values = {**values, **_plugin_files(values.get("plugins"), folder)}
    failed = _import_plugins(values.get("plugins"), folder)
    values, problems = as_ours(values)
    options, found = validate(Options, values)
    problems += failed + found
    for path, registry, block in _blocks(values):
        if failed and block["type"] not in registry:
            continue  # the plugin that could not be imported may have it
        declared = _declared(path)
        arguments = {k: v for k, v in block.items() if k not in declared}
        also_known = declared | ({GEOMETRIC} if registry is DATASETS and takes_geometric(block["type"]) else set())
        problems += check_block(registry, arguments, path, also_known)
    if not isinstance(options, Options):
        return None, problems
    return options, problems + consistency(options)


def _plugin_files(names: Any, folder: FilePath) -> dict[str, list[Any]]:
    """`plugins` with those beside the option file as absolute paths, so that a saved copy of the file finds them."""
    if not isinstance(names, list):
        return {}
    beside = [folder.resolve() / f"{n}.py" if isinstance(n, str) and n.isidentifier() else None for n in names]
    return {"plugins": [str(b) if b and b.is_file() else n for n, b in zip(names, beside, strict=True)]}


def _import_plugins(names: Any, folder: FilePath) -> list[Problem]:
    """Import the user's modules: names from the Python path or the working folder, and files by their path."""
    problems = []
    for i, name in enumerate(names if isinstance(names, list) else []):
        if not isinstance(name, str):
            continue
        file = FilePath(name) if name.endswith(".py") else None
        for place in (str(file.parent if file else folder.resolve()), os.getcwd()):
            if place not in sys.path:
                sys.path.append(place)
        importlib.invalidate_caches()
        try:
            importlib.import_module(file.stem if file else name)
        except (Exception, SystemExit) as error:  # the user's code may fail in any way; the message names it
            problems.append(Problem(("plugins", i), f"{name!r} cannot be imported: {type(error).__name__}: {error}"))
    return problems


def _declared(path: Path) -> set[str]:
    """Keys of a data set block that belong to the loader and not to the data set's constructor."""
    return set(DatasetOptions.model_fields) - {"type"} if path[0] == "datasets" and len(path) == 2 else set()


def _blocks(values: Mapping[str, Any]) -> Iterator[tuple[Path, Registry, Mapping[str, Any]]]:
    """Every block with a `type` that can be looked up, with its key path and table."""
    places: list[tuple[Path, Registry]] = [
        (("network_g",), ARCHS),
        (("network_r",), ARCHS),
        (("spf",), FUSIONS),
        (("train", "pixel_opt"), LOSSES),
        (("train", "refine_opt"), LOSSES),
        (("train", "scheduler"), SCHEDULES),
        (("train", "scheduler_r"), SCHEDULES),
    ]
    for key in _keys(values, "datasets"):
        chain = ("datasets", key, "degradations")
        places += [(chain[:2], DATASETS), *(((*chain, i), DEGRADATIONS) for i in _keys(values, *chain))]
        views = ("datasets", key, "masks", "views")
        places += [((*views, i), VIEWS) for i in _keys(values, *views)]
    places += [(("val", "metrics", key), METRICS) for key in _keys(values, "val", "metrics")]
    for path, registry in places:
        block = _at(values, path)
        if isinstance(block, Mapping) and isinstance(block.get("type"), str) and not _is_placeholder(path, block):
            yield path, registry, block


def _is_placeholder(path: Path, block: Mapping[str, Any]) -> bool:
    """Whether this is a validation or test set that the file only hints at."""
    placed = path[0] == "datasets" and len(path) == 2 and not str(path[1]).startswith("train")
    return placed and block["type"] in DATASETS and is_placeholder(block)


def _at(values: Any, path: Path) -> Any:
    for key in path:
        if isinstance(values, list) and isinstance(key, int):
            values = values[key]
        else:
            values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _keys(values: Mapping[str, Any], *path: str) -> list[Any]:
    """The keys of a block, or the indices of a list."""
    block = _at(values, path)
    return list(range(len(block))) if isinstance(block, list) else list(block) if isinstance(block, Mapping) else []
