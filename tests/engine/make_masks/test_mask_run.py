"""Making masks of many images: sharing out, going on, bad images, parts; with a generator that knows no SAM."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sam4ir import regions
from sam4ir.data import lmdb_env
from sam4ir.data.masks import parts as mask_parts
from sam4ir.data.masks.from_sam import pixel_sha256
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter
from sam4ir.data.sources import open_source
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.make_masks.run import (
    ImageShare,
    MaskProgress,
    MaskReport,
    Place,
    RecordMaker,
    enlarged_record,
    generate_masks,
)
from sam4ir.errors import UserError
from sam4ir.utils.dist import PeerError, Tally, world
from sam4ir.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[3]
META = {"generator": "thresholds", "source": "gt", "settings": {"levels": 3}}


def thresholds(image: np.ndarray) -> list[dict[str, Any]]:
    """A mask a brightness level, in segment-anything's form; they overlap."""
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    stack = [image[..., 0] > level for level in (60, 120, 180)]
    runs = [regions.mask_to_runs(mask) for mask in stack]
    size = list(image.shape[:2])
    return [
        {
            "segmentation": {"size": size, "counts": r},
            "area": regions.area(r),
            "bbox": list(regions.box(r, (size[0], size[1]))),
            "predicted_iou": 0.9 - i / 10,
            "stability_score": 0.95,
        }
        for i, r in enumerate(runs)
    ]


def picture(number: int, height: int = 24, width: int = 36) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)


def make_images(folder: Path, count: int) -> Path:
    for number in range(count):
        write_image(folder / f"{number:03}.png", picture(number))
    return folder


def run(images: Path, store: Path, generate: Any = thresholds, **more: Any) -> MaskReport:
    """generate_masks of a folder; `parts` and `new` go to the place, the rest to the call."""
    source = open_source(images, None, "--input")
    place = Place(store, more.pop("meta", META), more.pop("new", False), more.pop("parts", False))
    maker = RecordMaker(source, generate, more.pop("restore", None), more.pop("max_side", None))
    return generate_masks(maker, source.keys, place, **more)


def contents(store: Path) -> dict[str, bytes]:
    found = MaskStore(store)
    return {key: found.record_bytes(key) for key in found.keys()}  # noqa: SIM118  (no mapping)


def test_every_image_gets_the_generators_masks_and_its_hash(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 4)
    report = run(images, tmp_path / "m.lmdb")
    assert (report.images, report.new, report.old, report.bad) == (4, 4, 0, [])
    assert (report.stored, report.masks) == (4, 12)
    record = MaskStore(tmp_path / "m.lmdb").read("002")
    pixels = read_image(images / "002.png")
    np.testing.assert_array_equal(record.stack(0, 0, 24, 36)[1], pixels[..., 0] > 120)
    assert record.image_sha256 == pixel_sha256(pixels)
    assert record.predicted_iou.tolist() == [0.9, 0.8, 0.7]


def test_a_second_run_makes_what_lacks_only(tmp_path: Path) -> None:
    images, seen = make_images(tmp_path / "images", 3), []

    def counting(image: np.ndarray) -> list[dict[str, Any]]:
        seen.append(image)
        return thresholds(image)

    run(images, tmp_path / "m.lmdb", counting)
    make_images(images, 5)
    told: list[tuple[int, int, int]] = []
    report = run(
        images, tmp_path / "m.lmdb", counting, begun=lambda count, old, todo: told.append((count, old, len(todo)))
    )
    assert (report.new, report.old, len(seen), told) == (2, 3, 5, [(5, 3, 2)])


def test_overwrite_replaces_the_records_of_the_given_images_only(tmp_path: Path) -> None:
    images, store = make_images(tmp_path / "images", 3), tmp_path / "masks.lmdb"
    run(images, store)
    before = contents(store)
    maker = RecordMaker(open_source(images, None, "--input"), lambda _: [])
    report = generate_masks(maker, ["001"], Place(store, META, overwrite=True))
    assert (report.new, report.old, report.stored) == (1, 0, 3)
    assert {key for key, record in contents(store).items() if record != before[key]} == {"001"}
    assert MaskStore(store).read("001").count == 0
    with pytest.raises(ValueError, match="--overwrite"):
        generate_masks(maker, ["001"], Place(store, META, parts=True, overwrite=True))


