"""What a mask store holds is what is read: a flipped bit or a forged number is an error that names store and image."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import zstandard

from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.record import MaskRecord, MaskStoreError, mask_count
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.masks.upgrade import upgrade

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "datasets" / "quickstart" / "masks.lmdb"  # written in format 1
META = {"generator": "test", "checkpoint": "none", "checkpoint_sha256": "00", "settings": {"points": 32, "a": 0.5}}
HEADER = struct.Struct("<4sHHIIIIIIII32s")


def discs(number: int, h: int, w: int) -> list[dict[str, Any]]:
    """Masks of overlapping discs."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:h, :w]
    masks = []
    for _ in range(number):
        top, left, radius = rng.random(3) * [h, w, h / 3]
        masks.append({"segmentation": np.hypot(y - top, x - left) <= radius + 2, "predicted_iou": rng.random()})
    return masks


def whole(record: MaskRecord) -> list[Any]:
    """All that a record gives."""
    window = (0, 0, *record.size)
    arrays = [record.labels(*window), record.table, record.region_map(*window), record.list_map(*window)]
    arrays += [record.areas, record.boxes, record.predicted_iou, record.stability_score, record.spe_sum]
    return [record.size, record.count, record.image_sha256, *(array.tobytes() for array in arrays)]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def bits(data: bytes, number: int) -> list[int]:
    return np.random.default_rng(1).choice(8 * len(data), min(number, 8 * len(data)), replace=False).tolist()


def silent_flips(data: bytes, number: int) -> list[int]:
    """The flips after which a record is read and gives something else."""
    expected = whole(MaskRecord(data))
    silent = []
    for bit in bits(data, number):
        try:
            if whole(MaskRecord(flipped(data, bit), "store: key")) != expected:
                silent.append(bit)
        except MaskStoreError as error:
            assert str(error).startswith("store: key")  # noqa: PT017
    return silent


def every_header_bit_is_noticed(data: bytes) -> bool:
    noticed = 0
    for bit in range(8 * 84):
        with pytest.raises(MaskStoreError):
            MaskRecord(flipped(data, bit))
        noticed += 1
    return noticed == 8 * 84


def test_no_flipped_bit_of_a_record_goes_unnoticed() -> None:
    data = record_from_sam(discs(7, 90, 130), image_sha256=bytes(range(32)))
    assert silent_flips(data, 400) == []
    assert every_header_bit_is_noticed(data)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "size"), [(7, (90, 130)), (40, (200, 300)), (0, (64, 64)), (300, (70, 70))])
def test_no_flipped_bit_of_many_records_goes_unnoticed(number: int, size: tuple[int, int]) -> None:
    assert silent_flips(record_from_sam(discs(number, *size), size), 3000) == []


def old_records(tmp_path: Path) -> dict[str, bytes]:
    """A record of format 1 and one of format 2."""
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "earlier_run.zip") as archive:
        archive.extractall(tmp_path)
    records = {"1": MaskStore(QUICKSTART).record_bytes("chelsea")}
    records["2"] = MaskStore(tmp_path / "masks.lmdb").record_bytes("photo_3")
    for version, data in records.items():
        assert data[4] == int(version)
    return records


def test_a_flipped_bit_of_an_earlier_record_never_crashes(tmp_path: Path) -> None:
    for data in old_records(tmp_path).values():
        silent_flips(data, 150)


@pytest.mark.slow
def test_many_flipped_bits_of_earlier_records_never_crash(tmp_path: Path) -> None:
    for data in old_records(tmp_path).values():
        silent_flips(data, 3000)


