"""Images that do not fit into memory: smaller tiles, what is logged, and what is an error."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam4ir.diffusion.process import Process
from sam4ir.diffusion.schedule import cosine_schedule
from sam4ir.engine.restore.images import ImageRestorer
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer
from sam4ir.engine.restore.sampling import DiffusionRestorer, Sampling
from sam4ir.engine.restore.within_memory import ImageTooLargeError, WithinMemory
from sam4ir.errors import UserError
from sam4ir.utils.memory import out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


class Local(nn.Module):
    """A network that looks at one pixel only, and for whose memory `most` pixels are too many."""

    def __init__(self, most: int, error: Exception = CPU) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        if image.shape[0] * image.shape[-1] * image.shape[-2] > self.most:
            raise self.error
        return image * 0.5 + image.square()


@pytest.mark.parametrize("error", [CPU, CUDA, MemoryError(), RuntimeError("could not create a primitive")])
def test_an_image_that_does_not_fit_is_restored_in_tiles_that_do(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    network, image = Local(70 * 70, error), torch.rand(1, 3, 150, 300)
    restored = WithinMemory()(PlainRestorer(network, Inference()), image, "photo")
    torch.testing.assert_close(restored, image * 0.5 + image.square())
    assert [shape[-2:] for shape in network.seen[:3]] == [(150, 300), (150, 256), (128, 128)]
    assert network.seen[-1] == (1, 3, 64, 64)
    (record,) = caplog.records
    assert record.getMessage().startswith("photo: memory ran out for 150x300 pixels")
    assert "--tile 64 (val.grids: true, val.crop_size: 64)" in record.getMessage()


def test_the_tiles_are_those_that_the_user_gets_by_naming_them() -> None:
    torch.manual_seed(0)
    blur = nn.Conv2d(3, 3, 5, padding=2)
    image = torch.rand(1, 3, 90, 80)
    network = Local(64 * 64)
    network.forward = lambda x: blur(Local.forward(network, x))  # type: ignore[method-assign]
    by_itself = WithinMemory()(PlainRestorer(network, Inference(overlap=0)), image, "a")
    asked = PlainRestorer(network, Inference(tile=64, overlap=8, batch=1))(image, "a")
    assert torch.equal(by_itself, asked)


def test_tiles_that_were_asked_for_come_one_at_a_time_first() -> None:
    network = Local(24 * 24)
    WithinMemory()(PlainRestorer(network, Inference(tile=24, overlap=4, batch=8)), torch.rand(1, 3, 60, 60), "a")
    assert [shape[0] for shape in network.seen[:2]] == [8, 1]
    assert {shape[-2:] for shape in network.seen} == {(24, 24)}


def test_later_images_of_the_size_begin_with_the_tiles_that_fitted(caplog: pytest.LogCaptureFixture) -> None:
    network, within = Local(40 * 40), WithinMemory()
    plain = PlainRestorer(network, Inference())
    within(plain, torch.rand(1, 3, 60, 60), "a")
    for image, first in ((torch.rand(1, 3, 61, 60), (32, 32)), (torch.rand(1, 3, 40, 40), (40, 40))):
        network.seen.clear()
        within(plain, image, "b")
        assert network.seen[0][-2:] == first
    assert len(caplog.records) == 1


def test_an_image_that_fits_in_no_tiles_names_the_remedy_and_later_images_go_on() -> None:
    within, image = WithinMemory(), torch.rand(1, 3, 64, 64)
    with pytest.raises(ImageTooLargeError, match=r"64x64 pixels in tiles of 16 .*--tile.*val\.grids: true"):
        within(PlainRestorer(Local(0, CUDA), Inference()), image, "a")
    assert within(PlainRestorer(Local(64 * 64), Inference()), image, "b").shape == image.shape


def test_the_scale_and_the_window_stay_in_smaller_tiles() -> None:
    class Doubling(Local):
        def forward(self, image: Tensor) -> Tensor:
            assert image.shape[-1] % 7 == 0
            return super().forward(image).repeat_interleave(2, -1).repeat_interleave(2, -2)

    network, image = Doubling(35 * 35), torch.rand(1, 3, 70, 84)
    restored = WithinMemory()(PlainRestorer(network, Inference(scale=2, multiple=7)), image, "a")
    expected = image * 0.5 + image.square()
    torch.testing.assert_close(restored, expected.repeat_interleave(2, -1).repeat_interleave(2, -2))


@pytest.mark.slow
def test_a_diffusion_network_takes_smaller_tiles_too() -> None:
    class Denoiser(nn.Module):
        multiple, smallest = 2, 4
        most = 10**9

        def condition(self, lq: Tensor) -> Tensor:
            return lq.repeat_interleave(4, -2).repeat_interleave(4, -1)

        def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor) -> Tensor:
            if x_t.shape[-1] * x_t.shape[-2] > self.most:
                raise CUDA
            return 0.9 * x_t + 0.05 * condition + 0.02 * lq_up

    network, lq = Denoiser(), torch.rand(1, 3, 22, 40)
    restorer = DiffusionRestorer(network, Process(cosine_schedule(20)), 4, Sampling("ddim", 3))
    whole = WithinMemory()(restorer, lq, "a")
    network.most = 70 * 70
    torch.testing.assert_close(WithinMemory()(restorer, lq, "a"), whole, atol=2e-5, rtol=0)
    network.most = 0
    with pytest.raises(ImageTooLargeError, match="--tile"):
        WithinMemory()(restorer, lq, "a")


def test_a_size_that_the_network_refuses_is_named_and_a_device_at_fault_is_a_bug() -> None:
    image = torch.rand(1, 3, 3, 5)
    small = RuntimeError("Padding size should be less than the corresponding input dimension")
    with pytest.raises(UserError, match=r"Local cannot restore an image of 3x5 pixels \(Padding size"):
        WithinMemory()(PlainRestorer(Local(0, small), Inference()), image, "a")
    for error in (RuntimeError("CUDA error: device-side assert triggered"), NotImplementedError("conv")):
        with pytest.raises(type(error)) as raised:
            WithinMemory()(PlainRestorer(Local(0, error), Inference()), image, "a")
        assert raised.value is error


def test_restored_arrays_come_from_tiles_as_well(caplog: pytest.LogCaptureFixture) -> None:
    restorer = ImageRestorer(PlainRestorer(Local(32 * 32), Inference()), torch.device("cpu"), 3)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    whole = ImageRestorer(PlainRestorer(Local(10**6), Inference()), torch.device("cpu"), 3)
    with caplog.at_level(logging.WARNING):
        assert np.abs(restorer(image, "a").astype(int) - whole(image, "a")).max() <= 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (CUDA, True),
        (CPU, True),
        (MemoryError(), True),
        (np.exceptions.AxisError("x"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_kind_of_memory_error_is_known(error: Exception, known: bool) -> None:
    assert out_of_memory(error) is known


def test_the_memory_errors_of_opencv_and_numpy_are_known() -> None:
    with pytest.raises(MemoryError) as of_numpy:
        np.empty((1 << 24, 1 << 24))
    assert out_of_memory(of_numpy.value)
    with pytest.raises(cv2.error) as of_opencv:
        cv2.resize(np.zeros((2, 2), np.uint8), (1 << 30, 1 << 30))
    assert out_of_memory(of_opencv.value) is ("Insufficient memory" in str(of_opencv.value))
    assert not out_of_memory(cv2.error("another fault"))
