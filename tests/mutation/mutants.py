"""Mutants: copies of a module with one small change, made by the operators of cosmic-ray and by two of our own.

A change that cannot alter a result is left out: annotations, what a message says, checks against errors of programming.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names

Position = tuple[int, int]

# `x is None` as `x == None`, and `x == "name"` as `x is "name"`, change nothing but style
SAME = {f"core/ReplaceComparisonOperator_{pair}" for pair in ("Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot")}
TYPES = {"Literal", "Annotated", "Callable"}
# keywords of calls that check, speed up or describe, and change no value
IDLE_KEYWORDS = {"strict", "non_blocking", "maxsize", "frozen", "kw_only", "eq", "init", "repr", "compare"}


@dataclass(frozen=True)
class Mutant:
    """One change of a module.

    inside: the function or class that the change is in, such as `Ema.update`. before, after: the lines that it changes,
    without their indentation. source: the whole changed text.
    """

    module: str
    inside: str
    line: int
    operator: str
    before: str
    after: str
    source: str


class RemoveStatement(Operator):
    """Replace a statement that is a call or an assignment such as `x += y` by `pass`."""

    def mutation_positions(self, node) -> list[tuple[Position, Position]]:
        if node.type == "simple_stmt" and _acts(node.children[0]):
            return [(node.start_pos, node.end_pos)]
        return []

    def mutate(self, node, index: int):
        statement = node.children[0]
        prefix = statement.get_first_leaf().prefix
        node.children[0] = parso.python.tree.Keyword("pass", statement.start_pos, prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _acts(statement) -> bool:
    if statement.type == "expr_stmt":
        operator = statement.children[1]
        return operator.type == "operator" and operator.value not in ("=", ":=")
    return statement.type in ("atom_expr", "power")


class RemoveMethod(Operator):
    """Replace `x.method()` by `x`."""

    def mutation_positions(self, node) -> list[tuple[Position, Position]]:
        # a list: cosmic-ray asks for the next place after `mutate` has changed the node
        return [(node.children[i].start_pos, node.children[i + 1].end_pos) for i in _plain_calls(node)]

    def mutate(self, node, index: int):
        i = _plain_calls(node)[index]
        del node.children[i : i + 2]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _plain_calls(node) -> list[int]:
    """Return the places of `.method` among the children of an expression where `()` follows."""
    places = []
    if node.type in ("atom_expr", "power"):
        for i, (here, call) in enumerate(pairwise(node.children)):
            if here.type == call.type == "trailer" and here.children[0].value == "." and call.get_code() == "()":
                places.append(i)
    return places


OURS: dict[str, type[Operator]] = {"remove-statement": RemoveStatement, "remove-method": RemoveMethod}


@cache
def operators() -> dict[str, Operator]:
    """Return the operators by name."""
    chosen = {}
    for name in operator_names():
        operator = get_operator(name)
        if name not in SAME and not operator.arguments():
            chosen[name] = operator()
    return chosen | {name: operator() for name, operator in OURS.items()}


def sites(source: str) -> dict[Position, list[tuple[str, int]]]:
    """Return the places of a module that can change a result, with the (operator, occurrence) that apply there."""
    idle = list(_idle_areas(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    by_place: dict[Position, list[tuple[str, int]]] = defaultdict(list)
    for name, operator in operators().items():
        occurrence = 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                if not any(first <= start < last for first, last in idle):
                    by_place[start].append((name, occurrence))
                occurrence += 1
    return dict(sorted(by_place.items()))


def _idle_areas(tree: ast.Module) -> Iterator[tuple[Position, Position]]:
    """Yield the areas whose changes no result shows."""
    for node in ast.walk(tree):
        for part in _idle_parts(node):
            assert part.end_lineno is not None
            assert part.end_col_offset is not None
            # one column earlier, where the @ of a decorator stands
            yield (part.lineno, part.col_offset - 1), (part.end_lineno, part.end_col_offset)


def _idle_parts(node: ast.AST) -> list[ast.expr | ast.stmt]:
    """Return the parts of a node that are annotations, types, messages or idle keywords."""
    parts: Sequence[ast.expr | ast.stmt | None] = []
    if isinstance(node, (ast.arg, ast.AnnAssign)):
        parts = [node.annotation]
    elif isinstance(node, ast.FunctionDef):
        parts = [node.returns, *(d for d in node.decorator_list if "lru_cache" in ast.unparse(d))]
    elif isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
        parts = [*node.body, *_decorators(node)]
    elif isinstance(node, ast.Raise):
        parts = [node.exc, node.cause]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in TYPES:
        parts = [node]
    elif isinstance(node, ast.keyword) and node.arg in IDLE_KEYWORDS:
        parts = [node.value]
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and "tuple[" in ast.unparse(node.value):
        parts = [node.value]  # a name of a type, such as `Range = float | tuple[float, float]`
    return [part for part in parts if part is not None]


def _decorators(kind: ast.ClassDef) -> Iterator[ast.expr]:
    """Yield the decorators in a class; in Python's tree they stand before the function that they belong to."""
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            yield from node.decorator_list


def sample(module: str, source: str, count: int, seed: int) -> list[Mutant]:
    """Draw up to `count` mutants, no second one at a place before every place has one. The draw depends on the seed,
    the module's name and its text only."""
    rng = random.Random(f"{seed} {module}")
    by_place = sites(source)
    for choices in by_place.values():
        rng.shuffle(choices)
    drawn: list[Mutant] = []
    texts = {source}
    while len(drawn) < count and any(by_place.values()):
        places = [place for place, choices in by_place.items() if choices]
        for place in rng.sample(places, len(places)):
            name, occurrence = by_place[place].pop()
            mutated = mutate_code(source, operators()[name], occurrence)
            if len(drawn) < count and mutated is not None and mutated not in texts and _compiles(mutated):
                texts.add(mutated)
                inside = inside_of(source, place[0])
                drawn.append(Mutant(module, inside, place[0], name, *changed_lines(source, mutated), mutated))
    return drawn


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(source, "mutant", "exec")
        except SyntaxError:
            return False
    return True


def inside_of(source: str, line: int) -> str:
    """Return the dotted name of the functions and classes around a line, with their decorators; '' for none."""
    names = []
    for node in ast.walk(ast.parse(source)):  # the outer ones come first
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                names.append(node.name)
    return ".".join(names)


def changed_lines(source: str, mutated: str) -> tuple[str, str]:
    """Return the lines of two texts that differ, without common ones before and behind, joined and stripped."""
    old, new = source.split("\n"), mutated.split("\n")
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return tuple(" ".join(" ".join(lines).split()) for lines in (old, new))  # type: ignore[return-value]
