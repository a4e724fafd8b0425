import contextlib
import multiprocessing
import pickle

import lmdb
import numpy as np
import pytest

from sam4ir.data.lmdb_io import LmdbReader, LmdbWriter, key_of
from sam4ir.data.sources import FolderSource, LmdbSource, open_source, read, select_keys
from sam4ir.utils.image import ImageError, encode_png, write_image

IMAGES = {
    name: np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
    for i, name in enumerate(["b", "a 1", "sub/img_1.5", "sub/z"])
}


def make_lmdb(path, **arguments):
    with LmdbWriter(path, **arguments) as writer:
        for key, image in IMAGES.items():
            writer.put(key, image)
    return path


def make_folder(path):
    for key, image in IMAGES.items():
        write_image(path / f"{key}.png", image)
    return path


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_folder_and_lmdb_hold_the_same_keys_and_pixels(tmp_path, encoding):
    folder = open_source(make_folder(tmp_path / "images"), None, "dataroot_gt")
    store = open_source(make_lmdb(tmp_path / "images.lmdb", encoding=encoding), {"type": "lmdb"}, "dataroot_gt")
    assert folder.keys == store.keys == sorted(IMAGES)
    for key, image in IMAGES.items():
        np.testing.assert_array_equal(read(folder, key), image)
        np.testing.assert_array_equal(read(store, key), image)


def test_lmdb_of_basicsr_is_read_as_it_is(tmp_path):
    """Layout as BasicSR 8d56e3a writes it: keys without suffix, PNG bytes, `name.png (h,w,c) level`; one grey image."""
    path = tmp_path / "tiny.lmdb"
    grey = IMAGES["b"][:, :, :1]
    with lmdb.open(str(path), map_size=1 << 22) as env, env.begin(write=True) as transaction:
        transaction.put(b"c_gray", encode_png(grey))
        transaction.put(b"a_0001", encode_png(IMAGES["b"]))
    (path / "meta_info.txt").write_text("c_gray.png (20,30,1) 1\na_0001.png (20,30,3) 1\n")
    source = LmdbSource(path)
    assert source.keys == ["a_0001", "c_gray"]
    np.testing.assert_array_equal(read(source, "a_0001"), IMAGES["b"])
    np.testing.assert_array_equal(read(source, "c_gray"), grey.repeat(3, axis=2))


def test_our_png_lmdb_lists_its_images_as_basicsr_does(tmp_path):
    path = make_lmdb(tmp_path / "a.lmdb", encoding="png")
    assert "sub/z.png (23,30,3) 1" in (path / "meta_info.txt").read_text().splitlines()
    with LmdbReader(path).value("b") as value:
        assert bytes(value) == encode_png(IMAGES["b"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_raw_records_keep_depth_and_replicate_grey(tmp_path, dtype, channels):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 9, channels), dtype=dtype)
    with LmdbWriter(tmp_path / "a.lmdb") as writer:
        writer.put("x", image)
    source = LmdbSource(tmp_path / "a.lmdb")
    assert read(source, "x").dtype == dtype
    np.testing.assert_array_equal(read(source, "x"), np.broadcast_to(image, (7, 9, 3)))
    with source.open("x") as mapped, pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0


def test_the_map_grows_when_it_is_full(tmp_path):
    make_lmdb(tmp_path / "a.lmdb", map_size=1 << 15)
    source = LmdbSource(tmp_path / "a.lmdb")
    for key, image in IMAGES.items():
        np.testing.assert_array_equal(read(source, key), image)


def test_an_interrupted_store_never_gets_its_name(tmp_path):
    path = tmp_path / "a.lmdb"
    with contextlib.suppress(KeyboardInterrupt), LmdbWriter(path) as writer:
        writer.put("x", IMAGES["b"])
        raise KeyboardInterrupt
    assert not path.exists()
    make_lmdb(path)
    (path / "meta_info.txt").unlink()
    with pytest.raises(ValueError, match=r"a\.lmdb: meta_info\.txt.*make it again"):
        LmdbSource(path)
    with pytest.raises(ValueError, match="exists"):
        LmdbWriter(path)


def test_two_images_of_one_name_are_an_error(tmp_path):
    with LmdbWriter(tmp_path / "a.lmdb") as writer:
        writer.put("x", IMAGES["b"])
        with pytest.raises(ValueError, match="'x' is stored already"):
            writer.put("x", IMAGES["b"])
    make_folder(tmp_path / "images")
    write_image(tmp_path / "images" / "b.jpg", IMAGES["b"])
    with pytest.raises(ValueError, match=r"b\.jpg and b\.png"):
        FolderSource(tmp_path / "images")


@pytest.mark.parametrize("size", [0, 100, 8192, 20000])
def test_a_truncated_data_file_is_an_error_and_not_a_crash(tmp_path, size):
    path = make_lmdb(tmp_path / "a.lmdb")
    data = path / "data.mdb"
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.lmdb"):
        read(LmdbSource(path), "b")
    data.unlink()
    with pytest.raises(ValueError, match=r"a\.lmdb: no LMDB folder"):
        read(LmdbSource(path), "b")


