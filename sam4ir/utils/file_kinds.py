"""Name what a file is that was given in place of weights, by its first bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

HEAD = 1024  # bytes that are looked at

# what begins so, and what helps
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself: run `git lfs pull`, or download the file"),
    (b"\x1f\x8b", "is a gzip archive: unpack it first (gunzip, or tar xzf)"),
    (b"BZh", "is a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ\x00", "is an xz archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive: unpack it first"),
    (b"Rar!\x1a\x07", "is a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (Keras, TensorFlow or MATLAB), not weights of PyTorch"),
    (b"\x93NUMPY", "is a numpy array, not weights of PyTorch"),
    (b"GGUF", "is a GGUF file, not weights of PyTorch"),
    (b"%PDF", "is a PDF document, not weights"),
    (b"\x89PNG", "is a PNG image, not weights"),
    (b"\xff\xd8\xff", "is a JPEG image, not weights"),
    (b"SQLite format 3", "is an SQLite database, not weights"),
)
_ONNX = "is an ONNX model, not weights of PyTorch: ask for the .pth file that it was exported from"
_PAGE = "is an HTML page and no weights file: download the file again, from the link to the file itself"


def foreign_kind(path: Path) -> str | None:
    """Say what a file is and what helps, where it is of a known kind that holds no weights of PyTorch; None otherwise.

    The sentence goes behind the file's name. Zip archives are named by `zip_kind`.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "is empty: download or copy it again"
    for magic, sentence in _MAGIC:
        if head.startswith(magic):
            return sentence
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first (tar xf)"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model, not weights of PyTorch"
    if _is_onnx(head, path.suffix):
        return _ONNX
    if not head.strip(b"\x00"):
        return "begins with zeros alone: it was not written to its end, or its disk is damaged; copy it again"
    return _text_kind(head)


def zip_kind(names: Iterable[str]) -> str | None:
    """Say what a zip archive is that torch.save did not write, by the names in it; None where torch.save wrote it."""
    names = set(names)
    if "constants.pkl" in names:
        return (
            "is a TorchScript archive, a program and not weights alone: "
            "load it with torch.jit.load and save its state_dict()"
        )
    if "data.pkl" in names:
        return None
    for name in names:
        if name.endswith(".npy"):
            return "is an archive of numpy arrays, not weights of PyTorch"
    return "is a zip archive that torch.save did not write: unpack it first"


def _is_onnx(head: bytes, suffix: str) -> bool:
    """Recognise the protocol buffer of an ONNX model: its version (field 1), then its producer (field 2) or graph (7).

    Bytes so few are found elsewhere too, so a file of another suffix must name a producer in letters.
    """
    if head[:1] != b"\x08" or head[2:3] not in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return False
    producer = head[4 : 4 + head[3]] if len(head) > 4 else b""
    return suffix == ".onnx" or (head[2:3] == b"\x12" and len(producer) > 2 and producer.isascii())


def _text_kind(head: bytes) -> str | None:
    """Say which text a file is; None where it is no text, such as safetensors, whose first eight bytes are a number."""
    if b"\x00" in head:
        return None
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a letter that the head cuts
            return None
        text = head[: error.start].decode("utf-8-sig")
    beginning = text.lstrip()
    if beginning[:15].lower().startswith(("<!doctype html", "<html", "<head", "<body", "<script")):
        return _PAGE
    if beginning.startswith("<"):
        return "is an XML or HTML text and no weights file: download the file again, from the link to the file itself"
    if not text.translate(dict.fromkeys(b"\t\r\n\f")).isprintable():
        return None
    if beginning.startswith(("{", "[")):
        return f"is a JSON text and no weights file (it begins {beginning[:40]!r}): download the file again"
    return f"is a text and no weights file (it begins {beginning[:40]!r})"
