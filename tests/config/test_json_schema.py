"""The JSON schema for editors: complete, true to the loader, and strict about misspelt keys."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sam4ir.config.recipes import option_files
from sam4ir.config.yaml_text import parse

OPTIONS = Path(__file__).parents[2] / "options"
OFFICIAL = Path(__file__).parent / "official"
SYNTHETIC = OPTIONS / "train" / "deblurring" / "nafnet_w32_synthetic.yml"
RESTORMER = OPTIONS / "train" / "deblurring" / "restormer_gopro.yml"

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": (int, float),
}
ANNOTATIONS = {"title", "description", "default", "$defs", "$schema"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What `python -m sam4ir.config.schema` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module is imported already
        runpy.run_module("sam4ir.config.schema", run_name="__main__", alter_sys=True)
    return json.loads(printed.getvalue())


class Validator:
    """The part of JSON Schema 2020-12 that our schema uses; an unknown keyword is an error, not a pass."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.root = schema

    def accepts(self, value: Any, schema: Any = None) -> bool:
        schema = self.root if schema is None else schema
        if isinstance(schema, bool):
            return schema
        return all(
            getattr(self, "_" + keyword.strip("$"))(value, argument, schema)
            for keyword, argument in schema.items()
            if keyword not in ANNOTATIONS
        )

    def _ref(self, value: Any, name: str, _: Any) -> bool:
        return self.accepts(value, self.root["$defs"][name.removeprefix("#/$defs/")])

    def _anyOf(self, value: Any, branches: list[Any], _: Any) -> bool:
        return any(self.accepts(value, branch) for branch in branches)

    def _not(self, value: Any, inner: Any, _: Any) -> bool:
        return not self.accepts(value, inner)

    def _type(self, value: Any, name: str, _: Any) -> bool:
        if isinstance(value, bool):
            return name == "boolean"
        return isinstance(value, TYPES[name]) and (name != "integer" or float(value).is_integer())

    def _const(self, value: Any, constant: Any, _: Any) -> bool:
        return value == constant

    def _enum(self, value: Any, choices: list[Any], _: Any) -> bool:
        return value in choices

    def _properties(self, value: Any, properties: dict[str, Any], _: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.accepts(value[k], s) for k, s in properties.items() if k in value
        )

    def _additionalProperties(self, value: Any, inner: Any, schema: dict[str, Any]) -> bool:
        others = value.keys() - schema.get("properties", {}) if isinstance(value, dict) else ()
        return all(self.accepts(value[key], inner) for key in others)

    def _propertyNames(self, value: Any, inner: Any, _: Any) -> bool:
        return not isinstance(value, dict) or all(self.accepts(key, inner) for key in value)

    def _required(self, value: Any, keys: list[str], _: Any) -> bool:
        return not isinstance(value, dict) or set(keys) <= value.keys()

    def _items(self, value: Any, inner: Any, schema: dict[str, Any]) -> bool:
        first = len(schema.get("prefixItems", ()))
        return not isinstance(value, list) or all(self.accepts(item, inner) for item in value[first:])

    def _prefixItems(self, value: Any, inner: list[Any], _: Any) -> bool:
        return not isinstance(value, list) or all(self.accepts(v, s) for v, s in zip(value, inner, strict=False))

    def _minItems(self, value: Any, count: int, _: Any) -> bool:
        return not isinstance(value, list) or len(value) >= count

    def _maxItems(self, value: Any, count: int, _: Any) -> bool:
        return not isinstance(value, list) or len(value) <= count

    def _pattern(self, value: Any, pattern: str, _: Any) -> bool:
        return not isinstance(value, str) or re.search(pattern, value) is not None

    def _minimum(self, value: Any, bound: float, _: Any) -> bool:
        return not isinstance(value, (int, float)) or value >= bound

    def _exclusiveMinimum(self, value: Any, bound: float, _: Any) -> bool:
        return not isinstance(value, (int, float)) or value > bound

    def _maximum(self, value: Any, bound: float, _: Any) -> bool:
        return not isinstance(value, (int, float)) or value <= bound

    def _exclusiveMaximum(self, value: Any, bound: float, _: Any) -> bool:
        return not isinstance(value, (int, float)) or value < bound


