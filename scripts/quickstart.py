"""The whole way on real photographs, on a CPU, in minutes: plain training, SAM4IR training, test, a picture.

python scripts/quickstart.py

It lays out six photographs of the scikit-image package, fetches VGG16 and calls train.py and test.py with
options/quickstart/{plain,sam4ir,test}.yml, as you would. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np

from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.errors import UserError
from sam4ir.priors.zoo.weights import WeightsError, resolve
from sam4ir.utils import cli
from sam4ir.utils.files import write_text
from sam4ir.utils.image import read_image, to_uint8, write_image
from sam4ir.utils.rng import generator

TRAIN = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png")
TEST = ("astronaut.png", "chelsea.png")
PHOTOS = ROOT / "datasets" / "quickstart" / "photos"
RESULTS = ROOT / "results" / "quickstart"
OPTIONS = "options/quickstart"
COLUMNS = ("noisy", "plain", "refiner", "student")
# where the pictures show a detail of the photographs: top, left
DETAILS = {"astronaut": (20, 130), "chelsea": (60, 90)}
DETAIL = 192

Scores = dict[str, dict[str, dict[str, float]]]


def lay_out_photographs() -> None:
    """The photographs of the scikit-image package: those for training as an LMDB of raw pixels, the others as files."""
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


def call(script: str, *arguments: str) -> None:
    """Run a script of the project as a user would, showing the command."""
    command = [sys.executable, script, *arguments]
    print("\n$ python", script, *arguments, flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise UserError(f"{script} ended with exit code {code}; see its message above")


def train() -> None:
    """Train the plain network, then the same network with SAM4IR; without VGG16, SGR is left out."""
    without_sgr = []
    try:
        resolve("vgg16")
    except WeightsError as error:
        print(f"VGG16 cannot be fetched, so SGR is left out of this run:\n{error}")
        without_sgr = ["--force_yml", "train:sgr_opt=null"]
    call("train.py", "-opt", f"{OPTIONS}/plain.yml", "--auto_resume")
    call("train.py", "-opt", f"{OPTIONS}/sam4ir.yml", "--auto_resume", *without_sgr)


def test() -> None:
    """Score both networks with the same option file."""
    for name in ("plain", "sam4ir"):
        weights = f"experiments/quickstart_{name}/models/net_g_latest.pth"
        force = [f"name=quickstart_{name}", f"path:pretrain_network_g={weights}"]
        call("test.py", "-opt", f"{OPTIONS}/test.yml", "--overwrite", "--force_yml", *force)


def collect() -> Scores:
    """{photograph: {noisy, plain, refiner, student: {psnr, ssim}}} from the results of test.py and of validation."""
    plain, student = (_tested(name) for name in ("plain", "sam4ir"))
    refiner = _refined()
    return {
        photo: {
            "noisy": plain[photo]["input"],
            "plain": plain[photo]["restored"],
            "refiner": refiner[photo],
            "student": student[photo]["restored"],
        }
        for photo in plain
    }


def _tested(name: str) -> Scores:
    summary = json.loads((ROOT / "results" / f"quickstart_{name}" / "summary.json").read_text(encoding="utf-8"))
    scores: Scores = summary["images"]["photographs"]
    return scores


def _refined() -> dict[str, dict[str, float]]:
    """The refiner's scores in the last validation of the SAM4IR run."""
    with (ROOT / "experiments" / "quickstart_sam4ir" / "validation.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["stage"] == "refined"]
    return {r["image"]: {"psnr": float(r["psnr"]), "ssim": float(r["ssim"])} for r in rows}  # later rows win


def table(scores: Scores) -> str:
    """One line a photograph, PSNR in dB and SSIM."""
    head = f"{'photograph':12}" + "".join(f"{c:>18}" for c in COLUMNS)
    lines = [head, "-" * len(head)]
    for photo, row in scores.items():
        cells = (f"{row[c]['psnr']:.2f} / {row[c]['ssim']:.4f}" for c in COLUMNS)
        lines.append(f"{photo:12}" + "".join(f"{c:>18}" for c in cells))
    return "\n".join([*lines, "PSNR in dB / SSIM, on 8-bit RGB images (protocols psnr and ssim)"])


def picture(scores: Scores) -> np.ndarray:
    """A detail of each test photograph: noisy, plain, refiner, student, original; (h, w, 3) uint8 RGB."""
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
        rows.append(np.concatenate([_detail(photo, n, im, scores[photo]) for n, im in images.items()], axis=1))
    return np.concatenate(rows)


def _restored(name: str, photo: str) -> Path:
    return ROOT / "results" / f"quickstart_{name}" / "visualization" / "photographs" / f"{photo}_quickstart_{name}.png"


def _refined_image(photo: str) -> Path:
    folder = ROOT / "experiments" / "quickstart_sam4ir" / "visualization" / "photographs"
    last = max(folder.iterdir(), key=lambda p: int(p.name))
    return last / f"{photo}_refined.png"


def _detail(photo: str, name: str, image: np.ndarray, scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    top, left = DETAILS[photo]
    detail = np.ascontiguousarray(image[top : top + DETAIL, left : left + DETAIL])
    label = f"{name} {scores[name]['psnr']:.2f} dB" if name in scores else name
    band = np.full((22, DETAIL, 3), 255, np.uint8)
    cv2.putText(band, label, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.pad(np.concatenate([band, detail]), ((0, 4), (0, 4), (0, 0)), constant_values=255)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    begun = time.monotonic()
    resumed = (ROOT / "experiments" / "quickstart_plain").exists()
    lay_out_photographs()
    train()
    test()
    scores = collect()
    write_image(RESULTS / "comparison.png", picture(scores))
    seconds = round(time.monotonic() - begun, 1)
    summary = {**scores, "seconds": seconds, "resumed": resumed}
    write_text(RESULTS / "summary.json", json.dumps(summary, indent=1))
    print(f"\n{table(scores)}\n\n{seconds:.0f} seconds{' (an earlier run went on)' if resumed else ''}.")
    print("Numbers: results/quickstart/summary.json, picture: results/quickstart/comparison.png")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
