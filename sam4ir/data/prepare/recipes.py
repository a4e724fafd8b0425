"""What the field's training sets consist of, and how its recipes cut them.

Counts, names and crops are those of the official programs:
NAFNet and HINet (scripts/data_preparation/{sidd,gopro,rain13k}.py, basicsr/utils/create_lmdb.py, option files),
Restormer ({Motion_Deblurring,Defocus_Deblurring,Denoising}/generate_patches_*.py, download_data.py, option files),
BasicSR (scripts/data_preparation/extract_subimages.py, docs/DatasetPreparation.md).
The LMDB folders bear the names that those option files give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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

# SIDD-Medium holds the scene instances 1 to 200 without these, which the validation and benchmark blocks are from
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
    found = _gather(tree, pattern, lambda m: f"{m['scene']}_SRGB_{m['frame']}")
    items, problems = _join("SIDD train", found, ("gt", "noisy"))
    scenes = [n for n in range(1, 201) if n not in _SIDD_HELD_BACK]
    names = [f"{n:04d}_SRGB_{frame}" for n in scenes for frame in ("010", "011")]
    stores = (Store("gt_crops", "dataroot_gt"), Store("input_crops", "dataroot_lq"))
    crop = choice.crop(Crop(512, 384))
    problems += _against(items, 320, "SIDD train", names)
    return [Part("train", "train", stores, items, crop, problems)]


def sidd_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """SIDD's validation blocks: 40 scenes of 32 blocks of 256x256 in two .mat files, 1280 pairs.

    Keys ValidationBlocksSrgb_0000 ... in the files' order (NAFNet's names, with zeros so that they sort).
    """
    what = "SIDD val"
    found = {m["role"].lower(): file for m, file in tree.find(r"Validation(?P<role>Gt|Noisy)BlocksSrgb\.mat")}
    counts = {role: mat_block_count(file, (256, 256, 3)) for role, file in found.items()}
    problems = [f"{what}: lacks Validation{r}BlocksSrgb.mat" for r in ("Gt", "Noisy") if r.lower() not in found]
    problems += [f"{found[role]}: {n} blocks, the published file has 1280" for role, n in counts.items() if n != 1280]
    n = min(counts.values()) if len(counts) == 2 else 0
    items = tuple(
        Item(f"ValidationBlocksSrgb_{i:04d}", tuple(replace(found[role], block=i) for role in ("gt", "noisy")))
        for i in range(n)
    )
    stores = (Store("gt_crops", "dataroot_gt"), Store("input_crops", "dataroot_lq"))
    return [Part("val", "val", stores, items, None, tuple(problems))]


def gopro_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """GoPro: 2103 pairs in 22 sequences; 512 crops at steps of 256 (NAFNet, HINet, Restormer: patch 512, overlap 256).

    train/GOPR0372_07_00/{blur,sharp}/000047.png (GOPRO_Large), or train/{input,target}/GOPR0372_07_00-000047.png
    (NAFNet, HINet, Restormer) -> key GOPR0372_07_00-000047 for both.
    """
    items, problems = _gopro(tree, choice, "train", r"(?:train|Downloads/GoPro)", 2103)
    stores = (Store("sharp_crops", "dataroot_gt"), Store("blur_crops", "dataroot_lq"))
    return [Part("train", "train", stores, items, choice.crop(Crop(512, 256)), problems)]


def gopro_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """256x256 from the middle of GoPro's test images: Restormer's validation while it trains."""
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
    what = f"GoPro {split}"
    sequences = rf"{root}/(?P<sequence>GOPR[^/]+)/(?P<role>{choice.blur}|sharp)/{image_pattern()}"
    found = _gather(tree, sequences, lambda m: f"{m['sequence']}-{m['key']}")
    found = _gather(tree, rf"{root}/(?P<role>input|target)/{image_pattern()}", lambda m: m["key"], found)
    roles = {
        "gt": found.get("sharp", {}) | found.get("target", {}),
        "lq": found.get(choice.blur, {}) | found.get("input", {}),
    }
    items, problems = _join(what, roles, ("gt", "lq"))
    here = {item.key.rpartition("-")[0] for item in items}
    known = {f"GOPR{name}" for name in _GOPRO_SEQUENCES[split]}
    if here - {""} and known - here:
        problems += (f"{what}: lacks the sequences {', '.join(sorted(known - here))}",)
    if here - known - {""}:
        problems += (f"{what}: has sequences of another set: {', '.join(sorted(here - known - {''}))}",)
    return items, problems + _against(items, count, what)


def rain13k_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """Rain13k: 13712 pairs of many sizes, whole (HINet reads them from an LMDB, Restormer from files).

    train/{input,target}/ (HINet) or train/Rain13K/{input,target}/ (Restormer).
    """
    found = _gather(tree, rf"train/(?:Rain13K/)?(?P<role>input|target)/{image_pattern()}", lambda m: m["key"])
    items, problems = _join("Rain13k train", found, ("target", "input"))
    crop, problems = choice.crop(None), problems + _against(items, 13712, "Rain13k train")
    return [Part("train", "train", PAIR, items, crop, problems)]


def rain13k_test(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """The deraining test sets Test100 (98 pairs), Rain100H, Rain100L, Test2800 and Test1200, whole."""
    parts = []
    for name, count in _RAIN_TESTS.items():
        found = _gather(tree, rf"{name}/(?P<role>input|target)/{image_pattern()}", lambda m: m["key"])
        items, problems = _join(name, found, ("target", "input"))
        parts.append(Part("test", f"test/{name}", PAIR, items, None, problems + _against(items, count, name)))
    return parts


def dfwb_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K, Flickr2K, WED and BSD400 for Gaussian denoising, GT only (Restormer): 800, 2650, 4744 and 400 images.

    512 patches with an overlap of 96, so at steps of 416, of images whose sides are both over 800; others stay whole.
    Folders as Restormer's downloads (DIV2K, Flickr2K, WaterlooED, BSD400) or the sets' own.
    """
    sets = {
        "DIV2K": (rf"(?:DIV2K|DIV2K_train_HR)/{image_pattern()}", 800, _numbers(800, 4)),
        "Flickr2K": (rf"(?:Flickr2K|Flickr2K_HR)/{image_pattern()}", 2650, _numbers(2650, 6)),
        "WaterlooED": (rf"(?:WaterlooED|WED|pristine_images)/{image_pattern()}", 4744, _numbers(4744, 5)),
        "BSD400": (rf"BSDS?400/{image_pattern()}", 400, []),
    }
    everything: list[Item] = []
    problems: tuple[str, ...] = ()
    for name, (pattern, count, names) in sets.items():
        found = _gather(tree, rf"(?P<role>){pattern}", lambda m: m["key"])
        items, _ = _join(name, found, ("",))
        problems += _against(items, count, f"DFWB {name}", names)
        everything += [replace(item, key=f"{name}-{item.key}") for item in items]
    stores = (Store("gt_crops", "dataroot_gt"),)
    crop = choice.crop(Crop(512, 416, whole_up_to=800))
    return [Part("train", "train", stores, _sorted(everything), crop, problems)]


