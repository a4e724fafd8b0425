"""Train a small network plainly and with SAM4IR on six photographs, score both, draw a picture and report.

The trainings and tests are commands of their own, as a user types them (`sam4ir quickstart`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.errors import UserError
from sam4ir.priors.zoo.weights import WeightsError, resolve
from sam4ir.utils.files import write_text
from sam4ir.utils.image import read_image, to_uint8, write_image
from sam4ir.utils.rng import generator
from sam4ir.utils.shell import command_words
from sam4ir.utils.shipped import shipped
from sam4ir.utils.tables import read_csv

TRAIN = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
TEST = ("astronaut.png", "chelsea.png")
# Folders, below the current one as in the option files.
OPTIONS = Path("options", "quickstart")
MASKS = Path("datasets", "quickstart", "masks.lmdb")
COMMITTED = Path("datasets", "quickstart")
PHOTOS = COMMITTED / "photos"
EXPERIMENTS = Path("experiments")
RESULTS = Path("results")
FOLDER = RESULTS / "quickstart"
REPORT = FOLDER / "report.html"
COLUMNS = ("noisy", "plain", "refiner", "student")
TITLES = ("noisy", "plain", "refiner", "student (deployed)")  # of the columns in README.md
# top and left of the detail that the picture shows of each photograph
DETAILS = {"astronaut": (20, 130), "chelsea": (60, 90)}
DETAIL = 192

Scores = dict[str, dict[str, dict[str, float]]]


def _copy_shipped() -> None:
    """Copy the option files and the masks that come with sam4ir to the current folder, where they are not there yet."""
    for place in (OPTIONS, MASKS):
        if not place.exists():
            part = place.with_name(f"{place.name}.part")
            shutil.copytree(shipped(place.as_posix()), part, dirs_exist_ok=True)
            part.replace(place)


def _copy_photographs() -> None:
    """Copy the photographs of the scikit-image package: for training into an LMDB of raw pixels, for test as files."""
    from skimage import data

    source = Path(data.__file__).parent
    for name in (*TRAIN, *TEST):
        if not (source / name).is_file():
            raise UserError(f"{source / name}: this scikit-image lacks the photograph; install scikit-image>=0.22")
    (PHOTOS / "test").mkdir(parents=True, exist_ok=True)
    for name in TEST:
        shutil.copyfile(source / name, PHOTOS / "test" / name)
    if not (PHOTOS / "train.lmdb").exists():
        with LmdbWriter(PHOTOS / "train.lmdb") as store:
            for name in TRAIN:
                store.put(Path(name).stem, read_image(source / name))


def _call(*words: object) -> None:
    """Run a command of sam4ir, and print first what a user would type. Raises UserError where it fails."""
    print(f"\n$ {command_words('sam4ir', *words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "sam4ir", *map(str, words)], check=False).returncode
    if code:
        raise UserError(f"sam4ir {words[0]} ended with exit code {code}; see its message above")


def _train() -> None:
    """Train the plain network, then the same network with SAM4IR. Where VGG16 cannot be fetched, leave SGR out."""
    without_sgr = []
    try:
        resolve("vgg16")
    except WeightsError as error:
        print(f"VGG16 cannot be fetched, so SGR is left out of this run:\n{error}")
        without_sgr = ["--force_yml", "train:sgr_opt=null"]
    _call("train", "-opt", f"{OPTIONS}/plain.yml", "--auto_resume")
    _call("train", "-opt", f"{OPTIONS}/sam4ir.yml", "--auto_resume", *without_sgr)


def _test() -> None:
    """Score both networks with one option file."""
    for name in ("plain", "sam4ir"):
        weights = f"experiments/quickstart_{name}/models/net_g_latest.pth"
        force = [f"name=quickstart_{name}", f"path:pretrain_network_g={weights}"]
        _call("test", "-opt", f"{OPTIONS}/test.yml", "--overwrite", "--force_yml", *force)


def _report() -> None:
    """Write the page that compares both networks: curves, scores, and the images side by side."""
    runs = [f"experiments/quickstart_{name}" for name in ("plain", "sam4ir")]
    results = [f"results/quickstart_{name}" for name in ("plain", "sam4ir")]
    _call("report", *runs, *results, "--output", REPORT.as_posix(), "--title", "sam4ir quickstart")


def _collect() -> Scores:
    """Read the results of tests and of validation: {photograph: {noisy, plain, refiner, student: {psnr, ssim}}}."""
    plain, student = _result("plain"), _result("sam4ir")
    refiner = _refiner_scores()
    scores: Scores = {}
    for photo in plain:
        scores[photo] = {
            "noisy": plain[photo]["input"],
            "plain": plain[photo]["restored"],
            "refiner": refiner[photo],
            "student": student[photo]["restored"],
        }
    return scores


def _result(name: str) -> Scores:
    """Read the scores that sam4ir test wrote for one of the two networks."""
    summary = json.loads((RESULTS / f"quickstart_{name}" / "summary.json").read_text(encoding="utf-8"))
    scores: Scores = summary["images"]["photographs"]
    return scores


def _refiner_scores() -> dict[str, dict[str, float]]:
    """Read the refiner's scores in the last validation of the SAM4IR run."""
    scores = {}
    table_file = EXPERIMENTS / "quickstart_sam4ir" / "validation.csv"
    for _, row in read_csv(table_file).rows:  # a later validation replaces an earlier one
        if row["stage"] == "refined":
            scores[str(row["image"])] = {"psnr": float(row["psnr"] or "nan"), "ssim": float(row["ssim"] or "nan")}
    return scores


