"""The training and test sets of the field: which files they consist of and how the published recipes cut them.

A builder finds the files of one phase of a set in the user's download and returns the parts to prepare, with a list of
differences from the published set. Counts, names and crops are those of the official programs:
NAFNet and HINet (scripts/data_preparation/{sidd,gopro,rain13k}.py, basicsr/utils/create_lmdb.py, option files),
Restormer ({Motion_Deblurring,Defocus_Deblurring,Denoising}/generate_patches_*.py, download_data.py, option files),
BasicSR (scripts/data_preparation/extract_subimages.py, docs/DatasetPreparation.md).
The LMDB folders have the names that those option files use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sam4ir.data.paired import pair_keys
from sam4ir.data.prepare.parts import Item, Part, Phase, RecipeChoice, Store
from sam4ir.data.prepare.tree import File, Tree, image_pattern, mat_block_count
from sam4ir.data.sources import FolderSource, listed
from sam4ir.data.windows import Crop
from sam4ir.errors import UserError

Builder = Callable[[Tree, RecipeChoice], list[Part]]

PAIR = (Store("target", "dataroot_gt"), Store("input", "dataroot_lq"))

# SIDD-Medium holds the scene instances 1 to 200 without these: the validation and benchmark blocks come from them
_SIDD_HELD_BACK = (
    *(9, 21, 24, 26, 31, 37, 41, 46, 49, 53, 56, 58, 61, 67, 71, 74, 79, 82, 85, 93),
    *(95, 100, 103, 109, 112, 119, 124, 128, 131, 141, 143, 148, 153, 158, 162, 171, 174, 176, 183, 187),
)
_GOPRO_SEQUENCES = {
    "train": (
        *("0372_07_00", "0372_07_01", "0374_11_00", "0374_11_01", "0374_11_02", "0374_11_03", "0378_13_00"),
        *("0379_11_00", "0380_11_00", "0384_11_01", "0384_11_02", "0384_11_03", "0384_11_04", "0385_11_00"),
        *("0386_11_00", "0477_11_00", "0857_11_00", "0868_11_01", "0868_11_02", "0871_11_01", "0881_11_00"),
        "0884_11_00",
    ),
    "test": (
        *("0384_11_00", "0384_11_05", "0385_11_01", "0396_11_00", "0410_11_00", "0854_11_00", "0862_11_00"),
        *("0868_11_00", "0869_11_00", "0871_11_00", "0881_11_01"),
    ),
}
_RAIN_TESTS = {"Test100": 98, "Rain100H": 100, "Rain100L": 100, "Test2800": 2800, "Test1200": 1200}
_DPDD_COUNTS = {"train": 350, "val": 74, "test": 76}


def sidd_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """SIDD-Medium sRGB: 160 scene instances, 320 pairs; 512 crops at steps of 384 (NAFNet, HINet; Restormer the same).

    Data/0001_001_S6_00100_00060_3200_L/0001_{GT,NOISY}_SRGB_{010,011}.PNG -> key 0001_SRGB_010, as NAFNet names it.
    """
    pattern = r"\d{4}_\d{3}_[^/]+/(?P<scene>\d{4})_(?P<role>GT|NOISY)_SRGB_(?P<frame>\d{3})\.png"
    files = _gather(tree, pattern, lambda m: f"{m['scene']}_SRGB_{m['frame']}")
    items, problems = _join("SIDD train", files, ("gt", "noisy"))
    names: list[str] = []
    for scene in sorted(set(range(1, 201)) - set(_SIDD_HELD_BACK)):
        names += [f"{scene:04d}_SRGB_010", f"{scene:04d}_SRGB_011"]
    stores = (Store("gt_crops", "dataroot_gt"), Store("input_crops", "dataroot_lq"))
    crop = choice.crop(Crop(512, 384))
    problems += _differences(items, 320, "SIDD train", names)
    return [Part("train", "train", stores, items, crop, problems)]


def sidd_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """SIDD's validation blocks: 40 scenes of 32 blocks of 256x256 in two .mat files, 1280 pairs.

    Keys ValidationBlocksSrgb_0000 ... in the files' order (NAFNet's names, with zeros so that they sort).
    """
    matches = tree.find(r"Validation(?P<role>Gt|Noisy)BlocksSrgb\.mat")
    files = {match["role"].lower(): file for match, file in matches}
    counts = {role: mat_block_count(file, (256, 256, 3)) for role, file in files.items()}
    problems = []
    for role in ("Gt", "Noisy"):
        if role.lower() not in files:
            problems.append(f"SIDD val: lacks Validation{role}BlocksSrgb.mat")
    for role, count in counts.items():
        if count != 1280:
            problems.append(f"{files[role]}: {count} blocks, the published file has 1280")
    items = []
    for i in range(min(counts.values()) if len(counts) == 2 else 0):
        pair = (replace(files["gt"], block=i), replace(files["noisy"], block=i))
        items.append(Item(f"ValidationBlocksSrgb_{i:04d}", pair))
    stores = (Store("gt_crops", "dataroot_gt"), Store("input_crops", "dataroot_lq"))
    return [Part("val", "val", stores, tuple(items), None, tuple(problems))]


def gopro_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """GoPro: 2103 pairs in 22 sequences; 512 crops at steps of 256 (NAFNet, HINet, Restormer: patch 512, overlap 256).

    train/GOPR0372_07_00/{blur,sharp}/000047.png (GOPRO_Large), or train/{input,target}/GOPR0372_07_00-000047.png
    (NAFNet, HINet, Restormer) -> key GOPR0372_07_00-000047 for both.
    """
    items, problems = _gopro(tree, choice, "train", r"(?:train|Downloads/GoPro)", 2103)
    stores = (Store("sharp_crops", "dataroot_gt"), Store("blur_crops", "dataroot_lq"))
    return [Part("train", "train", stores, items, choice.crop(Crop(512, 256)), problems)]


def gopro_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """256x256 from the middle of GoPro's test images: the validation set of Restormer's training."""
    items, problems = _gopro(tree, choice, "test", r"test(?:/GoPro)?", 1111)
    stores = (Store("target_crops", "dataroot_gt"), Store("input_crops", "dataroot_lq"))
    return [Part("val", "val", stores, items, Crop(256, 256, centre=True), problems)]


def gopro_test(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """GoPro's test set: 1111 pairs in 11 sequences, whole."""
    items, problems = _gopro(tree, choice, "test", r"test(?:/GoPro)?", 1111)
    return [Part("test", "test", PAIR, items, None, problems)]