def test_bad_images_are_skipped_listed_and_tried_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 5)
    whole = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(whole[:50])
    (images / "002.png").write_bytes(b"")

    def picky(image: np.ndarray) -> list[dict[str, Any]]:
        if (image == picture(3)).all():
            raise UserError("no masks for this one")
        return thresholds(image)

    report = run(images, tmp_path / "m.lmdb", picky)
    assert report.new == 2
    assert [key for key, _ in report.bad] == ["001", "002", "003"]
    assert all(text in reason for text, (_, reason) in zip(("truncated", "empty", "no masks"), report.bad, strict=True))
    (images / "001.png").write_bytes(whole)
    (images / "002.png").unlink()
    report = run(images, tmp_path / "m.lmdb")
    assert (report.new, report.old, report.bad) == (2, 2, [])


def test_a_key_that_lmdb_cannot_hold_is_a_bad_image(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 2)
    deep = "/".join(letter * 200 for letter in "abc")
    write_image(images / deep / "x.png", picture(7))
    write_image(images / ("a" * 200) / ("b" * 200) / ("c" * 109 + ".png"), picture(8))  # 511 bytes
    shutil.copy(images / "000.png", os.fsencode(images) + b"/caf\xe9.png")
    for made in (3, 0):
        report = run(images, tmp_path / "m.lmdb")
        assert (report.new, report.stored) == (made, 3)
        assert [key for key, _ in report.bad] == [f"{deep}/x", "caf\udce9"]
        assert "1 to 511" in report.bad[0][1]
        assert "no UTF-8" in report.bad[1][1]


def test_a_run_that_was_killed_while_the_store_began_goes_on(tmp_path: Path) -> None:
    images, store = make_images(tmp_path / "images", 1), tmp_path / "m.lmdb"
    store.mkdir()
    for name in (".merge.lock", ".meta.lock", ".meta.json.4711.part"):
        (store / name).touch()
    assert run(images, store).new == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), TypeError("bug")])
def test_what_is_no_fault_of_the_image_stops_the_run(error: Exception, tmp_path: Path) -> None:
    def failing(image: np.ndarray) -> list[dict[str, Any]]:
        raise error

    with pytest.raises(type(error)):
        run(make_images(tmp_path / "images", 2), tmp_path / "m.lmdb", failing)


def test_a_store_that_cannot_be_written_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> bool:
        raise MaskStoreError("the disk is full")

    monkeypatch.setattr(MaskStoreWriter, "put_record", full)
    with pytest.raises(MaskStoreError, match="disk is full"):
        run(make_images(tmp_path / "images", 2), tmp_path / "m.lmdb")


@pytest.mark.parametrize("parts", [False, True])
def test_shards_in_any_order_make_the_store_of_one_process(parts: bool, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 7)
    run(images, tmp_path / "one.lmdb")
    reports = [run(images, tmp_path / "m.lmdb", shard=ImageShare(i, 3, "shard"), parts=parts) for i in (2, 0, 1)]
    assert [report.new for report in reports] == [2, 3, 2]
    assert contents(tmp_path / "m.lmdb") == contents(tmp_path / "one.lmdb")
    assert MaskStore(tmp_path / "m.lmdb").meta["counts"] == {"images": 7, "masks": 21}
    assert not mask_parts.parts_folder(tmp_path / "m.lmdb").exists()


def test_shards_and_new_or_ranks_contradict_each_other(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="--new with --shard"):
        run(images, tmp_path / "m.lmdb", shard=ImageShare(0, 2, "shard"), new=True)
    with pytest.raises(ValueError, match="shard 2/2"):
        ImageShare(2, 2)


def test_an_image_that_another_run_has_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 3)
    run(images, tmp_path / "whole.lmdb")
    expected = contents(tmp_path / "whole.lmdb")
    seen = []

    def overtaken(image: np.ndarray) -> list[dict[str, Any]]:
        if not seen:
            process = multiprocessing.get_context("fork").Process(target=run, args=(images, tmp_path / "m.lmdb"))
            process.start()
            process.join(60)
            assert process.exitcode == 0
        seen.append(image)
        return [{**mask, "predicted_iou": 0.1} for mask in thresholds(image)]

    report = run(images, tmp_path / "m.lmdb", overtaken)
    assert (len(seen), report.new, report.old) == (1, 0, 3)
    assert contents(tmp_path / "m.lmdb") == expected


