"""The loader of option files: YAML to frozen Options, with every problem of a file at once."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from sam4ir.config.consistency import consistency
from sam4ir.config.notices import notices as notices
from sam4ir.config.official import GEOMETRIC, as_ours, is_placeholder, takes_geometric
from sam4ir.config.recipes import copy_hint
from sam4ir.config.schema import SHORT_TERMS, Block, DatasetOptions, Options, TermOptions
from sam4ir.config.signature import check_block, validate
from sam4ir.config.yaml_text import DEEPEST, LARGEST_TEXT, Path, Problem, dump, parse
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, FUSIONS, LOSSES, METRICS, SCHEDULES, TERMS, VIEWS, Registry
from sam4ir.utils.files import is_utf8, read_text

log = logging.getLogger(__name__)

# as os.path.expandvars reads them
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


# terms whose key says their type already
_SHORT_TERMS: Mapping[Path, str] = {("train", f"{name}_opt"): kind for name, kind in SHORT_TERMS.items()}


TRAINING_KEYS = ("datasets", "network_r", "spf", "train")  # blocks that only training reads


class OptionsError(UserError):
    """An option file that cannot be used; `problems` lists every problem of it, by line."""

    def __init__(self, path: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line))
        count = f"{len(self.problems)} problems"
        if len(self.problems) == 1:
            count = "1 problem"
        super().__init__("\n  ".join([f"{path}: {count}", *map(str, self.problems)]))


class Override(NamedTuple):
    """A value that a program sets in place of an option file's.

    keys: the path of the key. value: plain, as YAML gives it. by: what set it, for messages.
    """

    keys: tuple[str, ...]
    value: Any
    by: str = "the call"


def load_options(
    path: str | os.PathLike[str],
    overrides: Iterable[str | Override] = (),
    training: bool = True,
    *,
    named_by_user: bool = True,
) -> Options:
    """Return the options of a YAML file.

    overrides: 'a:b=c' sets key b of block a to the YAML value c, as BasicSR's --force_yml; or an Override.
    $VAR, ${VAR} and a leading ~ are expanded in every text; $$ is a dollar sign. Modules named under `plugins:` are
    imported first, so that the parts they register are checked like ours.
    training: False leaves the keys of training out, so that a program which only restores needs none of their parts.
    named_by_user: False for a file that merely lies beside another one, such as downloaded weights. Its plugins are
    programs of somebody else, so they are not imported; the log names them, and a network that needs them is refused.
    Raises OptionsError listing every problem with line, key path and near miss.
    """
    name = os.fspath(path)
    values, lines, problems = parse(_text(name))
    if not isinstance(values, dict):
        raise OptionsError(name, problems or [Problem((), "does not hold `key: value` lines")])
    forced: dict[Path, str] = {}
    for override in overrides:
        if isinstance(override, Override):
            by = override.by
            place, override_problems = _set(values, override.keys, override.value)
        else:
            by = "--force_yml"
            place, override_problems = _override(values, override)
        forced[place] = by
        problems += override_problems
    values = _expand(values, (), problems)
    reported = {problem.path for problem in problems}
    averages = False
    if not training:
        averages = _averages(values.get("train"))
        values = {key: value for key, value in values.items() if key not in TRAINING_KEYS}
    folder = FilePath(path).parent
    left_out: list[str] = []
    failed: list[Problem] = []
    if named_by_user:
        values = {**values, **_plugin_files(values.get("plugins"), folder)}
        failed = _import_plugins(values.get("plugins"), folder)
    else:
        values, left_out = _without_plugins(name, values)
    options, further = _resolve(values, failed, left_out)
    for problem in further:
        if problem.path not in reported:  # a value that could not be read has one problem, not two
            problems.append(problem)
    if options is None or problems:
        raise OptionsError(name, [_located(problem, lines, forced) for problem in problems])
    if averages:
        return options.with_average()
    return options


def _averages(train: Any) -> bool:
    """Return whether a block `train` keeps an average of the weights, so that its weights files mean the average."""
    if not isinstance(train, Mapping):
        return False
    decay = train.get("ema_decay")
    return isinstance(decay, (int, float)) and decay > 0


def _text(name: str) -> str:
    try:
        return read_text(FilePath(name), LARGEST_TEXT)
    except OSError as error:
        hint = ""
        if isinstance(error, FileNotFoundError):
            hint = copy_hint(name)
        raise OptionsError(name, [Problem((), f"cannot be read: {error.strerror}{hint}")]) from None
    except UserError as error:
        raise OptionsError(name, [Problem((), str(error).removeprefix(f"{FilePath(name)}: "))]) from None


def dump_options(options: Options) -> str:
    """Return YAML that load_options reads back to equal options; every default is written out."""
    return dump(_each_text(options.model_dump(mode="json"), lambda text: text.replace("$", "$$")))


def option_values(options: Options) -> dict[tuple[str, ...], Any]:
    """Return {key path: value} of everything that is neither a block nor a list of blocks, as plain values."""
    return dict(_leaves(options.model_dump(mode="json")))


def changes(earlier: str, options: Options) -> list[str]:
    """Return 'train.optim_g.lr: 0.001, now 0.002' for every option that differs from a saved file's text.

    A key that an older file lacks counts as its default.
    """
    saved = _each_text(parse(earlier)[0], lambda text: text.replace("$$", "$"))
    if isinstance(saved, Mapping):
        loaded = validate(Options, saved)[0]
        if loaded:
            saved = loaded.model_dump(mode="json")
    before, now = dict(_leaves(saved)), option_values(options)
    lines = []
    for place in {**before, **now}:
        if _value(before.get(place)) != _value(now.get(place)) and place[0] not in {"name", "path", "logger"}:
            lines.append(f"{'.'.join(place)}: {before.get(place)}, now {now.get(place)}")
    return lines


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """Return a tree in which every text, but no key, is changed."""
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, str):
        return change(value)
    return value


def _value(value: Any) -> Any:
    """Return a value to compare; an empty list counts as none, since each block of a list has lines of its own."""
    if value == []:
        return None
    return value


def _leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (key path, value) of everything that is neither a block nor a list of blocks."""
    for key, value in _items(values):
        if _holds_blocks(value):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _holds_blocks(value: Any) -> bool:
    """Return whether a value is a block or a list with a block."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping)


def _items(values: Any) -> Iterable[tuple[Any, Any]]:
    """Return (key, value) of a block or (index, value) of a list; nothing of any other value."""
    if isinstance(values, list):
        return enumerate(values)
    if isinstance(values, Mapping):
        return values.items()
    return ()


def _located(problem: Problem, lines: Mapping[Path, int], forced: Mapping[Path, str]) -> Problem:
    """Add the line of the key, or of the closest block around it; keys of overrides have no line."""
    place = problem.path
    if problem.line:
        return problem
    for path, by in forced.items():
        inside = place[: len(path)] == path
        around = place not in lines and path[: len(place)] == place  # a block that the file has not
        if path and place and (inside or around):
            return Problem(place, f"{problem.message} (set by {by})")
    while place and place not in lines:
        place = place[:-1]
    if not place:
        return problem
    return Problem(problem.path, problem.message, lines[place])


def _override(values: dict[str, Any], override: str) -> tuple[Path, list[Problem]]:
    """Set one key of `values`; return its key path and the problems of the override."""
    place, equals, text = override.partition("=")
    keys = tuple(key.strip() for key in place.split(":"))
    if not equals or not all(keys) or len(keys) > DEEPEST or not place.isprintable():
        return (), [Problem((), f"--force_yml {override!r} does not read as key:key=value")]
    value, _, problems = parse(text)
    if problems:
        return keys, [Problem(keys, p.message) for p in problems]
    return _set(values, keys, value)


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> tuple[Path, list[Problem]]:
    """Set the key of `values` with this path; return the path and the problems."""
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
    """Return a tree with $VAR and ~ expanded in every text; `problems` grows by those of the texts."""
    if isinstance(value, dict):
        return {k: _expand(v, (*path, k), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, (*path, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = False
    for name in _variables(value):
        if name not in os.environ:
            problems.append(
                Problem(path, f"{value!r} ($$ is a dollar sign): the environment variable {name} is not set")
            )
            missing = True
    if missing:
        return value
    parts = [os.path.expandvars(part) for part in value.split("$$")]
    expanded = os.path.expanduser("$".join(parts))
    if expanded != value and not (is_utf8(expanded) and all(map(_is_plain_text, parts))):
        problems.append(Problem(path, f"{value!r} stands for {expanded!r}, which no option file can hold"))
        return value
    return expanded


def _variables(text: str) -> list[str]:
    """Return the names of the environment variables in a text."""
    return [name.strip("{}") for name in _VARIABLE.findall(text.replace("$$", " "))]


def _is_plain_text(value: str) -> bool:
    """Return whether a text is UTF-8 and reads back unchanged from a saved option file."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return not _VARIABLE.search(value)


