"""The layers of the package: imports point downward only, and heavy modules stay out of plain ones."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from sam4ir import registry
from sam4ir.config.signature import argument_hints
from sam4ir.metrics.kinds import SetMetric, traits_of
from sam4ir.priors.zoo import weights as zoo
from sam4ir.registry import Registry

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("errors",),
    ("registry", "regions", "utils"),
    ("config", "archs", "losses", "metrics", "priors", "distill", "diffusion", "data"),
    ("models",),
    ("engine",),
    ("export",),
    ("api",),
    ("benchmarks", "demo"),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}
TOP = len(LAYERS)  # train.py, test.py, scripts: they start a command of sam4ir.cli

FILES = sorted(
    [*(ROOT / "sam4ir").rglob("*.py"), ROOT / "train.py", ROOT / "test.py", *(ROOT / "scripts").rglob("*.py")]
)
TABLES = {name: table for name, table in vars(registry).items() if isinstance(table, Registry)}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every module that a source imports, inside functions too; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def part_of(module: str) -> str | None:
    """'engine' of sam4ir.engine.build; None of what is not ours, '' of the package itself."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == "sam4ir" else None


def at_run_time(source: str) -> str:
    """A source without its blocks for type checkers."""
    tree = ast.parse(source)
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.unparse(tree)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a source that do not point downward; the package itself names the API for type checkers alone."""
    own = part_of(module)
    if own == "":
        source = at_run_time(source)
    layer = TOP if own is None else LAYER_OF.get(own, 0)
    wrong = []
    for name in imported(source, module, is_package):
        part = part_of(name)
        if part in (None, own, "__version__"):
            continue
        if part not in LAYER_OF or LAYER_OF[part] >= layer:
            wrong.append(f"{module} (layer {layer}) imports {name}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downward(file: Path) -> None:
    module = module_name(file)
    assert part_of(module) in {None, "", *LAYER_OF}, f"{module} belongs to no layer"
    assert violations(file.read_text(encoding="utf-8"), module, file.name == "__init__.py") == []


def neighbours(top: str) -> dict[str, set[str]]:
    """For each folder and loose module of sam4ir/<top>, the others there that it imports."""
    arrows: dict[str, set[str]] = {}
    for file in sorted((ROOT / "sam4ir" / top).rglob("*.py")):
        module = module_name(file)
        own = module.split(".")[2:3]
        if not own:
            continue
        for name in imported(file.read_text(encoding="utf-8"), module, file.name == "__init__.py"):
            parts = name.split(".")
            if parts[:2] == ["sam4ir", top] and len(parts) > 2 and parts[2] != own[0]:
                arrows.setdefault(own[0], set()).add(parts[2])
    return arrows


@pytest.mark.parametrize("top", [top for layer in LAYERS for top in layer if (ROOT / "sam4ir" / top).is_dir()])
def test_folders_of_a_layer_form_no_circle(top: str) -> None:
    TopologicalSorter(neighbours(top)).prepare()  # raises CycleError naming the circle


def test_folders_know_their_order() -> None:
    """What the drawing in docs/architecture shows."""
    engine, data, priors = neighbours("engine"), neighbours("data"), neighbours("priors")
    assert not engine["restore"] & {"evaluate", "train", "make_masks"}
    assert not engine["evaluate"] & {"train", "make_masks"}
    assert not engine["make_masks"] & {"evaluate", "train", "refine"}
    assert not engine["refine"] & {"evaluate", "train"}
    assert not data["masks"] & {"degrade", "prepare"}
    assert not data["prepare"] & {"degrade", "masks"}
    assert priors["sam"] == {"zoo"}


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("import torch\nfrom sam4ir.utils import image\nfrom sam4ir.data import sample", "sam4ir.data.paired", 0),
        ("from sam4ir.engine import build\nfrom scripts import masks", "train", 0),
        ("from . import size\nfrom .layers import LayerNorm2d", "sam4ir.archs.nafnet", 0),
        ("from sam4ir import regions, registry", "sam4ir.data.masks.store", 0),
        ("from sam4ir.engine import build", "sam4ir.models.restoration", 1),
        ("def f():\n    import sam4ir.priors.spe", "sam4ir.data.masks.store", 1),
        ("if True:\n    from ..priors import spe", "sam4ir.data.paired", 1),
        ("from ..priors.zoo import resolve", "sam4ir.data", 0),
        ("import importlib\nimportlib.import_module('sam4ir.config.load')", "sam4ir.archs.nafnet", 1),
        ("from sam4ir import registry", "sam4ir.utils.image", 1),
        ("from sam4ir import registry", "sam4ir", 1),
        ("if TYPE_CHECKING:\n    from sam4ir.api import network", "sam4ir", 0),
        ("if TYPE_CHECKING:\n    from sam4ir.api import network", "sam4ir.data.paired", 1),
        ("from sam4ir.cli import restore", "sam4ir.api.network", 1),
        ("from sam4ir.extras import more", "sam4ir.engine.train.loop", 1),
    ],
)
def test_the_check_itself(source: str, module: str, wrong: int) -> None:
    assert len(violations(source, module)) == wrong


@pytest.mark.parametrize("file", sorted((ROOT / "sam4ir" / "archs").glob("*.py")), ids=lambda f: f.name)
def test_networks_need_torch_only(file: Path) -> None:
    module = module_name(file)
    names = set(imported(file.read_text(encoding="utf-8"), module, file.name == "__init__.py"))
    allowed = {"torch", "__future__", *sys.stdlib_module_names}
    assert [n for n in names if n.split(".")[0] not in allowed and not n.startswith("sam4ir.archs.")] == []


def test_plain_imports_stay_light() -> None:
    heavy = "segment_anything", "tensorboard", "spandrel", "pycocotools", "lmdb", "cv2"
    code = f"""
