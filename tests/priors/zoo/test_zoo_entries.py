"""The table of the zoo: every row is complete, and its network is one of ours."""

import re
from pathlib import Path

import pytest
import torch

from sam4ir.archs.infer import built_shapes, infer
from sam4ir.config.load import load_options
from sam4ir.priors.sam.load import KINDS, build_sam
from sam4ir.priors.zoo.merged_files import MergedFiles
from sam4ir.priors.zoo.sources import Drive, NpmPackage, PackagedArrays, Url
from sam4ir.priors.zoo.weights import ENTRIES
from sam4ir.registry import ARCHS

TESTS = Path(__file__).resolve().parents[3] / "options" / "test"
NETWORKS = [entry for entry in ENTRIES.values() if entry.network is not None]
every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
every_network = pytest.mark.parametrize("entry", NETWORKS, ids=[entry.name for entry in NETWORKS])

# official parameter counts in millions: NAFNet's and HINet's papers, Restormer's paper (26.1)
MILLIONS = {
    "NAFNet-SIDD-width32": 29.16,
    "NAFNet-SIDD-width64": 115.98,
    "NAFNet-GoPro-width32": 17.11,
    "NAFNet-GoPro-width64": 67.89,
    "HINet-SIDD-1x": 88.67,
    "HINet-SIDD-0.5x": 22.18,
    "HINet-GoPro": 88.67,
    "restormer_deraining": 26.13,
}


@every_entry
def test_every_row_says_what_it_is_and_how_it_is_checked(entry):
    assert entry.description
    assert entry.licence
    assert len({source.file for source in entry.sources}) >= 1
    for source in entry.sources:
        if isinstance(source, NpmPackage):
            assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in (source.sha256, *source.members.values()))
        if isinstance(source, MergedFiles):
            assert all(re.fullmatch(r"[0-9a-f]{64}", part.sha256) for part in source.parts)
        if isinstance(source, PackagedArrays | NpmPackage | MergedFiles):
            continue
        assert source.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        judged = entry.network is not None or entry.sam is not None
        assert source.sha256 is not None or judged, "nothing would tell a wrong file"
        assert source.file.endswith((".pth", ".pt"))
        if isinstance(source, Drive):
            assert re.fullmatch(r"1[\w-]{32}", source.number)
        else:
            assert isinstance(source, Url)
            assert source.url.startswith("https://")


def test_no_two_rows_share_a_file_or_an_address():
    files = [(entry.name, file) for entry in ENTRIES.values() for file in {source.file for source in entry.sources}]
    assert len({file for _, file in files}) == len(files)
    addresses = [source.describe() for entry in ENTRIES.values() for source in entry.sources]
    assert len(set(addresses)) == len(addresses)


def test_mirrors_are_taken_by_their_hash_only():
    for entry in ENTRIES.values():
        for source in entry.sources[1:]:
            assert isinstance(source, PackagedArrays) or source.sha256 == entry.sources[0].sha256 is not None


@every_network
def test_every_network_is_built_and_told_back_by_its_shapes(entry):
    shapes = built_shapes(ARCHS.get(entry.network.type), entry.network.arguments)
    fit = infer(shapes)
    assert fit is not None
    assert issubclass(ARCHS.get(entry.network.type), fit.network)
    assert entry.network.block["type"] == entry.network.type
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    if entry.name in MILLIONS:
        assert parameters / 1e6 == pytest.approx(MILLIONS[entry.name], abs=0.01)
    if entry.sources[0].size is not None:  # float32 and some bookkeeping
        assert 0 < entry.sources[0].size - 4 * parameters < 300_000


@pytest.mark.parametrize("entry", [e for e in NETWORKS if e.recipe is not None], ids=lambda e: e.name)
def test_every_recipe_scores_the_network_of_the_row(entry):
    block = load_options(TESTS / entry.recipe).network_g
    ours = built_shapes(ARCHS.get(block.type), block.arguments)
    assert ours == built_shapes(ARCHS.get(entry.network.type), entry.network.arguments)
    assert block.type == entry.network.type


@pytest.mark.parametrize("entry", [e for e in ENTRIES.values() if e.group == "sam"], ids=lambda e: e.name)
def test_every_sam_is_of_a_kind_that_is_built_and_as_large_as_its_file(entry):
    assert entry.sam in KINDS
    with torch.device("meta"):
        state = build_sam(entry.sam).state_dict()
    size = entry.sources[0].size
    if size is not None:  # float32 and some bookkeeping
        assert 0 < size - 4 * sum(value.numel() for value in state.values()) < 300_000


def test_a_sams_file_is_named_with_the_digits_that_it_has_officially():
    digits = {"vit_h": "4b8939", "vit_l": "0b3195", "vit_b": "01ec64"}  # of segment-anything's README
    for kind, known in digits.items():
        assert ENTRIES[kind].sources[0].file == f"sam_{kind}_{known}.pth"