def console_table(scores: Scores) -> str:
    """Return the table for the console: a line for each photograph, PSNR in dB and SSIM."""
    head = _line("photograph", COLUMNS)
    lines = [head, "-" * len(head)]
    for photo, row in scores.items():
        lines.append(_line(photo, _cells(row)))
    return "\n".join([*lines, "PSNR in dB / SSIM, on 8-bit RGB images (protocols psnr and ssim)"])


def _line(first: str, cells: Sequence[str]) -> str:
    """Return a line of the console's table."""
    return f"{first:12}" + "".join(f"{cell:>18}" for cell in cells)


def markdown_table(scores: Scores) -> str:
    """Return the same table in Markdown, as README.md shows it."""
    lines = ["| photograph | " + " | ".join(TITLES) + " |", "|---" * (1 + len(TITLES)) + "|"]
    for photo, row in scores.items():
        lines.append(f"| {photo} | " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the cells of one photograph, in the order of COLUMNS."""
    cells = []
    for column in COLUMNS:
        score = row[column]
        cells.append(f"{score['psnr']:.2f} / {score['ssim']:.4f}")
    return cells


def _summary(scores: Scores, picture_file: Path) -> str:
    """Return summary.md: the table, the version of PyTorch, the number of threads and the picture's hash."""
    digest = hashlib.sha256(picture_file.read_bytes()).hexdigest()
    return (
        "# Quickstart: PSNR in dB / SSIM\n\n"
        f"{markdown_table(scores)}\n\n"
        "`sam4ir quickstart` wrote this file and the picture `comparison.png` in one run. One seed,\n"
        "800 iterations; protocols `psnr` and `ssim`.\n\n"
        f"- PyTorch {torch.__version__}, {torch.get_num_threads()} threads\n"
        f"- sha256 of `comparison.png`: {digest}\n"
    )


def _picture(scores: Scores) -> np.ndarray:
    """Draw a detail of each test photograph: noisy, plain, refiner, student, original; (h, w, 3) uint8 RGB."""
    noisy = GaussianDenoisingDataset(dataroot_gt=str(PHOTOS / "test"), sigma_range=50, noise_seed=0)
    rows = []
    for i in range(len(noisy)):
        photo = noisy.key(i)
        sample = noisy.get(i, generator(0))
        assert sample.gt is not None
        images = {
            "noisy": to_uint8(sample.lq),
            "plain": read_image(_restored("plain", photo)),
            "refiner": read_image(_refined_image(photo)),
            "student": read_image(_restored("sam4ir", photo)),
            "original": to_uint8(sample.gt),
        }
        details = [_detail(photo, name, image, scores[photo]) for name, image in images.items()]
        rows.append(np.concatenate(details, axis=1))
    return np.concatenate(rows)


def _restored(name: str, photo: str) -> Path:
    """Return the file of a photograph that sam4ir test restored."""
    return RESULTS / f"quickstart_{name}" / "visualization" / "photographs" / f"{photo}_quickstart_{name}.png"


def _refined_image(photo: str) -> Path:
    """Return the file of a photograph that the refiner restored in the last validation."""
    folder = EXPERIMENTS / "quickstart_sam4ir" / "visualization" / "photographs"
    last = max(folder.iterdir(), key=lambda p: int(p.name))
    return last / f"{photo}_refined.png"


def _detail(photo: str, name: str, image: np.ndarray, scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Cut the detail of a photograph and write name and PSNR above it."""
    top, left = DETAILS[photo]
    detail = np.ascontiguousarray(image[top : top + DETAIL, left : left + DETAIL])
    label = name
    if name in scores:
        label += f" {scores[name]['psnr']:.2f} dB"
    band = np.full((22, DETAIL, 3), 255, np.uint8)
    cv2.putText(band, label, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.concatenate([band, detail]), ((0, 4), (0, 4), (0, 0)), constant_values=255)


def quickstart(commit: bool) -> int:
    """Make the photographs, train, test, and write the results; return the exit status.

    commit: also copy the table and the picture to datasets/quickstart.
    """
    start = time.monotonic()
    resumed = (EXPERIMENTS / "quickstart_plain").exists()
    _copy_shipped()
    _copy_photographs()
    _train()
    _test()
    _report()
    scores = _collect()
    write_image(FOLDER / "comparison.png", _picture(scores))
    write_text(FOLDER / "summary.md", _summary(scores, FOLDER / "comparison.png"))
    seconds = round(time.monotonic() - start, 1)
    write_text(FOLDER / "summary.json", json.dumps({**scores, "seconds": seconds, "resumed": resumed}, indent=1))
    duration = f"{seconds:.0f} seconds"
    if resumed:
        duration += " (an earlier run went on)"
    print(f"\n{console_table(scores)}\n\n{duration}.")
    print("Numbers: results/quickstart/summary.json, picture: results/quickstart/comparison.png")
    print(f"Open {REPORT.as_posix()} in a browser: curves, and a slider between the images of both networks.")
    if commit:
        for name in ("summary.md", "comparison.png"):
            shutil.copyfile(FOLDER / name, COMMITTED / name)
    return 0
