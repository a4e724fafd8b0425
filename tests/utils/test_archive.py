"""Files of torch.save are verified: no changed byte is used without a word."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch

from sam4ir.utils import archive
from sam4ir.utils.archive import ArchiveError, contents_digest
from sam4ir.utils.weights import WeightsFileError, read_file

LARGE = 40_000  # numbers: a record that a thread verifies


def content() -> dict[str, object]:
    """Return weights of both sizes of records, and plain values."""
    generator = torch.Generator().manual_seed(0)
    state = {"large": torch.randn(LARGE, generator=generator), "small": torch.randn(7, generator=generator)}
    return {"params": state, "iteration": 8, "best": {"psnr": 31.5}, "text": "name: x\n"}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(content(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def outcome(path: Path, mapped: bool = False) -> str:
    """Return 'named', 'equal' or 'silent' for a file that was changed; any other error is raised."""
    try:
        got = read_file(path, mapped)
    except WeightsFileError as error:
        return "named" if str(error).startswith(f"{path}: ") else "without the file's name"
    return "equal" if same(got, content()) else "silent"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("least", [0, archive.WORTH_THREADS], ids=["threads", "no threads"])
def test_no_changed_bit_is_used(saved: Path, mapped: bool, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "WORTH_THREADS", least)
    whole, draw = saved.read_bytes(), random.Random(1)
    counts = {"named": 0, "equal": 0, "silent": 0}
    structure = draw.choices([*range(4000), *range(len(whole) - 4000, len(whole))], k=200)
    for place in structure + draw.choices(range(len(whole)), k=100):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(changed)
        counts[outcome(saved, mapped)] += 1
    assert counts["silent"] == 0
    assert counts["named"] > 150, counts


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [False, True])
def test_no_bit_of_a_small_file_matters_without_a_word(tmp_path: Path, mapped: bool) -> None:
    """Among them a record's attributes, by which torch's reader takes it for a folder."""
    path = tmp_path / "tiny.pth"
    state = {"a": torch.arange(1.0, 9.0), "b": torch.arange(9.0, 13.0)}
    torch.save(state, path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            read = read_file(path, mapped)
        except WeightsFileError:
            continue
        assert same(dict(read), state), bit


def test_a_record_that_is_marked_as_a_folder_is_refused(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"data/1"))
    whole[entry + 38] |= 0x10
    saved.write_bytes(whole)
    with pytest.raises(WeightsFileError, match="marked as a folder"):
        read_file(saved)


@pytest.mark.parametrize("page", [512, 4096, 65536])
def test_no_zeroed_page_is_used(saved: Path, page: int) -> None:
    whole = saved.read_bytes()
    for start in range(0, len(whole), page):
        changed = whole[:start] + bytes(len(whole[start : start + page])) + whole[start + page :]
        saved.write_bytes(changed)
        if changed != whole:
            assert outcome(saved) == "named", start


def test_the_message_names_the_part_and_the_checksum(saved: Path) -> None:
    whole = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as zipped:
        largest = max(zipped.infolist(), key=lambda entry: entry.file_size)
    whole[largest.header_offset + 1000] ^= 1
    saved.write_bytes(whole)
    record = largest.filename.partition("/")[2]
    with pytest.raises(WeightsFileError, match=rf"net\.pth: is damaged: its record {record} .*CRC-32"):
        read_file(saved)


def test_every_length_of_a_cut_is_named(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in (1, 4, 30, 1000, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert outcome(saved) == "named", length


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), tmp_path / "net.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert outcome(tmp_path / "net.pth") == "equal"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_another_program_zipped_anew_is_read_and_verified(saved: Path, method: int, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(other, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert outcome(other, mapped=True) == "equal"
    whole, draw = other.read_bytes(), random.Random(2)
    for _ in range(100):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        other.write_bytes(changed)
        assert outcome(other) != "silent"


def test_tensors_in_memory_do_not_change_with_the_file(saved: Path) -> None:
    state = read_file(saved)
    torch.save({"params": {}}, saved)
    assert same(state, content())


def test_a_digest_is_that_of_the_tensors(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.pth").write_bytes(saved.read_bytes())
    torch.save(content(), tmp_path / "again.pth")
    changed = content()
    changed["params"]["small"][0] += 1  # type: ignore[index]
    torch.save(changed, tmp_path / "changed.pth")
    digests = [contents_digest(tmp_path / f"{name}.pth") for name in ("net", "copy", "again", "changed")]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_a_directory_that_lists_a_record_twice_as_more_bytes_is_refused(saved: Path) -> None:
    """A small archive whose entries all point to the same bytes would hold more than its length."""
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as zipped:
        start, count = zipped.start_dir, len(zipped.infolist())
    tail = whole.rindex(b"PK\x06\x06")
    entries = whole[start:tail] * 3
    end = b"PK\x05\x06" + bytes(4) + (3 * count).to_bytes(2, "little") * 2
    end += len(entries).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    saved.write_bytes(whole[:start] + entries + end)
    with pytest.raises(ArchiveError, match="lists more bytes than it holds"):
        contents_digest(saved)