def test_a_signal_stops_after_the_image_under_way_and_the_rest_follows(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 4)

    def interrupted(image: np.ndarray) -> list[dict[str, Any]]:
        os.kill(os.getpid(), signal.SIGTERM)
        return thresholds(image)

    with Signals() as signals, pytest.raises(Interrupted) as stopped:
        run(images, tmp_path / "m.lmdb", interrupted, signals=signals)
    assert stopped.value.exit_code == 143
    assert MaskStore(tmp_path / "m.lmdb").keys() == ["000"]
    assert run(images, tmp_path / "m.lmdb").new == 3


@pytest.mark.parametrize("signalled", [True, False])
def test_who_waits_for_the_others_when_a_signal_stops_them_stops_in_order(
    signalled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> list[int]:
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        raise PeerError

    monkeypatch.setattr(Tally, "finish", lost)
    with Signals() as signals, pytest.raises(Interrupted if signalled else PeerError):
        run(make_images(tmp_path / "images", 1), tmp_path / "m.lmdb", signals=signals)
    assert MaskStore(tmp_path / "m.lmdb").keys() == ["000"]


def test_another_way_of_making_is_refused_and_new_moves_aside(tmp_path: Path) -> None:
    images, store = make_images(tmp_path / "images", 2), tmp_path / "m.lmdb"
    run(images, store, meta={**META, "made_on": "a", "told": {"x": 1}})
    run(images, store, meta={**META, "made_on": "b", "versions": {"torch": "9"}})
    assert MaskStore(store).meta["made_on"] == ["a", "b"]
    other = {**META, "settings": {"levels": 4}}
    for parts in (False, True):
        with pytest.raises(MaskStoreError, match=r"settings\.levels: stored 3, now 4"):
            run(images, store, meta=other, parts=parts)
    with mask_parts.part_writer(store, "shard-0of2", META) as part:
        part.put_record("x", MaskStore(store).record_bytes("000"))
    assert run(images, store, meta=other, new=True).new == 2
    assert len(MaskStore(store.with_name("m.lmdb.old1"))) == 2
    assert store.with_name("m.lmdb.parts.old1").is_dir()


def test_sixteen_bits_are_shown_as_their_upper_eight(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), np.uint16)
    write_image(tmp_path / "images" / "a.png", image)
    shown = []
    run(tmp_path / "images", tmp_path / "m.lmdb", lambda seen: shown.append(seen) or thresholds(seen))
    np.testing.assert_array_equal(shown[0], image // 256)
    assert MaskStore(tmp_path / "m.lmdb").read("a").image_sha256 == pixel_sha256(image)


def test_the_restored_image_is_what_the_masks_are_of(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 1)
    run(images, tmp_path / "m.lmdb", restore=lambda image: image.repeat(2, 0).repeat(2, 1))
    record = MaskStore(tmp_path / "m.lmdb").read("000")
    assert record.size == (48, 72)
    assert record.image_sha256 == pixel_sha256(picture(0))


def test_masks_of_a_shrunken_image_come_back_at_its_size(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 1)
    shown: list[tuple[int, ...]] = []

    def looking(image: np.ndarray) -> list[dict[str, Any]]:
        shown.append(image.shape)
        return thresholds(image)

    run(images, tmp_path / "m.lmdb", looking, max_side=9)  # a quarter: the picture's blocks are 4 x 4
    run(images, tmp_path / "same.lmdb", looking, max_side=36)
    assert shown == [(6, 9, 3), (24, 36, 3)]
    record = MaskStore(tmp_path / "m.lmdb").read("000")
    np.testing.assert_array_equal(record.stack(0, 0, 24, 36)[2], picture(0)[..., 0] > 180)
    assert record.areas.tolist() == record.stack(0, 0, 24, 36).sum(axis=(1, 2)).tolist()
    assert contents(tmp_path / "m.lmdb") == contents(tmp_path / "same.lmdb")


def test_masks_of_a_degraded_image_lie_on_the_grid_of_the_ground_truth(tmp_path: Path) -> None:
    images, store = make_images(tmp_path / "lq", 1), tmp_path / "masks.lmdb"
    maker = RecordMaker(open_source(images, None, "--input"), thresholds, scale=4)
    generate_masks(maker, ["000"], Place(store, META))
    record = MaskStore(store).read("000")
    assert record.size == (96, 144)
    small = np.stack([picture(0)[..., 0] > level for level in (60, 120, 180)])
    np.testing.assert_array_equal(record.stack(0, 0, 96, 144), small.repeat(4, 1).repeat(4, 2))


def test_enlarging_takes_the_nearest_pixel_of_any_ratio() -> None:
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    found = [
        {
            "segmentation": {"size": [5, 7], "counts": regions.mask_to_runs(mask)},
            "predicted_iou": 1,
            "stability_score": 1,
        }
    ]
    large = MaskRecord(enlarged_record(found, (52, 64))).stack(0, 0, 52, 64)[0]
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in ((52, 5), (64, 7)))
    np.testing.assert_array_equal(large, mask[rows.astype(int)[:, None], columns.astype(int)])
    assert MaskRecord(enlarged_record([], (5, 6))).size == (5, 6)