def test_a_listed_but_absent_or_damaged_value_names_store_and_key(tmp_path):
    path = tmp_path / "a.lmdb"
    with LmdbWriter(path, encoding="png") as writer:
        writer.put("half", IMAGES["b"])
    with lmdb.open(str(path)) as env, env.begin(write=True) as transaction:
        transaction.put(b"half", encode_png(IMAGES["b"])[:-30])
    (path / "meta_info.txt").write_text("half.png (20,30,3) 1\ngone.png (20,30,3) 1\n")
    with pytest.raises(ImageError, match=r"a\.lmdb\[half\].*truncated"):
        read(LmdbSource(path), "half")
    with pytest.raises(ValueError, match=r"a\.lmdb.*'gone'"):
        read(LmdbSource(path), "gone")


def _mean(source, key):
    return float(read(source, key).mean())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_in_use_goes_over_fork_and_spawn(tmp_path, method):
    path = make_lmdb(tmp_path / "a.lmdb")
    source, twin = LmdbSource(path), LmdbSource(path)
    read(source, "b"), read(twin, "b")  # both open before the fork, in one process
    with multiprocessing.get_context(method).Pool(1) as pool:
        means = pool.starmap(_mean, [(s, key) for key in IMAGES for s in (source, twin)])
    assert means == [IMAGES[key].mean() for key in IMAGES for _ in range(2)]
    assert _mean(pickle.loads(pickle.dumps(source)), "b") == IMAGES["b"].mean()


def test_meta_info_file_selects_and_names_what_is_missing(tmp_path):
    source = FolderSource(make_folder(tmp_path / "images"))
    meta = tmp_path / "meta.txt"
    meta.write_text("sub/z.png (23,30,3)\n\nb.png\na 1.png (21,30,3) 1\n")
    assert select_keys(source, meta) == ["a 1", "b", "sub/z"]
    meta.write_text("b.png (20,30,3)\nnope.png (20,30,3)\n")
    with pytest.raises(ValueError, match=r"meta\.txt names 1 image: nope that"):
        select_keys(source, meta)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_another_system_has_the_same_names(tmp_path, encoding, end):
    source = FolderSource(make_folder(tmp_path / "images"))
    text = f"# chosen by hand{end}b.png (20,30,3) 1{end}{end}a 1.png (21,30,3){end}# end{end}"
    (tmp_path / "meta.txt").write_bytes(text.encode(encoding))
    assert select_keys(source, tmp_path / "meta.txt") == ["a 1", "b"]


def test_an_image_whose_name_begins_with_a_number_sign_is_no_comment(tmp_path):
    write_image(tmp_path / "images/#1.png", IMAGES["b"])
    write_image(tmp_path / "images/b.png", IMAGES["b"])
    (tmp_path / "meta.txt").write_text("#1.png (20,30,3)\n# 2 images\n")
    assert select_keys(FolderSource(tmp_path / "images"), tmp_path / "meta.txt") == ["#1"]


@pytest.mark.parametrize("name", ["图像", "图一"])  # the second happens to be UTF-8 for two other letters
def test_a_list_in_gbk_is_refused_and_its_encoding_named(tmp_path, name):
    source = FolderSource(make_folder(tmp_path / "images"))
    (tmp_path / "meta.txt").write_bytes(f"b.png (20,30,3)\n{name}.png (20,30,3)\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"meta\.txt.*UTF-8"):
        select_keys(source, tmp_path / "meta.txt")


def test_the_list_of_an_lmdb_may_have_a_byte_order_mark_and_comments(tmp_path):
    path = make_lmdb(tmp_path / "a.lmdb", encoding="png")
    lines = (path / "meta_info.txt").read_text()
    (path / "meta_info.txt").write_bytes(b"\xef\xbb\xbf# four images\r\n" + lines.replace("\n", "\r\n").encode())
    assert LmdbSource(path).keys == sorted(IMAGES)


def test_backends_and_folders_that_do_not_fit_are_named(tmp_path):
    folder, store = make_folder(tmp_path / "images"), make_lmdb(tmp_path / "a.lmdb")
    (tmp_path / "empty").mkdir()
    for root, backend, word in [
        (folder, {"type": "lmdb"}, "ends in .lmdb"),
        (store, {"type": "disk"}, "ends in .lmdb"),
        (folder, {"type": "dsik"}, "did you mean 'disk'"),
        (folder, {"kind": "disk"}, "unknown key 'kind'"),
        (tmp_path / "empty", None, "dataroot_lq.*no images"),
        (tmp_path / "nowhere", None, "dataroot_lq.*no such folder"),
    ]:
        with pytest.raises(ValueError, match=word):
            open_source(root, backend, "dataroot_lq")


def test_keys_lose_image_suffixes_only():
    assert [key_of(n) for n in ("a/b.png", "x.JPG", "img_1.5", "img_1.5.tiff")] == ["a/b", "x", "img_1.5", "img_1.5"]


def test_a_damaged_page_is_an_error_that_names_folder_and_key(tmp_path):
    folder = tmp_path / "damaged.lmdb"
    with LmdbWriter(folder) as writer:
        for i in range(50):
            writer.put(f"k{i}", np.full((20, 20, 3), i, np.uint8))
    file = folder / "data.mdb"
    data = bytearray(file.read_bytes())
    for page in range(2, len(data) // 4096):  # the first two are LMDB's own; bytes 10 and 11 tell what a page is
        data[page * 4096 + 10 : page * 4096 + 12] = bytes(2)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.lmdb: key 'k3' cannot be read"), LmdbReader(folder).value("k3"):
        pass
