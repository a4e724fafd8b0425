"""Data sets, mask stores and scripts agree about the EXIF orientation of an image."""

import json

import lmdb
import numpy as np
import pytest
from PIL import Image

from sam4ir.data.masks.formats import MaskFile
from sam4ir.data.masks.importer import ReadFile
from sam4ir.data.masks.labels import LabelRules
from sam4ir.data.masks.meta import reading_orientation, write_meta
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.sources import open_source, read
from sam4ir.engine.train.views import RegionView
from sam4ir.errors import UserError
from sam4ir.utils.rng import generator

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def photo(path, orientation):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6])
def test_pairs_of_turned_and_plain_files_fit(tmp_path, orientation):
    photo(tmp_path / "gt/a.png", orientation)
    turned = np.rot90(PIXELS, {3: 2, 6: -1}[orientation])
    (tmp_path / "lq").mkdir()
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "lq/a.png")
    data = PairedImageDataset(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq"))
    assert data.examine(0)
    sample = data.get(0, generator(0))
    assert (sample.lq == sample.gt).all()
    assert data.source.size("a") == turned.shape[:2]
    stored = open_source(tmp_path / "gt", None, "x", "ignore")
    np.testing.assert_array_equal(read(stored, "a"), PIXELS)
    assert stored.size("a") == (24, 40)


def test_an_lmdb_of_files_turns_them_as_a_folder_does(tmp_path):
    photo(tmp_path / "gt/a.png", 6)
    with lmdb.open(str(tmp_path / "a.lmdb")) as store, store.begin(write=True) as transaction:
        transaction.put(b"a", (tmp_path / "gt/a.png").read_bytes())
    (tmp_path / "a.lmdb/meta_info.txt").write_text("a.png (40,24,3) 1\n")
    source = open_source(tmp_path / "a.lmdb", None, "x")
    assert source.size("a") == (40, 24)
    assert source.orientation("a") == 6
    np.testing.assert_array_equal(read(source, "a"), np.rot90(PIXELS, -1))


def with_masks(tmp_path, exif_orientation):
    with MaskStoreWriter(tmp_path / "m.lmdb", {"generator": "x", "exif_orientation": "apply"}) as writer:
        for key in ("plain", "turned"):
            writer.put(key, [{"segmentation": np.ones((24, 40), bool)}], (24, 40))
    meta = json.loads((tmp_path / "m.lmdb/meta.json").read_text())
    del meta["exif_orientation"]  # as earlier versions wrote it
    if exif_orientation:
        meta["exif_orientation"] = exif_orientation
    write_meta(tmp_path / "m.lmdb", meta)
    photo(tmp_path / "gt/plain.png", 1)
    photo(tmp_path / "gt/turned.png", 3)
    return MaskStore(tmp_path / "m.lmdb")


def dataset(tmp_path, store, **settings):
    views = {"regions": RegionView()}
    return GaussianDenoisingDataset(
        dataroot_gt=str(tmp_path / "gt"), sigma_range=25, masks=store, mask_views=views, **settings
    )


def test_masks_made_before_orientation_was_applied_are_named(tmp_path):
    data = dataset(tmp_path, with_masks(tmp_path, None))
    data.get(0, generator(0))
    assert data.examine(0)
    for look in (lambda: data.examine(1), lambda: data.get(1, generator(0))):
        with pytest.raises(UserError, match=r"m\.lmdb: masks of 'turned'.*turned\.png has EXIF orientation 3"):
            look()
    dataset(tmp_path, data.masks, exif_orientation="ignore").get(1, generator(0))


def test_masks_of_turned_images_are_read_with_them(tmp_path):
    data = dataset(tmp_path, with_masks(tmp_path, "apply"))
    assert data.examine(1)
    data.get(1, generator(0))


def test_a_store_goes_on_as_it_was_begun(tmp_path):
    assert reading_orientation(tmp_path / "none.lmdb") == "apply"
    assert reading_orientation(tmp_path / "none.lmdb", ignore=True) == "ignore"
    path = with_masks(tmp_path, None).path
    assert reading_orientation(path) == "ignore"
    assert reading_orientation(path, new=True) == "apply"
    with MaskStoreWriter(path, {"generator": "x", "exif_orientation": "apply"}):
        pass
    assert MaskStore(path).exif_orientation == "ignore"


def test_imported_masks_follow_the_image_or_the_flag_is_named(tmp_path):
    photo(tmp_path / "gt/a.png", 6)
    mask = np.zeros((40, 24), np.uint8)
    mask[3:9, 2:20] = 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    reader = ReadFile("labels", LabelRules(), open_source(tmp_path / "gt", None, "x"))
    record = MaskRecord(reader(MaskFile("a", tmp_path / "a.png")).records["a"], "a")
    assert record.size == (40, 24)
    Image.fromarray(np.ascontiguousarray(mask.T)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: .*EXIF orientation.*--ignore-exif"):
        reader(MaskFile("a", tmp_path / "a.png"))