def test_the_rate_is_of_images_made_now() -> None:
    line = MaskProgress(100, shown=False).line((10, 40, 0), 20.0)
    assert line == "50 of 100 images, 0.5 images/s, 2 min left"


def worker() -> None:
    """What torchrun starts below: argv = images store parts(0|1) pause."""
    images, store, parts, pause = sys.argv[1:5]

    def slow(image: np.ndarray) -> list[dict[str, Any]]:
        time.sleep(float(pause))
        return thresholds(image)

    try:
        with world("pytorch", cuda=False) as joined, Signals(patient=True) as signals:
            report = run(Path(images), Path(store), slow, world=joined, parts=parts == "1", signals=signals)
            if joined.main:
                print(json.dumps({"made": report.new, "bad": report.bad, "images": report.images}), flush=True)
    except Interrupted as stopped:
        print("stopped in order", flush=True)
        sys.exit(stopped.exit_code)


def torchrun(images: Path, store: Path, parts: bool, pause: float, processes: int = 2) -> list[str]:
    own = [str(Path(__file__)), str(images), str(store), str(int(parts)), str(pause)]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *own]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True])
def test_ranks_make_the_store_of_one_process_and_gather_what_is_bad(parts: bool, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 9)
    (images / "004.png").write_bytes(b"")
    (images / "005.png").write_bytes(b"")
    run(images, tmp_path / "one.lmdb")
    done = subprocess.run(
        torchrun(images, tmp_path / "m.lmdb", parts, 0.01),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["made"], told["images"], [key for key, _ in told["bad"]]) == (7, 9, ["004", "005"])
    assert contents(tmp_path / "m.lmdb") == contents(tmp_path / "one.lmdb")
    assert not mask_parts.parts_folder(tmp_path / "m.lmdb").exists()


def _children(pid: int) -> Sequence[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in listed.split()]


