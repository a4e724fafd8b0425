"""Weights that are put together of several files."""

import hashlib

import pytest
import torch
from safetensors import safe_open

from sam4ir.priors.zoo import sources
from sam4ir.priors.zoo.download import UnreachableError, WeightsError
from sam4ir.priors.zoo.merged_files import MergedFiles
from sam4ir.priors.zoo.sources import Url
from sam4ir.utils.weights import read_weights

NOWHERE = "http://127.0.0.1:9"  # a port that nothing listens to


@pytest.fixture
def parts(tmp_path):
    """Two files by hand in the cache."""
    states = {"a.pth": {"features.0": torch.arange(4.0), "classifier": torch.ones(9)}, "b.pth": {"lin0": torch.ones(2)}}
    urls = []
    for name, state in states.items():
        torch.save(state, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        urls.append(Url(f"{NOWHERE}/{name}", hashlib.sha256(data).hexdigest(), len(data)))
    return tuple(urls)


def joined(parts):
    return MergedFiles(parts, "joined.safetensors", lambda name: name.startswith(("features", "lin")))


def test_files_that_were_put_there_become_one_without_the_network(tmp_path, parts):
    source = joined(parts)
    assert not source.is_cached(tmp_path)
    source.fetch(tmp_path)
    assert source.is_cached(tmp_path)
    state = read_weights(tmp_path / source.file).state
    assert sorted(state) == ["features.0", "lin0"]
    assert torch.equal(state["features.0"], torch.arange(4.0))
    with safe_open(tmp_path / source.file, "pt") as file:
        assert all(part.sha256 in file.metadata()["made_of"] for part in parts)
    assert {p.name for p in tmp_path.iterdir() if not p.name.endswith(".sha256")} == {"a.pth", "b.pth", source.file}
    assert source.size == sum(part.size for part in parts)


def test_a_part_that_cannot_be_had_is_unreachable_and_leaves_nothing(tmp_path, parts):
    (tmp_path / "b.pth").unlink()
    with pytest.raises(UnreachableError, match=r"b\.pth"):
        joined(parts).fetch(tmp_path)
    assert not (tmp_path / "joined.safetensors").exists()


def test_what_is_fetched_goes_when_it_is_joined(tmp_path, parts, monkeypatch):
    data = (tmp_path / "b.pth").read_bytes()
    (tmp_path / "b.pth").unlink()
    monkeypatch.setattr(sources, "transfer", lambda url, part, size: part.write_bytes(data))
    joined(parts).fetch(tmp_path)
    assert joined(parts).is_cached(tmp_path)
    assert not list(tmp_path.glob("b.pth*"))
    assert (tmp_path / "a.pth").exists()


def test_another_file_of_a_parts_name_is_refused(tmp_path, parts):
    (tmp_path / "b.pth").write_bytes(b"x" * parts[1].size)
    with pytest.raises(WeightsError, match=r"b\.pth"):
        joined(parts).fetch(tmp_path)


def test_a_joined_file_that_was_changed_is_refused(tmp_path, parts):
    source = joined(parts)
    source.fetch(tmp_path)
    file = tmp_path / source.file
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(WeightsError, match="sha256"):
        source.is_cached(tmp_path)
