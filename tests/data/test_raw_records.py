"""A raw record in an image LMDB gives the pixels that were stored, or an error that names LMDB and key."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.data.lmdb_io import LmdbWriter, Verified, pack_raw, raw_length, unpack_image, unpack_pixels, unpack_size
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.sources import open_source, read
from sam4ir.errors import UserError
from sam4ir.utils.image import ImageError

HEADER = 24  # bytes


def pixels(h: int, w: int, c: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (h, w, c)).astype(dtype)


def rgb(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image, (*image.shape[:2], 3))


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 100),
    w=st.integers(1, 40),
    c=st.sampled_from([1, 3]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    corners=st.tuples(*[st.integers(0, 100)] * 4),
)
def test_every_crop_is_that_of_the_image(h: int, w: int, c: int, dtype: type, corners: tuple[int, ...]) -> None:
    image = pixels(h, w, c, dtype)
    value = pack_raw(image)
    assert len(value) == raw_length(h, w, c, image.itemsize)
    assert pack_raw(image.copy()) == value
    np.testing.assert_array_equal(unpack_image(value, "x"), rgb(image))
    assert unpack_size(value, "x") == (h, w)
    top, bottom = sorted(corner % (h + 1) for corner in corners[:2])
    left, right = sorted(corner % (w + 1) for corner in corners[2:])
    cut = unpack_pixels(value, "x")[top:bottom, left:right]
    np.testing.assert_array_equal(cut, rgb(image)[top:bottom, left:right])
    assert not cut.flags.writeable


def silent_flips(value: bytes, bits: list[int]) -> list[int]:
    """The flips after which the record is read with other pixels."""
    expected = unpack_image(value, "x")
    silent = []
    for bit in bits:
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            image = unpack_image(bytes(changed), "gt.lmdb[a]")
        except ImageError as error:
            assert "gt.lmdb[a]" in str(error)  # noqa: PT017
        else:
            if not np.array_equal(image, expected):
                silent.append(bit)
    return silent


def drawn_bits(value: bytes, number: int) -> list[int]:
    return np.random.default_rng(1).choice(8 * len(value), number, replace=False).tolist()


def test_no_flipped_bit_goes_unnoticed() -> None:
    value = pack_raw(pixels(70, 33))
    assert silent_flips(value, drawn_bits(value, 300)) == []
    assert silent_flips(value, list(range(8 * HEADER))) == []


@pytest.mark.slow
@pytest.mark.parametrize(("c", "dtype"), [(3, np.uint8), (1, np.uint8), (3, np.uint16), (1, np.uint16)])
def test_no_flipped_bit_of_many_goes_unnoticed(c: int, dtype: type) -> None:
    value = pack_raw(pixels(131, 77, c, dtype))
    assert silent_flips(value, drawn_bits(value, 3000)) == []


def test_blocks_of_zeros_and_blocks_of_other_data_are_noticed() -> None:
    value = pack_raw(pixels(200, 100))
    for start in range(HEADER, len(value) - 4096, 4096):
        for block in (bytes(4096), value[:4096]):
            with pytest.raises(ImageError, match="damaged"):
                unpack_image(value[:start] + block + value[start + 4096 :], "x")


def test_a_crop_is_verified_by_what_it_meets_and_not_by_the_rest() -> None:
    image = pixels(96, 200)
    value = bytearray(pack_raw(image))
    value[HEADER + 40 * 600 + 540] ^= 1  # row 40, column 180
    cuttable = unpack_pixels(bytes(value), "gt.lmdb[a]")
    for place in ((slice(0, 32), slice(0, 200)), (slice(64, 96), slice(0, 200)), (slice(32, 64), slice(0, 170))):
        np.testing.assert_array_equal(cuttable[place], image[place])
    for place in ((slice(40, 41), slice(180, 181)), (slice(0, 96), slice(0, 200)), (slice(20, 45), slice(160, 190))):
        with pytest.raises(ImageError, match=r"gt\.lmdb\[a\]: damaged"):
            cuttable[place]


def test_with_a_memory_each_piece_is_verified_once_and_damage_is_reported_every_time() -> None:
    image = pixels(96, 200)
    value = bytearray(pack_raw(image))
    value[HEADER + 40 * 600 + 540] ^= 1
    verified: Verified = {}
    for _ in range(2):
        np.testing.assert_array_equal(unpack_pixels(bytes(value), "a", verified)[0:32, 0:200], image[:32])
        with pytest.raises(ImageError, match="damaged"):
            unpack_pixels(bytes(value), "a", verified)[0:96, 0:200]
    np.testing.assert_array_equal(verified["a"][1], [[True, True], [False, False], [False, False]])


def test_records_of_version_1_are_still_read() -> None:
    image = pixels(5, 7, 3, np.uint16)
    value = struct.pack("<4sBBHII", b"\0S4I", 1, 2, 3, 5, 7) + image.astype("<u2").tobytes()
    np.testing.assert_array_equal(unpack_image(value, "x"), image)
    np.testing.assert_array_equal(unpack_pixels(value, "x")[1:3, 2:4], image[1:3, 2:4])
    assert unpack_size(value, "x") == (5, 7)


@pytest.mark.parametrize("size", [(0, 7), (1 << 31, 1 << 31), (6, 7)])
@pytest.mark.parametrize("version", [1, 2])
def test_a_size_that_the_bytes_do_not_hold_is_refused(size: tuple[int, int], version: int) -> None:
    value = pack_raw(pixels(5, 7))
    if version == 1:
        value = struct.pack("<4sBBHII", b"\0S4I", 1, 1, 3, 5, 7) + bytes(105)
    forged = value[:8] + struct.pack("<II", *size) + value[16:]
    for function in (unpack_image, unpack_size):
        with pytest.raises(ImageError, match="x: raw record"):
            function(forged, "x")


def damaged_lmdb(folder: Path, key: str) -> Path:
    with LmdbWriter(folder) as writer:
        for number, name in enumerate(("a", "b")):
            writer.put(name, pixels(40, 50, seed=number))
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        value = bytearray(transaction.get(key.encode()))
        value[1000] ^= 16
        transaction.put(key.encode(), bytes(value))
    return folder


def test_sources_and_data_sets_name_a_damaged_image(tmp_path: Path) -> None:
    path = damaged_lmdb(tmp_path / "gt.lmdb", "b")
    source = open_source(path, None, "dataroot_gt")
    np.testing.assert_array_equal(read(source, "a"), pixels(40, 50))
    with pytest.raises(UserError, match=r"gt\.lmdb\[b\]: damaged"):
        read(source, "b")
    data = PairedImageDataset(dataroot_gt=str(path), dataroot_lq=str(path))
    data.get(0, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"gt\.lmdb\[b\]: damaged"):
        data.get(1, np.random.default_rng(0))
