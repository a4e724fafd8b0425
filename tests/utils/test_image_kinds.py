"""What becomes of each kind of image file: pixels of pillow and tifffile, or a refusal that names the file."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from sam4ir.utils.image import ImageError, decode_image, read_labels, read_size, size_of

ROWS, COLUMNS = np.mgrid[0:40, 0:56]
RGB = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], -1).clip(0, 255).astype(np.uint8)
RGB16 = (RGB.astype(np.uint16) * 257) ^ 3
ALPHA = (COLUMNS[..., None] * 4).astype(np.uint8)
RGBA, RGBA16 = np.concatenate([RGB, ALPHA], -1), np.concatenate([RGB16, ALPHA.astype(np.uint16) * 200], -1)
PICTURE = Image.fromarray(RGB)


def saved(picture, kind, **settings):
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def tiff(array, **settings):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **settings)
    return file.getvalue()


def grey(plane):
    return np.repeat(plane[..., None], 3, -1)


def planes(array):
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def apart(got, want):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return np.abs(got.astype(int) - want.astype(int)).max()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_in_every_format_as_pillow_does(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(PICTURE, kind, exif=exif, **settings)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    stored = np.asarray(Image.open(io.BytesIO(saved(PICTURE, kind, **settings))).convert("RGB"))
    assert apart(decode_image(data, "x"), want) <= 2
    assert decode_image(data, "x", channels=1).shape == (*want.shape[:2], 1)
    assert apart(decode_image(data, "x", exif_orientation="ignore"), stored) <= 2
    (tmp_path / "x").write_bytes(data)
    assert read_size(tmp_path / "x") == size_of(data, "x") == want.shape[:2]
    assert read_size(tmp_path / "x", "ignore") == stored.shape[:2]


@pytest.mark.parametrize("array", [RGB16, RGBA16, RGB], ids=["rgb16", "rgba16", "rgb8"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff_of_any_depth(array, orientation):
    data = tiff(array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turned = {
        1: RGB16,
        2: RGB16[:, ::-1],
        3: RGB16[::-1, ::-1],
        4: RGB16[::-1],
        5: RGB16.swapaxes(0, 1),
        6: np.rot90(RGB16, -1),
        7: np.rot90(RGB16, 2).swapaxes(0, 1),
        8: np.rot90(RGB16),
    }[orientation]
    if array.dtype == np.uint8:
        turned = ((turned ^ 3) // 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(data, "x"), turned)


def test_orientation_behind_the_pixels_of_a_png_counts():
    body = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(4)
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = saved(PICTURE, "PNG")
    np.testing.assert_array_equal(decode_image(data[:-12] + chunk + data[-12:], "x"), np.rot90(RGB, -1))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    "layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}, {"compression": "zlib", "predictor": True}]
)
@pytest.mark.parametrize(
    ("array", "settings", "want"),
    [
        (planes(RGB16), {"photometric": "rgb", "planarconfig": "separate"}, RGB16),
        (planes(RGB), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
        (planes(RGBA16), {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2]}, RGB16),
        (RGBA, {"photometric": "rgb", "extrasamples": [2]}, RGB),
        (RGBA, {"photometric": "rgb", "extrasamples": [0]}, RGB),
        (RGBA16, {"photometric": "rgb", "extrasamples": [2]}, RGB16),
        (RGB16[..., 0], {"photometric": "minisblack"}, grey(RGB16[..., 0])),
        (RGB16[..., 0], {"photometric": "miniswhite"}, grey(65535 - RGB16[..., 0])),
        (RGB[..., 0], {"photometric": "miniswhite"}, grey(255 - RGB[..., 0])),
        (RGBA[..., 2:], {"photometric": "minisblack", "extrasamples": [2]}, grey(RGB[..., 2])),
        (planes(RGBA[..., 2:]), {"photometric": "minisblack", "planarconfig": "separate"}, grey(RGB[..., 2])),
    ],
    ids=[
        "planar16",
        "planar8",
        "planar_alpha16",
        "rgba8",
        "rgba8_unknown",
        "rgba16",
        "grey16",
        "white0_16",
        "white0_8",
        "la8",
        "la_planar",
    ],
)
def test_tiff_is_read_as_its_tags_say(array, settings, want, layout, bigtiff, byteorder):
    data = tiff(array, bigtiff=bigtiff, byteorder=byteorder, **settings, **layout)
    one_byte = want.dtype == np.uint8 and array is not RGB and array is not RGBA
    if "tile" in layout and one_byte:  # OpenCV does not decode small plain tiles of one byte, and garbles two bytes
        with pytest.raises(ImageError, match="tile"):
            decode_image(data, "x")
        return
    np.testing.assert_array_equal(decode_image(data, "x"), want)
    assert size_of(data, "x") == want.shape[:2]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "YCbCr", "P"])
def test_compressed_tiff_has_the_pixels_of_pillow(mode, compression):
    if compression == "jpeg" and mode in ("P", "RGBA"):
        pytest.skip("pillow does not write it")
    if (mode, compression) == ("YCbCr", "raw"):
        pytest.skip("pillow 12.3 cannot read what it writes")
    data = saved(PICTURE.convert(mode), "TIFF", compression=compression)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert apart(decode_image(data, "x"), want) <= 2


@pytest.mark.parametrize("compression", ["raw", "group3", "group4"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_bilevel_tiff_has_the_pixels_of_pillow(photometric, compression):
    data = saved(PICTURE.convert("1"), "TIFF", compression=compression, tiffinfo={262: photometric})
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert apart(decode_image(data, "x"), want) == 0


def test_the_first_page_of_a_tiff_counts():
    np.testing.assert_array_equal(decode_image(tiff(np.stack([RGB, 255 - RGB]), photometric="rgb"), "x"), RGB)


def test_premultiplied_colours_are_refused_unless_opaque():
    opaque = np.concatenate([RGB, np.full_like(ALPHA, 255)], -1)
    np.testing.assert_array_equal(decode_image(tiff(opaque, photometric="rgb", extrasamples=[1]), "x"), RGB)
    for array in (RGBA, RGBA16):
        with pytest.raises(ImageError, match=r"odd\.tif: its colours are multiplied by its alpha"):
            decode_image(tiff(array, photometric="rgb", extrasamples=[1]), "odd.tif")
    with pytest.raises(ImageError, match="alpha"):
        decode_image(tiff(planes(RGBA), photometric="rgb", planarconfig="separate", extrasamples=[1]), "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(RGB.astype(np.float32)), "float32"),
        (tiff(RGB.astype(np.float16)), "float16"),
        (tiff(RGB.astype(np.float64)), "float64"),
        (tiff(RGB[..., 0].astype(np.int16)), "int16"),
        (tiff(RGB[..., 0].astype(np.int8)), "int8"),
        (tiff(RGB[..., 0].astype(np.uint32)), "32 bits"),
        (tiff(RGBA16[..., 2:], photometric="minisblack", extrasamples=[2]), "grey and alpha"),
        (tiff(RGB, photometric="cielab"), "Lab"),
        (tiff(RGB[..., 0], subfiletype=1), "thumbnail"),
        (tiff(np.zeros((40, 56, 7), np.uint8), photometric="minisblack", planarconfig="contig"), "7 channels"),
        (saved(PICTURE, "GIF"), "is GIF"),
        (saved(PICTURE, "JPEG2000"), "is JPEG 2000"),
        (saved(PICTURE, "PPM"), "is PPM"),
        (saved(PICTURE, "PNG", save_all=True, append_images=[ImageOps.invert(PICTURE)]), "animated"),
        (saved(PICTURE, "WEBP", save_all=True, append_images=[ImageOps.invert(PICTURE)]), "animated"),
        (saved(PICTURE, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "12 bits"),
        (saved(PICTURE, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc3\x00\x11\x08"), "lossless"),
    ],
)
def test_what_would_come_out_wrong_is_refused_by_name(data, reason):
    with pytest.raises(ImageError, match=rf"odd\.img: .*{reason}"):
        decode_image(data, "odd.img")


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_has_the_pixels_of_pillow(mode, progressive):
    data = saved(PICTURE.convert(mode), "JPEG", quality=95, progressive=progressive)
    assert apart(decode_image(data, "x"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_webp_has_the_pixels_of_pillow_without_alpha(mode, tmp_path):
    picture = Image.fromarray(RGBA).convert(mode)
    data = saved(picture, "WEBP", lossless=True, exact=True)
    want = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x"), want)
    lossy = saved(picture, "WEBP", quality=90)
    assert size_of(data, "x") == size_of(lossy, "x") == (40, 56)
    with pytest.raises(ImageError, match=r"half\.webp: truncated WebP"):
        decode_image(lossy[:-20], "half.webp")


def bmp(bits, compression=0, masks=b"", height=-8, width=8, body=bytes(256)):
    start = 54 + len(masks)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + masks + body


def test_bmp_of_other_masks_or_sixteen_bits_is_refused():
    body = bytes(range(256))
    usual = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    want = np.frombuffer(body, np.uint8).reshape(8, 8, 4)[..., 2::-1]
    np.testing.assert_array_equal(decode_image(bmp(32, 3, usual, body=body), "x"), want)
    np.testing.assert_array_equal(decode_image(bmp(32, 3, usual, height=8, body=body), "x"), want[::-1])
    np.testing.assert_array_equal(decode_image(bmp(32, body=body), "x"), want)
    swapped = struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)
    for data in (bmp(32, 3, swapped), bmp(16), bmp(16, 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F)), bmp(24, 4)):
        with pytest.raises(ImageError, match=r"odd\.bmp: is a BMP of"):
            decode_image(data, "odd.bmp")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp_has_the_pixels_of_pillow(mode):
    picture = PICTURE.convert(mode)
    np.testing.assert_array_equal(decode_image(saved(picture, "BMP"), "x"), np.asarray(picture.convert("RGB")))


def small_tiff(tags, data=b"", pages=1):
    """Return a little-endian TIFF of the tags {number: (type, count, field)}, repeated as `pages` directories."""
    body = b""
    for page in range(pages):
        entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
        after = 8 + (page + 1) * (6 + len(entries)) if page + 1 < pages else 0
        body += struct.pack("<H", len(tags)) + entries + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + body + data


def bomb(side=32768, compression=4, bits=1, stored=1000, **more):
    tags = {256: (4, 1, side), 257: (4, 1, side), 258: (3, 1, bits), 259: (3, 1, compression), 262: (3, 1, 1)}
    tags |= {277: (3, 1, 1), 278: (4, 1, side), 273: (4, 1, 8), 279: (4, 1, stored)}
    return small_tiff(tags | more.get("tags", {}), bytes(more.get("tail", stored)), more.get("pages", 1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bomb(compression=1), "more than 1000 bytes can hold"),
        (bomb(compression=8, bits=8), "more than 1000 bytes can hold"),
        (bomb(compression=5, bits=8), "more than 1000 bytes can hold"),
        (bomb(compression=32773, bits=8), "more than 1000 bytes can hold"),
        (bomb(side=1 << 19), "too large"),
        (bomb(tail=10), "truncated"),
        (bomb(tags={273: (4, 1 << 30, 8), 279: (4, 1 << 30, 8)}), "corrupt"),
        (bomb(tags={258: (3, 1 << 31, 8)}), "corrupt"),
        (bomb(side=100, tags={278: (4, 1, 1)}), "strips or tiles instead of 100"),
        (bomb(tags={322: (4, 1, 1), 323: (4, 1, 1), 324: (4, 1, 8), 325: (4, 1, 8)}), "tiles of 1x1"),
        (b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(1 << 20), "65535 tags"),
        (b"II*\0" + struct.pack("<I", 1 << 30), "truncated"),
        (b"II*\0\x08", "truncated"),
    ],
)
def test_a_forged_tiff_is_refused_at_once(data, reason, tmp_path):
    begun = time.process_time()
    with pytest.raises(ImageError, match=rf"odd\.tif: .*{reason}"):
        decode_image(data, "odd.tif")
    assert time.process_time() - begun < 0.5


def test_only_the_first_of_many_pages_is_looked_at(tmp_path):
    tags = {256: (4, 1, 4), 257: (4, 1, 4), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {278: (4, 1, 4), 273: (4, 1, 8), 279: (4, 1, 16)}
    data = small_tiff(tags, pages=9300)
    assert len(data) > 1 << 20
    (tmp_path / "many.tif").write_bytes(data)
    begun = time.process_time()
    assert read_size(tmp_path / "many.tif") == (4, 4)
    np.testing.assert_array_equal(decode_image(data, "x")[..., 0].ravel(), np.frombuffer(data[8:24], np.uint8))
    assert time.process_time() - begun < 0.5


def test_strips_that_share_bytes_are_refused():
    data = bytearray(tiff(np.zeros((64, 64), np.uint8), rowsperstrip=1))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag, lengths = file.pages[0].tags[273], file.pages[0].tags[279]
        first = file.pages[0].dataoffsets[0]
        width = {3: 2, 4: 4}[tag.dtype]
        assert lengths.count == 64
    data[tag.valueoffset : tag.valueoffset + 64 * width] = first.to_bytes(width, "little") * 64
    wide = {3: "H", 4: "I"}[lengths.dtype]
    packed = struct.pack(f"<64{wide}", *[4096] * 64)
    data[lengths.valueoffset : lengths.valueoffset + len(packed)] = packed
    with pytest.raises(ImageError, match="share bytes"):
        decode_image(bytes(data), "x")


def test_the_decoder_s_own_error_becomes_an_image_error(monkeypatch):
    def full(*_):
        cv2.resize(np.zeros((2, 2, 3), np.uint8), (1 << 20, 1 << 20))

    monkeypatch.setattr(cv2, "imdecode", full)
    with pytest.raises(ImageError, match=r"a\.png: cannot be decoded \(Insufficient memory: Failed to allocate"):
        decode_image(saved(PICTURE, "PNG"), "a.png")


def test_a_png_of_too_many_pixels_is_named_before_it_is_decoded():
    head = struct.pack(">IIBBBBB", 40000, 40000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    data = b"\x89PNG\r\n\x1a\n" + chunk + saved(PICTURE, "PNG")[33:]
    with pytest.raises(ImageError, match=r"huge\.png: .*too large.*40000x40000"):
        decode_image(data, "huge.png")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_truncated_file_of_any_kind_is_named(kind, share):
    data = saved(PICTURE, kind)
    with pytest.raises(ImageError, match=r"half\.img"):
        decode_image(data[: int(share * len(data))], "half.img")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_a_damaged_byte_never_ends_in_another_error(kind):
    data = saved(PICTURE, kind)
    rng = np.random.default_rng(0)
    messages = []
    for at in [*range(min(len(data), 120)), *rng.integers(0, len(data), 200), *range(len(data) - 200, len(data))]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            decode_image(bytes(damaged), "x")
            size_of(bytes(damaged), "x")
        except ImageError as error:
            messages.append(str(error))
    assert messages
    assert all(message.startswith("x: ") for message in messages)


def test_labels_of_a_palette_tiff_are_numbers_and_turn_with_the_image(tmp_path):
    labels = Image.fromarray((RGB[..., 0] % 7).astype(np.uint8), "P")
    labels.putpalette(list(range(255, -1, -1)) * 3)
    labels.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), np.asarray(labels))
    exif = Image.Exif()
    exif[0x0112] = 6
    labels.save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png"), np.rot90(np.asarray(labels), -1))
    (tmp_path / "c.tif").write_bytes(tiff(RGB[..., 0], photometric="miniswhite"))
    with pytest.raises(ImageError, match="0 is white"):
        read_labels(tmp_path / "c.tif")