def plain(path: Path) -> dict[str, Any]:
    return parse(path.read_text(encoding="utf-8"))[0]


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a schema."""
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from nodes(inner)
    if isinstance(schema, dict):
        yield schema


def test_every_reference_resolves(schema: dict[str, Any]) -> None:
    references = {node["$ref"] for node in nodes(schema) if isinstance(node.get("$ref"), str)}
    assert references
    assert {reference.removeprefix("#/$defs/") for reference in references} <= schema["$defs"].keys()


@pytest.mark.parametrize(
    "path", [*(file.path for file in option_files()), *sorted(OFFICIAL.glob("*.yml"))], ids=lambda p: p.stem
)
def test_every_option_file_is_accepted(schema: dict[str, Any], path: Path) -> None:
    assert Validator(schema).accepts(plain(path))


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ((), "manualseed", 0),
        (("datasets", "train"), "gtsize", 64),
        (("datasets", "train"), "batch_size_pergpu", 4),
        (("datasets", "train", "io_backend"), "type", 3),
        (("network_g",), "widht", 8),
        (("network_g",), "width", "eight"),
        (("network_g",), "width", 8.5),
        (("network_g",), "enc_blk_nums", [1, "a"]),
        (("train",), "total_itr", 8),
        (("train", "optim_g"), "betas", [0.9]),
        (("train", "optim_g"), "type", "Adan"),
        (("train", "scheduler"), "etamin", 0),
        (("train", "pixel_opt"), "weight", 1),
        (("train",), "losses", {"edges": {"type": "L1Loss", "weight": 1}}),
        (("train",), "losses", [{"type": "L1Loss"}]),
        (("train",), "perceptual_opt", {"type": "PerceptualLoss"}),
        (("train",), "perceptual_opt", {"type": "PerceptualLoss", "layer_weights": {"conv1_1": "high"}}),
        (("val", "metrics", "psnr"), "crop_boder", 4),
        (("logger",), "print_frq", 1),
    ],
)
def test_a_misspelt_key_or_a_wrong_kind_is_rejected(
    schema: dict[str, Any], block: tuple[str, ...], key: str, value: Any
) -> None:
    values = copy.deepcopy(plain(OPTIONS / "quickstart" / "plain.yml"))
    inner = values
    for outer in block:
        inner = inner[outer]
    inner[key] = value
    assert not Validator(schema).accepts(values)


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ((), "spf", None),
        ((), "network_r", {"type": "MyNet", "depth": 3}),
        (("datasets", "train"), "geometric_augs", True),
        (("train",), "total_iter", 4e5),
        (("train", "scheduler"), "T_max", 4e5),
        (("val", "metrics", "psnr"), "crop_border", 4),
        (("val", "metrics", "psnr"), "type", "calculate_psnr"),
        (("val",), "trans_num", 8),
        (("val",), "crop_size_h", 256),
        (("train",), "mixup", False),
        (("train",), "losses", {"edges": {"type": "L1Loss", "loss_weight": 1}, "own": {"type": "MyLoss", "power": 2}}),
        (("train",), "losses", {}),
        (("train",), "perceptual_opt", None),
        (("train",), "perceptual_opt", {"type": "PerceptualLoss", "layer_weights": {"conv1_1": 1}}),
        (("train",), "pixel_opt", None),
        (("train",), "scheduler", {"type": "LinearLR"}),
        (("train",), "total_batch", [8, 4]),
        (("train",), "mixing_augs", {"mixup": True, "mixup_beta": 1.2, "use_identity": True}),
        (("datasets", "train"), "dataroot_lq", "none"),
        (("datasets", "train"), "gt_sizes", [64, 128]),
        ((), "precision", "fp16"),
    ],
)
def test_what_the_loader_takes_is_accepted(
    schema: dict[str, Any], block: tuple[str, ...], key: str, value: Any
) -> None:
    values = copy.deepcopy(plain(OPTIONS / "quickstart" / "plain.yml"))
    inner = values
    for outer in block:
        inner = inner[outer]
    inner[key] = value
    assert Validator(schema).accepts(values)


@pytest.mark.parametrize(
    ("path", "block", "key", "value"),
    [
        (SYNTHETIC, ("datasets", "train", "degradations", 0), "lenght", [5, 40]),
        (SYNTHETIC, ("datasets", "train", "degradations", 0), "length", "long"),
        (SYNTHETIC, ("datasets", "train", "degradations", 1), "type", 3),
        (SYNTHETIC, ("datasets", "train"), "degradations", []),
        (RESTORMER, ("datasets", "train"), "mini_batch_sizes", [8, 0]),
        (RESTORMER, ("datasets", "train"), "mini_batch_size", [8, 4]),
        (RESTORMER, ("train", "scheduler"), "eta_min", 0),
        (RESTORMER, ("train", "mixing_augs"), "mixup_bta", 1.2),
        (RESTORMER, ("train",), "total_batch", [64, 2.5]),
        (RESTORMER, (), "precision", "fp8"),
    ],
)
def test_a_misspelt_key_of_stages_mixing_and_degradations_is_rejected(
    schema: dict[str, Any], path: Path, block: tuple[str | int, ...], key: str, value: Any
) -> None:
    values = copy.deepcopy(plain(path))
    inner: Any = values
    for outer in block:
        inner = inner[outer]
    inner[key] = value
    assert not Validator(schema).accepts(values)


def test_required_keys_are_required(schema: dict[str, Any]) -> None:
    values = plain(OPTIONS / "quickstart" / "plain.yml")
    for key in ("name", "network_g"):
        assert not Validator(schema).accepts({k: v for k, v in values.items() if k != key})
