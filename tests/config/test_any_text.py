"""Whatever stands in a file, it loads or raises OptionsError; what loads can be saved and loaded again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam4ir.config.load import OptionsError, dump_options, load_options
from sam4ir.config.recipes import option_files

OPTIONS = Path(__file__).parents[2] / "options"
OFFICIAL = Path(__file__).parent / "official"
PATHS = [*(file.path for file in option_files()), *sorted(OFFICIAL.glob("*.yml"))]
FILES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in PATHS]

quick = settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
thorough = settings(quick, max_examples=10_000)

Check = Callable[[str], None]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Loads a text and, if it loads, its saved copy; lets nothing but OptionsError pass."""
    file = tmp_path / "options.yml"

    def check(text: str) -> None:
        file.write_text(text, encoding="utf-8", newline="")
        try:
            options = load_options(file)
        except OptionsError:
            return
        file.write_text(dump_options(options), encoding="utf-8")
        assert load_options(file) == options

    return check


FRAGMENTS = (
    *(
        "name: a",
        "network_g: ",
        "{type: NAFNet}",
        "datasets: ",
        "train: ",
        "val: {metrics: {psnr: {type: psnr}}}",
        "path: ",
    ),
    *(
        "&a ",
        "*a",
        "<<: ",
        "!!float ",
        "!!int ",
        "!!bool ",
        "!x ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "? ",
        "- ",
        ": ",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\n",
        "  ",
        "\t",
        "'",
        '"',
        '"\\ud800"',
        "#",
        "|\n",
        ">-\n",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
    ),
    *(
        "~",
        "yes",
        ".nan",
        "-.inf",
        "1e400",
        "0x_",
        "0b",
        "1:30",
        "9" * 30,
        "2e-4",
        "$HOME",
        "$X_Y",
        "~root",
        "\x85",
        "\ufeff",
    ),
)
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300) | st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["1e-3", "$HOME", "~", "train", "NAFNet", "psnr", "AdamW", "disk", "two_phase", "SAM4IRModel", 4e5, 2**64]
    ),
    st.sampled_from(
        ["DegradedImageDataset", "LinearLR", "calculate_ssim", "SRModel", "Restormer", "fp16", "none", 1e400, -1, 8]
    ),
)
stages = st.lists(st.sampled_from([1, 2, 8, 64, 0, 8.0, None]), max_size=3)
DEGRADATIONS = [{"type": "Jpeg"}, {"type": "MotionBlur", "length": [5, 9]}, {"type": "x"}, "Jpeg"]
chains = st.lists(st.sampled_from(DEGRADATIONS).map(copy.deepcopy), max_size=3)
anything = st.recursive(
    leaves | stages | chains,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4) | leaves, x, max_size=3),
    max_leaves=6,
)


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The key path of every value of a tree."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in inner for place in [(*path, key), *places(value, (*path, key))]]


ADDED = (
    *("type", "name", "scale", "geometric_augs", "x", 1, None, "spf", "total_batch", "masks", "network_r", "img_path"),
    *(
        "gt_sizes",
        "mini_batch_sizes",
        "iters",
        "degradations",
        "without_effect",
        "bad_images",
        "dataroot_lq",
        "gt_size",
    ),
    *("mixing_augs", "mixup", "scheduler", "use_grad_clip", "total_iter", "trans_num", "grids", "crop_size"),
    *("crop_size_h", "crop_size_w", "max_minibatch", "precision", "compile", "channels_last", "num_gpu", "wandb"),
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """One of our option files with a few keys dropped, renamed, moved or filled with something else."""
    values = copy.deepcopy(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(values)):
            break
        *around, key = draw(st.sampled_from(known))
        block = values
        for outer in around:
            block = block[outer]
        action = draw(st.sampled_from(["drop", "rename", "replace", "add"] if isinstance(block, dict) else ["replace"]))
        if action == "replace":
            block[key] = draw(anything)
        elif action == "add":
            block[draw(st.sampled_from(ADDED))] = draw(anything)
        else:
            value = block.pop(key)
            if action == "rename":
                block[draw(st.text(max_size=4) | st.sampled_from([place[-1] for place in known]))] = value
    return yaml.safe_dump(values, allow_unicode=draw(st.booleans()))


@quick
@given(text=texts)
def test_any_text_loads_or_is_an_options_error(check: Check, text: str) -> None:
    check(text)


@quick
@given(text=mutated())
def test_any_change_of_a_file_loads_or_is_an_options_error(check: Check, text: str) -> None:
    check(text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@thorough
@given(text=texts)
def test_ten_thousand_texts(check: Check, text: str) -> None:
    check(text)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@thorough
@given(text=mutated())
def test_ten_thousand_changes(check: Check, text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    "override", ["", "=", ":", "a", "a=", "a=[", "network_g=~", "network_g:type:x=1", "a=&a [*a]", "\udcff=1"]
)
def test_any_override_sets_a_value_or_is_an_options_error(override: str) -> None:
    with pytest.raises(OptionsError):
        load_options(OPTIONS / "quickstart" / "plain.yml", [override])