def _without_plugins(name: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values without `plugins`, and the modules that they name; the log lists these."""
    plugins = values.get("plugins") or []
    rest = {key: value for key, value in values.items() if key != "plugins"}
    if not isinstance(plugins, list):
        plugins = [plugins]
    modules = [str(plugin) for plugin in plugins]
    if modules:
        log.warning(
            "%s: its plugins (%s) were not loaded, since a plugin is a program and nobody named this file; "
            "-opt %s loads them",
            name,
            ", ".join(modules),
            name,
        )
    return rest, modules


def _needs_plugin(path: Path, kind: str, plugins: Sequence[str]) -> Problem:
    """Return the problem of a network whose plugin was not loaded."""
    return Problem(
        path,
        f"{kind!r} is no network of sam4ir; a plugin of this file ({', '.join(plugins)}) may bring it, but plugins are "
        "loaded only from an option file that you name: give it by -opt if you trust it",
    )


def _resolve(
    values: Mapping[str, Any], failed: Sequence[Problem], left_out: Sequence[str]
) -> tuple[Options | None, list[Problem]]:
    """Translate official spellings and check everything; return (options or None, problems).

    failed: problems of plugins that could not be imported. left_out: plugins that were not imported on purpose.
    """
    values, problems = as_ours(values)
    options, invalid = validate(Options, values)
    problems += [*failed, *invalid]
    for path, registry, block in _blocks(values):
        if left_out and registry is ARCHS and block["type"] not in registry:
            problems.append(_needs_plugin((*path, "type"), block["type"], left_out))
        if (failed or left_out) and block["type"] not in registry:
            continue  # the plugin that was not imported may have it
        declared = _declared(path)
        arguments = {key: value for key, value in block.items() if key not in declared}
        also_known = set(declared)
        if registry is DATASETS and takes_geometric(block["type"]):
            also_known.add(GEOMETRIC)
        problems += check_block(registry, arguments, path, also_known)
    if not isinstance(options, Options):
        return None, problems
    return options, problems + consistency(options)


def _plugin_files(names: Any, folder: FilePath) -> dict[str, list[Any]]:
    """Return `plugins` with files beside the option file as absolute paths, so that a saved copy of it works too."""
    if not isinstance(names, list):
        return {}
    return {"plugins": [_plugin_file(name, folder) for name in names]}


def _plugin_file(name: Any, folder: FilePath) -> Any:
    """Return the absolute path of a module beside the option file, or the name itself."""
    if isinstance(name, str) and name.isidentifier():
        file = folder.resolve() / f"{name}.py"
        if file.is_file():
            return str(file)
    return name


def _import_plugins(names: Any, folder: FilePath) -> list[Problem]:
    """Import the user's modules: names from the Python path or the working folder, and files by their path."""
    problems: list[Problem] = []
    if not isinstance(names, list):
        return problems
    for index, name in enumerate(names):
        if isinstance(name, str):
            try:
                _import_plugin(name, folder)
            except (Exception, SystemExit) as error:  # the user's code may fail in any way; the message names it
                message = f"{name!r} cannot be imported: {type(error).__name__}: {error}{_line_of(error, name)}"
                problems.append(Problem(("plugins", index), message))
    return problems


def _line_of(error: BaseException, name: str) -> str:
    """Return ' (FILE, line N)' for the line of a plugin at which its import failed, or '' where no line of it ran."""
    stem = FilePath(name).stem if name.endswith(".py") else name.rpartition(".")[-1]
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = FilePath(frame.filename)
        if file.stem == stem:
            place = f" ({file.name}, line {frame.lineno})"
    return place


def _import_plugin(name: str, folder: FilePath) -> None:
    """Import one module, whose folder joins the Python path."""
    module, place = name, folder.resolve()
    if name.endswith(".py"):
        module, place = FilePath(name).stem, FilePath(name).parent
    for entry in (str(place), os.getcwd()):
        if entry not in sys.path:
            sys.path.append(entry)
    importlib.invalidate_caches()
    importlib.import_module(module)


def _declared(path: Path) -> set[str]:
    """Return the keys of a block that its model declares and that are no arguments of the part's constructor."""
    model: type[Block] = Block
    if path[0] == "datasets" and len(path) == 2:
        model = DatasetOptions
    elif path in _SHORT_TERMS or path[:3] == ("train", "distill", "terms"):
        model = TermOptions
    return set(model.model_fields) - {"type"}


def _blocks(values: Mapping[str, Any]) -> Iterator[tuple[Path, Registry, Mapping[str, Any]]]:
    """Yield every block with a `type` to look up, with its key path and table."""
    places: list[tuple[Path, Registry]] = [
        (("network_g",), ARCHS),
        (("network_r",), ARCHS),
        (("spf",), FUSIONS),
        (("train", "pixel_opt"), LOSSES),
        (("train", "refine_opt"), LOSSES),
        (("train", "perceptual_opt"), LOSSES),
        (("train", "scheduler"), SCHEDULES),
        (("train", "scheduler_r"), SCHEDULES),
    ]
    for key in _keys(values, "datasets"):
        data_set = ("datasets", key)
        places.append((data_set, DATASETS))
        places += _children(values, (*data_set, "degradations"), DEGRADATIONS)
        places += _children(values, (*data_set, "masks", "views"), VIEWS)
    places += _children(values, ("train", "losses"), LOSSES)
    places += _children(values, ("val", "metrics"), METRICS)
    for path in _SHORT_TERMS:
        places.append((path, TERMS))
    places += _children(values, ("train", "distill", "terms"), TERMS)
    for path, registry in places:
        block = _at(values, path)
        if isinstance(block, Mapping) and path in _SHORT_TERMS:
            block = {"type": _SHORT_TERMS[path], **block}
        if isinstance(block, Mapping) and isinstance(block.get("type"), str) and not _is_placeholder(path, block):
            yield path, registry, block


def _children(values: Mapping[str, Any], path: Path, registry: Registry) -> Iterator[tuple[Path, Registry]]:
    """Yield the key path of every block inside the block or list at `path`, with the table of these blocks."""
    for key in _keys(values, *path):
        yield (*path, key), registry


def _is_placeholder(path: Path, block: Mapping[str, Any]) -> bool:
    """Return whether this is the placeholder of a validation or test set."""
    is_test_set = path[0] == "datasets" and len(path) == 2 and not str(path[1]).startswith("train")
    return is_test_set and block["type"] in DATASETS and is_placeholder(block)


def _at(values: Any, path: Path) -> Any:
    """Return the value at a key path, or None."""
    for key in path:
        if isinstance(values, list) and isinstance(key, int):
            values = values[key]
        elif isinstance(values, Mapping):
            values = values.get(key)
        else:
            return None
    return values


def _keys(values: Mapping[str, Any], *path: str | int) -> list[Any]:
    """Return the keys of the block at a key path, or the indices of the list there."""
    return [key for key, _ in _items(_at(values, path))]