def _gopro(
    tree: Tree, choice: RecipeChoice, split: Literal["train", "test"], root: str, count: int
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Return the pairs of GoPro below the folders that `root` matches, and how they differ from the published set."""
    label = f"GoPro {split}"
    sequences = rf"{root}/(?P<sequence>GOPR[^/]+)/(?P<role>{choice.blur}|sharp)/{image_pattern()}"
    files = _gather(tree, sequences, lambda m: f"{m['sequence']}-{m['key']}")
    files = _gather(tree, rf"{root}/(?P<role>input|target)/{image_pattern()}", lambda m: m["key"], files)
    roles = {
        "gt": files.get("sharp", {}) | files.get("target", {}),
        "lq": files.get(choice.blur, {}) | files.get("input", {}),
    }
    items, problems = _join(label, roles, ("gt", "lq"))
    published = {f"GOPR{name}" for name in _GOPRO_SEQUENCES[split]}
    present = {item.key.rpartition("-")[0] for item in items} - {""}  # '': the key names no sequence
    if present and published - present:
        problems += (f"{label}: lacks the sequences {', '.join(sorted(published - present))}",)
    if present - published:
        problems += (f"{label}: has sequences of another set: {', '.join(sorted(present - published))}",)
    return items, problems + _differences(items, count, label)


def rain13k_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """Rain13k: 13712 pairs of many sizes, whole (HINet reads them from an LMDB, Restormer from files).

    train/{input,target}/ (HINet) or train/Rain13K/{input,target}/ (Restormer).
    """
    files = _gather(tree, rf"train/(?:Rain13K/)?(?P<role>input|target)/{image_pattern()}", lambda m: m["key"])
    items, problems = _join("Rain13k train", files, ("target", "input"))
    problems += _differences(items, 13712, "Rain13k train")
    return [Part("train", "train", PAIR, items, choice.crop(None), problems)]


def rain13k_test(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """The deraining test sets Test100 (98 pairs), Rain100H, Rain100L, Test2800 and Test1200, whole."""
    parts = []
    for name, count in _RAIN_TESTS.items():
        files = _gather(tree, rf"{name}/(?P<role>input|target)/{image_pattern()}", lambda m: m["key"])
        items, problems = _join(name, files, ("target", "input"))
        problems += _differences(items, count, name)
        parts.append(Part("test", f"test/{name}", PAIR, items, None, problems))
    return parts


def dfwb_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K, Flickr2K, WED and BSD400 for Gaussian denoising, GT only (Restormer): 800, 2650, 4744 and 400 images.

    Images with both sides over 800 are cut into patches of 512 with an overlap of 96, so at steps of 416; others stay
    whole. The folders have the names of Restormer's downloads (DIV2K, Flickr2K, WaterlooED, BSD400) or the sets' own.
    """
    sets = {
        "DIV2K": (rf"(?:DIV2K|DIV2K_train_HR)/{image_pattern()}", 800, _numbered_names(800, 4)),
        "Flickr2K": (rf"(?:Flickr2K|Flickr2K_HR)/{image_pattern()}", 2650, _numbered_names(2650, 6)),
        "WaterlooED": (rf"(?:WaterlooED|WED|pristine_images)/{image_pattern()}", 4744, _numbered_names(4744, 5)),
        "BSD400": (rf"BSDS?400/{image_pattern()}", 400, []),
    }
    items: list[Item] = []
    problems: tuple[str, ...] = ()
    for name, (pattern, count, names) in sets.items():
        files = _files_by_key(tree, pattern)
        problems += _key_differences(files.keys(), count, f"DFWB {name}", names)
        for key, file in files.items():
            items.append(Item(f"{name}-{key}", (file,)))
    stores = (Store("gt_crops", "dataroot_gt"),)
    crop = choice.crop(Crop(512, 416, whole_up_to=800))
    return [Part("train", "train", stores, _sorted(items), crop, problems)]


def df2k_train(tree: Tree, choice: RecipeChoice, sets: Sequence[str] = ("DIV2K", "Flickr2K")) -> list[Part]:
    """DIV2K (800) and Flickr2K (2650) for super-resolution: 480 crops at steps of 240 of HR, LR alike (BasicSR).

    {DIV2K_train,Flickr2K}_HR/0001.png, {DIV2K_train,Flickr2K}_LR_bicubic/X4/0001x4.png. The window of an LR sub-image
    is that of the HR sub-image divided by the scale: BasicSR's 240/120, 160/80 and 120/60 for x2, x3, x4.
    """
    published = {
        "DIV2K": ("DIV2K_train_HR", "DIV2K_train_LR_bicubic", 4, 800),
        "Flickr2K": ("Flickr2K_HR", "Flickr2K_LR_bicubic", 6, 2650),
    }
    items: list[Item] = []
    problems: tuple[str, ...] = ()
    for name in sets:
        hr, lr, digits, count = published[name]
        set_items, set_problems = _super_resolution(tree, name, hr, lr, digits, choice)
        items += set_items
        problems += set_problems + _differences(set_items, count, name, _numbered_names(count, digits))
    crop = choice.crop(Crop(480, 240))
    stores = _scaled_stores(choice, "_sub" if crop else "")
    return [Part("train", "train", stores, _sorted(items), crop, problems)]


def df2k_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K's validation set, 0801 to 0900, whole."""
    items, problems = _super_resolution(tree, "DIV2K val", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic", 4, choice)
    problems += _differences(items, 100, "DIV2K val", [f"{n:04d}" for n in range(801, 901)])
    return [Part("val", "val", _scaled_stores(choice, ""), items, None, problems)]


def div2k_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K alone for super-resolution, as in BasicSR's classical recipes: 480 crops at steps of 240 of HR."""
    return df2k_train(tree, choice, ("DIV2K",))


def _super_resolution(
    tree: Tree, label: str, hr: str, lr: str, digits: int, choice: RecipeChoice
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Return the HR images of the folder `hr` with their LR images below `lr`, and a sentence about those without."""
    files = {"hr": _files_by_key(tree, rf"{hr}/(?P<key>\d{{{digits}}})\.(?:png|jpg|bmp)")}
    if not choice.make_lq:
        for scale in choice.scales:
            pattern = rf"{lr}/X{scale}/(?P<key>\d{{{digits}}})x{scale}\.(?:png|jpg|bmp)"
            files[f"x{scale}"] = _files_by_key(tree, pattern)
    return _join(label, files, tuple(files))


def _scaled_stores(choice: RecipeChoice, ending: str) -> tuple[Store, ...]:
    """Return the store of the HR images and one for the LR images of each scale."""
    lr = (Store(f"X{scale}{ending}", "dataroot_lq", scale, choice.make_lq) for scale in choice.scales)
    return (Store(f"HR{ending}", "dataroot_gt"), *lr)


def _dpdd(split: Phase) -> Builder:
    def build(tree: Tree, choice: RecipeChoice) -> list[Part]:
        """DPDD, dual-pixel defocus deblurring, 16 bits: left, right and combined view and target of 350, 74, 76 scenes.

        train/{inputL,inputR,inputC,target}/ (Restormer's release). As there, the files of a scene are matched by their
        order, since their names differ; the combined view gives the key. Training: 512 crops at steps of 204, without
        the least sharp 30 % of each image. Validation: 256x256 from the middle. Test: whole.
        """
        items = _dpdd_items(tree, split)
        crop = {
            "train": choice.crop(Crop(512, 204, blunt=0.3)),
            "val": Crop(256, 256, centre=True),
            "test": None,
        }[split]
        ending = "_crops" if crop else ""
        stores = tuple(Store(view + ending, option) for view, option in _DPDD_VIEWS.items())
        return [Part(split, split, stores, items, crop, _differences(items, _DPDD_COUNTS[split], f"DPDD {split}"))]

    return build


_DPDD_VIEWS = {
    "target": "dataroot_gt",
    "inputC": "dataroot_lq",
    "inputL": "dataroot_lqL",
    "inputR": "dataroot_lqR",
}


def _dpdd_items(tree: Tree, split: Phase) -> tuple[Item, ...]:
    """Return the scenes of DPDD, each with its files in the order of _DPDD_VIEWS, under the combined view's name."""
    pattern = rf"{split}/(?:DPDD/)?(?P<role>inputL|inputR|inputC|target)/{image_pattern()}"
    files = _gather(tree, pattern, lambda m: m["key"])
    views: dict[str, list[tuple[str, File]]] = {}
    for view in _DPDD_VIEWS:
        views[view] = sorted(files.get(view.lower(), {}).items(), key=lambda entry: _natural_order(entry[0]))
    counts = {view: len(entries) for view, entries in views.items()}
    if len(set(counts.values())) != 1:
        raise UserError(f"DPDD {split}: the views have different numbers of images, {counts}; download the set again")
    items = []
    for (_, target), (key, combined), (_, left), (_, right) in zip(*views.values(), strict=True):
        items.append(Item(key, (target, combined, left, right)))
    return _sorted(items)


RECIPES: dict[str, dict[Phase, Builder]] = {
    "sidd": {"train": sidd_train, "val": sidd_val},
    "gopro": {"train": gopro_train, "val": gopro_val, "test": gopro_test},
    "rain13k": {"train": rain13k_train, "test": rain13k_test},
    "dfwb": {"train": dfwb_train},
    "df2k": {"train": df2k_train, "val": df2k_val},
    "div2k": {"train": div2k_train, "val": df2k_val},
    "dpdd": {"train": _dpdd("train"), "val": _dpdd("val"), "test": _dpdd("test")},
}


def folder_part(gt: Path, lq: Path | None, filename_tmpl: str, scale: int, choice: RecipeChoice) -> Part:
    """Return a part of the user's own images: pairs matched by name, GT alone, or GT with LQ shrunk from it.

    lq: None for GT alone or with choice.make_lq. filename_tmpl: the LQ name of a GT name. scale: GT size over LQ size.
    The keys are the GT's. Raises UserError where choice.make_lq comes with lq or without a scale of at least 2, and
    where names have no partner; that message proposes a filename_tmpl (paired.pair_keys).
    """
    source = FolderSource(gt)
    if not source.keys:
        raise UserError(f"--gt: {gt} holds no images")
    crop = choice.crop(None)
    if choice.make_lq and (lq is not None or scale < 2):
        raise UserError("--make-lq shrinks GT: it goes with --scale 2 or more, and without --lq")
    if lq is None:
        items = _sorted(Item(key, (File(source.where(key)),)) for key in source.keys)
        stores = [Store("gt", "dataroot_gt")]
        if choice.make_lq:
            stores.append(Store(f"lq_x{scale}", "dataroot_lq", scale, shrunk=True))
        return Part("train", "", tuple(stores), items, crop)
    lq_source = FolderSource(lq)
    partners = pair_keys(source, lq_source, source.keys, filename_tmpl, option="--lq")
    pairs = []
    for key, partner in zip(source.keys, partners, strict=True):
        pairs.append(Item(key, (File(source.where(key)), File(lq_source.where(partner)))))
    return Part("train", "", (Store("gt", "dataroot_gt"), Store("lq", "dataroot_lq", scale)), _sorted(pairs), crop)


FilesByRole = dict[str, dict[str, File]]  # role -> key -> file


def _gather(
    tree: Tree, pattern: str, key_of: Callable[[re.Match[str]], str], files: FilesByRole | None = None
) -> FilesByRole:
    """Add the files whose paths match the pattern to `files` (None: to an empty mapping) and return it.

    The pattern's group `role` names the role, in any case; key_of derives the key from a match. Raises UserError naming
    both files where two have one role and key.
    """
    files = {} if files is None else files
    for match, file in tree.find(pattern):
        role_files = files.setdefault(match["role"].lower(), {})
        key = key_of(match)
        if key in role_files:
            raise UserError(f"{role_files[key]} and {file} are both {key!r}; keep one of them below --input")
        role_files[key] = file
    return files


def _files_by_key(tree: Tree, pattern: str) -> dict[str, File]:
    """Return the files whose paths match the pattern, by its group `key`."""
    return _gather(tree, rf"(?P<role>){pattern}", lambda m: m["key"]).get("", {})


def _join(
    label: str, files: Mapping[str, dict[str, File]], roles: Sequence[str]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Return the items that have a file in every role, sorted by key, and a sentence for each role that lacks files."""
    role_files = [files.get(role, {}) for role in roles]
    keys = sorted(set().union(*role_files))
    problems = []
    for role, present in zip(roles, role_files, strict=True):
        lacking = [key for key in keys if key not in present]
        if lacking:
            problems.append(f"{label}: without a file among {role}: {listed(lacking)}")
    items = []
    for key in keys:
        if all(key in present for present in role_files):
            items.append(Item(key, tuple(present[key] for present in role_files)))
    return tuple(items), tuple(problems)


def _differences(items: Iterable[Item], count: int, label: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return how the items differ from the published set, in sentences. names: its keys, empty where not published."""
    return _key_differences({item.key for item in items}, count, label, names)


def _key_differences(keys: Set[str], count: int, label: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return how the keys differ from those of the published set, in sentences."""
    problems = []
    if names and keys and set(names) - keys:
        problems.append(f"{label}: lacks {listed(set(names) - keys)}")
    if names and keys - set(names):
        problems.append(f"{label}: not of the published set: {listed(keys - set(names))}")
    if not problems and len(keys) != count:
        problems.append(f"{label}: {len(keys)} found, the published set has {count}")
    return tuple(problems)


def _numbered_names(count: int, digits: int) -> list[str]:
    """Return the numbers 1 to `count` as names of so many digits."""
    return [f"{n:0{digits}d}" for n in range(1, count + 1)]


def _sorted(items: Iterable[Item]) -> tuple[Item, ...]:
    """Return the items sorted by key."""
    return tuple(sorted(items, key=lambda item: item.key))


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which img2 comes before img10."""
    parts = []
    for part in re.split(r"(\d+)", name):
        parts.append((int(part), "") if part.isdecimal() else (0, part))
    return parts