def forged(h: int, w: int, masks: int, atoms: int, frames: dict[int, int] | None = None, version: int = 3) -> bytes:
    """A record of 8 KB with right checksums whose header states these numbers; frames: number -> stated bytes."""
    stated = {
        0: 64 * masks,
        1: 4 * atoms,
        2: atoms * -(-masks // 8),
        3: 4 * -(-h // 64) * -(-w // 64),
        **(frames or {}),
    }
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    parts = []
    for number in range(4):
        size = min(stated[number], 60_000_000)
        parts.append(compressor.compress(bytes(size)))
    filled = struct.pack("<I", 1)  # a tile of atom 0
    tiles = min(stated[3] // 4, 15_000_000)
    planes = np.frombuffer(filled * tiles, np.uint8).reshape(-1, 4).T
    parts[3] = compressor.compress(planes.tobytes())
    lengths = [len(part) for part in parts]
    header = HEADER.pack(b"S4MR", version, 4, 64, h, w, masks, atoms, *lengths[:3], bytes(32))
    header += struct.pack("<II", lengths[3], 0)
    if version >= 3:
        header += struct.pack("<I", zlib.crc32(header))
    return header + b"".join(parts)


FORGED = {
    "a table of 2^33 bits": (512, 512, 1 << 16, 1 << 17),
    "2^31 masks": (64, 64, 1 << 31, 1),
    "2^30 atoms": (1 << 15, 1 << 15, 1, 1 << 30),
    "more atoms than pixels": (4, 4, 8, 100),
    "an image of 2^40 pixels": (1 << 20, 1 << 20, 1, 1),
    "an image without pixels": (0, 64, 1, 1),
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("case", FORGED)
def test_a_header_cannot_state_more_than_its_record_can_hold(case: str, version: int) -> None:
    data = forged(*FORGED[case], version=version)
    with pytest.raises(MaskStoreError, match="store: key: states"):
        MaskRecord(data, "store: key")


def test_an_image_of_the_largest_size_is_not_read_whole_from_a_few_bytes() -> None:
    record = MaskRecord(forged(1 << 15, 1 << 15, 1, 1), "store: key")
    assert not record.region_map(5, 5, 64, 64).any()
    with pytest.raises(MaskStoreError, match=r"store: key: states an image of 32768x32768 in .* too few"):
        record.region_map(0, 0, 1 << 15, 1 << 15)


def test_a_map_with_atoms_that_have_no_row_is_an_error_everywhere() -> None:
    """The checksums are right: somebody made it."""
    data = record_from_sam(discs(3, 70, 70))
    record = MaskRecord(data, "store: key")
    fields = list(HEADER.unpack_from(data))
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    frames = [data[record._frames[i] : record._frames[i + 1]] for i in range(4)]
    frames[1] = compressor.compress(np.zeros(1, "<i4").tobytes())
    frames[2] = compressor.compress(np.zeros(1, np.uint8).tobytes())
    fields[7], fields[8:11] = 1, [len(frame) for frame in frames[:3]]
    header = HEADER.pack(*fields) + struct.pack("<II", len(frames[3]), len(data) - record._tiles_at)
    body = b"".join(frames) + data[record._tiles_at :]
    bad = MaskRecord(header + struct.pack("<I", zlib.crc32(header)) + body, "store: key")
    window = (0, 0, 70, 70)
    for read in (bad.labels, bad.region_map, bad.list_map, bad.stack):
        with pytest.raises(MaskStoreError, match="store: key: damaged"):
            read(*window)


def store_with(folder: Path, records: dict[str, bytes]) -> Path:
    """A store in whose data.mdb these bytes stand, whatever they are."""
    path = folder / "masks.lmdb"
    with MaskStoreWriter(path, META) as writer:
        writer.put_record("whole", record_from_sam(discs(3, 40, 50)))
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for key, data in records.items():
            transaction.put(key.encode(), data)
    return path


def masks_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that may use 4 GB."""
    command = [sys.executable, str(ROOT / "scripts" / "masks.py"), *map(str, arguments)]
    limit = 4 << 30
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        timeout=120,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "export", "view"])
def test_commands_name_a_forged_record_and_do_the_rest(command: str, tmp_path: Path) -> None:
    bombs = {f"bomb{version}": forged(*FORGED["a table of 2^33 bits"], version=version) for version in (2, 3)}
    bombs["large"] = forged(1 << 15, 1 << 15, 1, 1)
    store = store_with(tmp_path, bombs)
    arguments = {
        "info": ["info", store, "--all", "--workers", 1],
        "export": ["export", store, "--format", "sam", "--output", tmp_path / "out", "--workers", 1],
        "view": ["view", store, "--output", tmp_path / "out"],
    }
    done = masks_script(*arguments[command])
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    for key in ("bomb2", "bomb3"):
        assert f"{store}: {key}: states" in done.stderr
    if command != "info":
        assert [path.stem for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_a_damaged_record_does_not_keep_the_store_from_being_opened_and_counted(tmp_path: Path) -> None:
    good = record_from_sam(discs(2, 20, 20))
    store = store_with(tmp_path, {"a": b"S4M?" + good[4:], "b": flipped(good, 8 * 24)})
    with MaskStoreWriter(store, META) as writer:
        writer.put_record("more", good)
    opened = MaskStore(store)
    assert opened.meta["counts"] == {"images": 4, "masks": 5}, "the readable records have 3 and 2 masks"
    assert opened.read("more").count == 2
    for key in ("a", "b"):
        with pytest.raises(MaskStoreError, match=f"masks.lmdb: {key}: "):
            opened.read(key)


def test_a_damaged_record_is_neither_copied_nor_counted() -> None:
    good = record_from_sam(discs(2, 20, 20))
    with pytest.raises(MaskStoreError, match=r"here: damaged header"):
        mask_count(flipped(good, 8 * 24), "here")


def meta_flips(tmp_path: Path, number: int) -> list[int]:
    """The flips in meta.json after which the store is opened with another meta."""
    path = store_with(tmp_path, {})
    file = path / "meta.json"
    data, expected = file.read_bytes(), MaskStore(path).meta
    silent = []
    for bit in bits(data, number):
        file.write_bytes(flipped(data, bit))
        try:
            if MaskStore(path).meta != expected:
                silent.append(bit)
        except MaskStoreError as error:
            assert "masks.lmdb" in str(error)  # noqa: PT017
    return silent


def test_no_flipped_bit_of_meta_json_goes_unnoticed(tmp_path: Path) -> None:
    assert meta_flips(tmp_path, 300) == []


@pytest.mark.slow
def test_no_bit_of_meta_json_at_all_goes_unnoticed(tmp_path: Path) -> None:
    assert meta_flips(tmp_path, 100_000) == []


def test_meta_json_before_digests_is_read_and_gets_one(tmp_path: Path) -> None:
    path = store_with(tmp_path, {})
    file = path / "meta.json"
    meta = json.loads(file.read_text(encoding="utf-8"))
    del meta["digest"]
    file.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(MaskStoreError, match=r"meta.json: differs from its own digest"):
        MaskStore(path)
    file.write_text(json.dumps({**meta, "format_version": 2}), encoding="utf-8")
    assert "digest" not in MaskStore(path).meta
    MaskStoreWriter(path, META).close()
    meta = json.loads(file.read_text(encoding="utf-8"))
    assert meta["format_version"] == 3
    assert len(meta["digest"]) == 64


@pytest.mark.parametrize("key", ["counts", "versions", "made_on", "settings"])
def test_an_earlier_meta_json_of_another_form_is_named(key: str, tmp_path: Path) -> None:
    path = store_with(tmp_path, {})
    meta = {**MaskStore(path).meta, "format_version": 2, key: "text"}
    (path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(MaskStoreError, match=rf"meta.json: damaged, '{key}'"):
        MaskStore(path)


def test_upgrade_gives_earlier_records_checksums_and_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "masks.lmdb"
    shutil.copytree(QUICKSTART, path)
    store = MaskStore(path)
    keys = store.keys()
    assert store.unprotected() == keys
    before = {key: whole(store.read(key)) for key in keys}
    del store
    done = upgrade(path)
    assert (done.written, done.images, done.bad) == (len(keys), len(keys), [])
    store = MaskStore(path)
    assert store.unprotected() == []
    for key in keys:
        # the atoms keep their numbers, so even the labels are equal; version 1 stored bytes of labels in two
        after = whole(store.read(key))
        assert [*after[:3], *after[4:]] == [*before[key][:3], *before[key][4:]]
    del store
    assert upgrade(path).written == 0


def test_upgrade_leaves_a_damaged_record_and_names_it(tmp_path: Path) -> None:
    old = bytearray(MaskStore(QUICKSTART).record_bytes("chelsea"))
    old[-300:] = bytes(300)
    path = store_with(tmp_path, {"old": MaskStore(QUICKSTART).record_bytes("chelsea"), "bad": bytes(old)})
    done = upgrade(path)
    assert (done.written, done.images) == (1, 3)
    assert len(done.bad) == 1
    assert "masks.lmdb: bad: " in done.bad[0]
    assert MaskStore(path).record_bytes("bad") == bytes(old)