def df2k_train(tree: Tree, choice: RecipeChoice, sets: Sequence[str] = ("DIV2K", "Flickr2K")) -> list[Part]:
    """DIV2K (800) and Flickr2K (2650) for super-resolution: 480 crops at steps of 240 of HR, LR alike (BasicSR).

    {DIV2K_train,Flickr2K}_HR/0001.png, {DIV2K_train,Flickr2K}_LR_bicubic/X4/0001x4.png. An LR sub-image is the HR one's
    part divided by the scale: BasicSR's 240/120, 160/80 and 120/60 for x2, x3, x4.
    """
    known = {
        "DIV2K": ("DIV2K_train_HR", "DIV2K_train_LR_bicubic", 4, 800),
        "Flickr2K": ("Flickr2K_HR", "Flickr2K_LR_bicubic", 6, 2650),
    }
    everything: list[Item] = []
    problems: tuple[str, ...] = ()
    for name in sets:
        hr, lr, digits, count = known[name]
        items, odd = _super_resolution(tree, name, hr, lr, digits, choice)
        everything += items
        problems += odd + _against(items, count, name, _numbers(count, digits))
    crop = choice.crop(Crop(480, 240))
    stores = _scaled_stores(choice, "_sub" if crop else "")
    return [Part("train", "train", stores, _sorted(everything), crop, problems)]


