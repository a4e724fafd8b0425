import struct
import zlib

import cv2
import numpy as np
import pytest
import torch

from sam4ir.utils.image import ImageError, decode_image, encode_png, read_image, to_float_tensor, to_uint8, write_image


def pixels(dtype=np.uint8, channels=3, size=(23, 31), seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype=dtype)


def png(width, height, depth, colour_type, rows, *chunks):
    """A PNG written by the standard (ISO/IEC 15948), independent of the decoder under test."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*c) for c in chunks) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".tiff", np.uint8), (".tif", np.uint16), (".bmp", np.uint8)],
)
def test_lossless_formats_come_back_as_they_were_written(tmp_path, suffix, dtype, channels):
    image = pixels(dtype, channels)
    path = tmp_path / "new folder" / f"image{suffix}"
    write_image(path, image)
    back = read_image(path)
    assert back.dtype == dtype
    assert back.shape == (23, 31, 3)
    np.testing.assert_array_equal(back, np.broadcast_to(image, back.shape))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_jpeg_keeps_the_order_of_channels(tmp_path):
    image = np.full((32, 32, 3), (200, 100, 20), np.uint8)
    write_image(tmp_path / "a.jpg", image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() <= 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 8, 2, [bytes([1, 2, 3, 100, 150, 200])]), [[1, 2, 3], [100, 150, 200]]),
        (png(2, 1, 8, 6, [bytes([1, 2, 3, 0, 100, 150, 200, 128])]), [[1, 2, 3], [100, 150, 200]]),
        (png(2, 1, 8, 4, [bytes([10, 0, 200, 128])]), [[10] * 3, [200] * 3]),
        (png(4, 1, 2, 0, [bytes([0b00011011])]), [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
        (png(2, 1, 8, 3, [bytes([1, 0])], (b"PLTE", bytes([1, 2, 3, 7, 8, 9]))), [[7, 8, 9], [1, 2, 3]]),
        (
            png(2, 1, 8, 3, [bytes([1, 0])], (b"PLTE", bytes([1, 2, 3, 7, 8, 9])), (b"tRNS", bytes([0, 128]))),
            [[7, 8, 9], [1, 2, 3]],
        ),
    ],
    ids=["rgb", "rgba", "grey_alpha", "grey_2_bits", "palette", "palette_alpha"],
)
def test_every_png_colour_type_becomes_rgb_with_alpha_dropped(data, expected):
    np.testing.assert_array_equal(decode_image(data, "x.png")[0], expected)


def test_sixteen_bits_keep_their_values_and_range():
    data = png(1, 1, 16, 6, [struct.pack(">4H", 1000, 30000, 65535, 5)])
    image = decode_image(data, "x.png")
    assert image.tolist() == [[[1000, 30000, 65535]]]
    expected = torch.tensor([1000, 30000, 65535]) / 65535
    torch.testing.assert_close(to_float_tensor(image).flatten(), expected, rtol=0, atol=0)


def test_one_channel_gives_grey_as_stored():
    grey = pixels(channels=1)
    np.testing.assert_array_equal(decode_image(encode_png(grey), "x", channels=1), grey)


def test_exif_orientation_is_applied_unless_it_is_to_be_ignored():
    jpeg = cv2.imencode(".jpg", pixels(size=(16, 40)))[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)  # 6: turn by 90 degrees
    exif = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    np.testing.assert_array_equal(decode_image(turned, "x", exif_orientation="ignore"), decode_image(jpeg, "x"))
    np.testing.assert_array_equal(decode_image(turned, "x"), np.rot90(decode_image(jpeg, "x"), -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, share, capfd):
    data = cv2.imencode(suffix, pixels(size=(60, 70)))[1].tobytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError, match=f"half{suffix}"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_the_end_marker_of_a_thumbnail_does_not_hide_a_truncated_jpeg():
    jpeg = cv2.imencode(".jpg", pixels(size=(60, 70)))[1].tobytes()
    thumbnail = b"thumb\xff\xd9"
    whole = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    assert decode_image(whole, "x").shape == (60, 70, 3)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(whole[:-50], "x")


def test_a_flipped_bit_in_a_png_is_an_error():
    data = bytearray(encode_png(pixels()))
    data[200] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        decode_image(bytes(data), "x.png")


def test_what_is_no_image_is_an_error_that_names_it(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.png"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="float32"):
        decode_image(cv2.imencode(".tiff", np.zeros((4, 4, 3), np.float32))[1].tobytes(), "float.tiff")


def test_writing_what_a_format_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jpg"
    write_image(path, pixels())
    before = path.read_bytes()
    with pytest.raises(ImageError, match="8 bits"):
        write_image(path, pixels(np.uint16))
    with pytest.raises(ImageError, match="suffix"):
        write_image(tmp_path / "a.xyz", pixels())
    assert path.read_bytes() == before


def test_integers_survive_the_way_to_tensors_and_back():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_float_tensor(every)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min(), tensor.max()) == (0, 1)
    np.testing.assert_array_equal(to_uint8(tensor), every)


def test_to_uint8_clamps_and_rounds_halves_to_even():
    values = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 2.0]).view(1, 1, 5)
    assert to_uint8(values).ravel().tolist() == [0, 0, 2, 2, 255]
