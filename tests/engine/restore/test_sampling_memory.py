"""What a 2K image takes: the full network in fp32, in tiles of 128 LR pixels, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
STEP = """
import torch
from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.schedule import cosine_schedule
from sam4ir.engine.restore.sampling import DiffusionRestorer, Sampling
from sam4ir.utils.memory import peak_memory

sampling = Sampling("ddpm", 1, tile=128, overlap=16, batch=1)
network = DiffSR().eval().to(memory_format=torch.channels_last)
restorer = DiffusionRestorer(network, Process(cosine_schedule()), 4, sampling)
restored = restorer(torch.rand(1, 3, 339, 510), "a")
assert restored.shape == (1, 3, 1356, 2040) and bool(restored.isfinite().all())
print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.slow
def test_a_2k_image_is_made_within_4_gb() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 4 << 30