def df2k_val(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K's validation set, 0801 to 0900, whole."""
    items, problems = _super_resolution(tree, "DIV2K val", "DIV2K_valid_HR", "DIV2K_valid_LR_bicubic", 4, choice)
    problems += _against(items, 100, "DIV2K val", [f"{n:04d}" for n in range(801, 901)])
    return [Part("val", "val", _scaled_stores(choice, ""), items, None, problems)]


def div2k_train(tree: Tree, choice: RecipeChoice) -> list[Part]:
    """DIV2K alone, as BasicSR's classical recipes."""
    return df2k_train(tree, choice, ("DIV2K",))


def _super_resolution(
    tree: Tree, what: str, hr: str, lr: str, digits: int, choice: RecipeChoice
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    found = {"hr": _one(tree, rf"{hr}/(?P<key>\d{{{digits}}})\.(?:png|jpg|bmp)")}
    for scale in () if choice.make_lq else choice.scales:
        found[f"x{scale}"] = _one(tree, rf"{lr}/X{scale}/(?P<key>\d{{{digits}}})x{scale}\.(?:png|jpg|bmp)")
    return _join(what, found, tuple(found))


def _scaled_stores(choice: RecipeChoice, ending: str) -> tuple[Store, ...]:
    lr = (Store(f"X{scale}{ending}", "dataroot_lq", scale, choice.make_lq) for scale in choice.scales)
    return (Store(f"HR{ending}", "dataroot_gt"), *lr)


def _dpdd(split: Phase) -> Builder:
    def build(tree: Tree, choice: RecipeChoice) -> list[Part]:
        """DPDD, dual-pixel defocus deblurring, 16 bits: left, right and combined view and target of 350, 74, 76 scenes.

        train/{inputL,inputR,inputC,target}/ (Restormer's release). As there, the files of a scene are matched by their
        order, since their names differ; the combined view gives the key. Training: 512 crops at steps of 204, without
        the least sharp 30 % of each image. Validation: 256x256 from the middle. Test: whole.
        """
        what = f"DPDD {split}"
        found = _gather(
            tree, rf"{split}/(?:DPDD/)?(?P<role>inputL|inputR|inputC|target)/{image_pattern()}", lambda m: m["key"]
        )
        views = {
            view: sorted(found.get(view.lower(), {}).items(), key=lambda x: _natural(x[0])) for view in _DPDD_VIEWS
        }
        counts = {view: len(files) for view, files in views.items()}
        if len(set(counts.values())) != 1:
            raise UserError(f"{what}: the views have different numbers of images, {counts}; download the set again")
        items = _sorted(
            Item(scene[1][0], tuple(file for _, file in scene)) for scene in zip(*views.values(), strict=True)
        )
        crop = {
            "train": choice.crop(Crop(512, 204, blunt=0.3)),
            "val": Crop(256, 256, centre=True),
            "test": None,
        }[split]
        ending = "_crops" if crop else ""
        options = ("dataroot_gt", "dataroot_lq", "dataroot_lqL", "dataroot_lqR")
        stores = tuple(Store(view + ending, option) for view, option in zip(views, options, strict=True))
        return [Part(split, split, stores, items, crop, _against(items, _DPDD_COUNTS[split], what))]

    return build


_DPDD_VIEWS = ("target", "inputC", "inputL", "inputR")

RECIPES: dict[str, dict[Phase, Builder]] = {
    "sidd": {"train": sidd_train, "val": sidd_val},
    "gopro": {"train": gopro_train, "val": gopro_val, "test": gopro_test},
    "rain13k": {"train": rain13k_train, "test": rain13k_test},
    "dfwb": {"train": dfwb_train},
    "df2k": {"train": df2k_train, "val": df2k_val},
    "div2k": {"train": div2k_train, "val": df2k_val},
    "dpdd": {"train": _dpdd("train"), "val": _dpdd("val"), "test": _dpdd("test")},
}


def folder(gt: Path, lq: Path | None, filename_tmpl: str, scale: int, choice: RecipeChoice) -> Part:
    """One's own images: pairs by name, or GT where lq is None, alone or with LQ made of it. Keys are the GT's.

    Raises ValueError where LQ is both there and to be made, or is to be made without a scale.
    Raises ValueError listing the names without a partner and the filename_tmpl that would fit (paired.pair_keys).
    """
    source = FolderSource(gt)
    if not source.keys:
        raise UserError(f"--gt: {gt} holds no images")
    crop = choice.crop(None)
    if choice.make_lq and (lq is not None or scale < 2):
        raise UserError("--make-lq shrinks GT: it goes with --scale 2 or more, and without --lq")
    if lq is None:
        items = _sorted(Item(key, (File(source.where(key)),)) for key in source.keys)
        made = (Store(f"lq_x{scale}", "dataroot_lq", scale, shrunk=True),) if choice.make_lq else ()
        return Part("train", "", (Store("gt", "dataroot_gt"), *made), items, crop)
    other = FolderSource(lq)
    partners = pair_keys(source, other, source.keys, filename_tmpl, option="--lq")
    pairs = zip(source.keys, partners, strict=True)
    items = _sorted(Item(a, (File(source.where(a)), File(other.where(b)))) for a, b in pairs)
    return Part("train", "", (Store("gt", "dataroot_gt"), Store("lq", "dataroot_lq", scale)), items, crop)


Found = dict[str, dict[str, File]]  # role, key -> file


def _gather(tree: Tree, pattern: str, key: Callable[[re.Match[str]], str], found: Found | None = None) -> Found:
    """Adds the files that the pattern finds, by their role and key; two of one key are an error naming both."""
    found = {} if found is None else found
    for match, file in tree.find(pattern):
        files = found.setdefault(match["role"].lower(), {})
        name = key(match)
        if name in files:
            raise UserError(f"{files[name]} and {file} are both {name!r}; keep one of them below --input")
        files[name] = file
    return found


def _one(tree: Tree, pattern: str) -> dict[str, File]:
    return _gather(tree, rf"(?P<role>){pattern}", lambda m: m["key"]).get("", {})


def _join(
    what: str, found: Mapping[str, dict[str, File]], roles: Sequence[str]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items that have a file in every role, and a sentence about those that lack one."""
    every = sorted({key for role in roles for key in found.get(role, {})})
    problems = []
    for role in roles:
        lacking = [key for key in every if key not in found.get(role, {})]
        if lacking:
            problems.append(f"{what}: without a file among {role}: {listed(lacking)}")
    whole = [key for key in every if all(key in found.get(role, {}) for role in roles)]
    return tuple(Item(key, tuple(found[role][key] for role in roles)) for key in whole), tuple(problems)


def _against(items: Sequence[Item], count: int, what: str, names: Sequence[str] = ()) -> tuple[str, ...]:
    """How the items differ from the published set: its count, and its names where they are known."""
    keys = {item.key for item in items}
    problems = []
    if names and keys and set(names) - keys:
        problems.append(f"{what}: lacks {listed(set(names) - keys)}")
    if names and keys - set(names):
        problems.append(f"{what}: not of the published set: {listed(keys - set(names))}")
    if not problems and len(keys) != count:
        problems.append(f"{what}: {len(keys)} found, the published set has {count}")
    return tuple(problems)


def _numbers(count: int, digits: int) -> list[str]:
    return [f"{n:0{digits}d}" for n in range(1, count + 1)]


def _sorted(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.key))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which img2 comes before img10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]