@pytest.mark.slow
def test_sigterm_to_torchrun_stops_all_ranks_after_their_images(tmp_path: Path) -> None:
    images, store = make_images(tmp_path / "images", 200), tmp_path / "m.lmdb"
    process = subprocess.Popen(
        torchrun(images, store, False, 0.1),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    while _records(store) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert out.count("stopped in order") == 2
    assert time.monotonic() - begun < 20
    assert 4 <= len(MaskStore(store)) < 200
    found = MaskStore(store)
    assert all(found.read(key).count == 3 for key in found.keys())  # noqa: SIM118  (no mapping)


def _records(store: Path) -> int:
    """That the store and its parts hold."""
    count = 0
    for folder in (store, *mask_parts.parts_folder(store).glob("*.lmdb")):
        with contextlib.suppress(MaskStoreError):  # not begun yet, or merged just now
            count += len(MaskStore(folder))
    return count


def _kill_at_random(process: subprocess.Popen[bytes], store: Path, draw: np.random.Generator, longest: float) -> bool:
    """Kills torchrun with its ranks, or one rank, early or up to `longest` seconds after a record came; False where
    the run was over before."""
    before, early = _records(store), draw.random() < 0.2
    until = time.monotonic() + draw.uniform(0.3, 3)
    while process.poll() is None and (time.monotonic() < until if early else _records(store) <= before):
        time.sleep(0.02)
    time.sleep(0 if early else draw.uniform(0, longest))
    ranks = _children(process.pid)
    if process.poll() is not None:
        return False
    one = ranks and draw.random() < 0.4
    for pid in [int(draw.choice(ranks))] if one else [process.pid, *ranks]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(120)  # of a killed rank's fellows torchrun takes care
    return True


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("parts", [False, True])
def test_killed_at_random_moments_the_store_becomes_that_of_an_uninterrupted_run(parts: bool, tmp_path: Path) -> None:
    """SAM4IR_KILL_COMMAND: another command to kill, with {images} and {store} (make_masks.py with a real SAM, by
    torchrun); SAM4IR_KILL_IMAGES: its images instead of 60 drawn ones; SAM4IR_KILL_SECONDS: longest wait for a kill."""
    own = os.environ.get("SAM4IR_KILL_COMMAND")
    images = Path(os.environ.get("SAM4IR_KILL_IMAGES", tmp_path / "images"))
    longest = float(os.environ.get("SAM4IR_KILL_SECONDS", "0.8"))
    if not images.exists():
        make_images(images, 60)

    def command(store: Path) -> list[str]:
        if own is None:
            return torchrun(images, store, parts, 0.25)
        return own.format(images=images, store=store).split() + (["--parts"] if parts else [])

    straight, store = tmp_path / "straight.lmdb", tmp_path / "m.lmdb"
    subprocess.run(command(straight), env=environment(), check=True, capture_output=True, cwd=ROOT)
    expected = contents(straight)
    draw = np.random.default_rng(int(parts))
    kills, held = 0, []
    while kills < 20:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command(store), env=environment(), cwd=ROOT, **quiet)
        if _kill_at_random(process, store, draw, longest):
            kills += 1
        elif process.returncode == 0:  # done before all kills: as it should be, then once more from the beginning
            assert contents(store) == expected
            shutil.rmtree(store)
        held.append(_records(store))
    print(f"records after each kill: {held}")
    subprocess.run(command(store), env=environment(), check=True, capture_output=True, cwd=ROOT)
    assert contents(store) == expected
    assert MaskStore(store).meta["counts"] == MaskStore(straight).meta["counts"]
    assert not mask_parts.parts_folder(store).exists()
    assert len(set(held)) > 5, "killed before anything happened"


def test_on_a_network_file_system_each_process_writes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam4ir.engine.make_masks.run.network_filesystem", lambda _: "nfs4")
    monkeypatch.setattr(lmdb_env, "network_filesystem", lambda _: "nfs4")
    images, where = make_images(tmp_path / "images", 3), []

    def looking(image: np.ndarray) -> list[dict[str, Any]]:
        where.append(sorted(p.name for p in mask_parts.parts_folder(tmp_path / "m.lmdb").iterdir()))
        return thresholds(image)

    assert run(images, tmp_path / "m.lmdb", looking).stored == 3
    assert where[0] == ["rank-0of1.lmdb", "rank-0of1.lock"]
    assert not (tmp_path / "m.lmdb" / "lock.mdb").exists()


if __name__ == "__main__":
    worker()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "--points-per-batch 16 or --max-side 1024 need less"),
        (torch.OutOfMemoryError("CUDA out of memory"), "--points-per-batch 16 or --max-side 1024 need less"),
        (OSError(5, "Input/output error on a share"), None),
        (OSError(36, "File name too long"), "File name too long"),
        (cv2.error("too large"), "too large"),
        (KeyError("bug"), None),
    ],
)
def test_an_error_of_one_image_is_listed_and_any_other_ends_the_run(
    tmp_path: Path, error: Exception, reason: str | None
) -> None:
    images = make_images(tmp_path / "images", 3)

    def failing(image: np.ndarray) -> list[dict[str, Any]]:
        if (image == picture(1)).all():
            raise error
        return thresholds(image)

    if reason is None:
        with pytest.raises(type(error)):
            run(images, tmp_path / "m.lmdb", failing)
        return
    report = run(images, tmp_path / "m.lmdb", failing)
    assert report.new == 2
    ((key, text),) = report.bad
    assert key == "001"
    assert reason in text