import sys
import sam4ir
for name in ("sam4ir", "sam4ir.archs.nafnet", "sam4ir.archs.hinet", "sam4ir.archs.restormer", "sam4ir.config.load"):
    __import__(name)
    print(name, [m for m in {heavy} if m in sys.modules])
for name in ("sam4ir.engine.restore.one_pass", "sam4ir.engine.evaluate.score"):
    __import__(name)
    print(name, [m for m in {heavy[:4]} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 7
    assert [line for line in done.stdout.splitlines() if not line.endswith("[]")] == []


ENTRIES = [(kind, name) for kind, table in TABLES.items() for name in table.names()]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_no_registered_part_swallows_a_typo(kind: str, name: str) -> None:
    table = TABLES[kind]
    target = table.get(name)
    parameters = inspect.signature(target).parameters
    assert [p.name for p in parameters.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)] == []
    assert set(parameters) - table.handed <= set(argument_hints(target)), "an argument without a type"


def handed(target: object) -> set[str]:
    """The names of what a part takes."""
    return set(inspect.signature(target).parameters)  # type: ignore[arg-type]


def test_schedulers_take_what_the_engine_hands_over() -> None:
    table = TABLES["SCHEDULES"]
    for name in table.names():
        assert table.handed <= handed(table.get(name)), name


def test_metrics_take_what_the_engine_hands_over() -> None:
    """A function, or an object of a class, takes both images and their range; a metric of a set one image."""
    table, asked = TABLES["METRICS"], set()
    for name in table.names():
        target = table.get(name)
        if inspect.isclass(target) and issubclass(target, SetMetric):
            assert handed(target.features) == {"self", "image", "data_range"}, name
            assert handed(target.distance) == {"self", "images", "references"}, name
        else:
            called = target.forward if inspect.isclass(target) else target
            assert {"image", "reference", "data_range"} <= handed(called), name
            asked |= handed(called) & table.handed
        if "state" in handed(target):
            assert traits_of(target).weights in zoo.ENTRIES, name
            asked.add("state")
    assert asked == table.handed


def test_a_table_names_each_part_as_it_is_called_in_option_files() -> None:
    assert set(TABLES) >= {"ARCHS", "LOSSES", "DATASETS", "METRICS", "FUSIONS", "SCHEDULES"}
    assert len({table.kind for table in TABLES.values()}) == len(TABLES)
