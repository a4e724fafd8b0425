"""What was given in place of weights is named in the words of what it is."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sam4ir.utils.weights import WeightsFileError, read_file


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name.replace("__", "/"), data)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("net.pth"))
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1)), file)
    return file.getvalue()


KINDS = {
    "page": (b"\xef\xbb\xbf\r\n <!DOCTYPE HTML><html>sign in</html>", "HTML page .*download the file again"),
    "page without doctype": (b"<html lang=en>\n<body>" + b"x" * 3000, "HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "XML or HTML text"),
    "json": (b'{"error": "not found"}', "JSON text"),
    "text": ("Gewicht f\u00fcr alle\n".encode(), "is a text .*begins 'Gewicht"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n", "git-lfs pointer.*git lfs pull"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0", "ONNX model"),
    "torchscript": (scripted(), "TorchScript archive.*state_dict"),
    "tar": (tarred(), "tar archive: unpack"),
    "gzip": (gzip.compress(b"weights"), "gzip archive: unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file .Keras"),
    "keras": (archive(config__json=b"{}", model__weights=b"x"), "zip archive that torch.save did not write"),
    "npz": (arrays(), "archive of numpy arrays"),
    "npy": (b"\x93NUMPY\x01\x00", "numpy array"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "zeros alone"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "png": (b"\x89PNG\r\n\x1a\n", "PNG image"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_another_kind_is_named(kind: str, suffix: str, tmp_path: Path) -> None:
    data, words = KINDS[kind]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(data)
    with pytest.raises(WeightsFileError, match=rf"given\{suffix}: .*{words}"):
        read_file(path)


def test_a_short_onnx_file_is_known_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08\x3a\x02ab")
    with pytest.raises(WeightsFileError, match="ONNX model"):
        read_file(path)
