"""Tiles, padding and self-ensemble."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam4ir.engine.restore.one_pass import Inference, starts


def local(image: Tensor) -> Tensor:
    """A network that looks at one pixel only: tiles cannot change it."""
    return image * 0.5 + image.square()


def blur(image: Tensor) -> Tensor:
    kernel = torch.ones(3, 1, 5, 5) / 25
    return torch.nn.functional.conv2d(image, kernel, padding=2, groups=3)


def doubled(image: Tensor) -> Tensor:
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 200), tile=st.integers(2, 64), overlap=st.integers(0, 63))
def test_tiles_cover_a_side_and_share_at_least_the_overlap(length: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile - 1)
    first = starts(length, tile, overlap)
    assert first[0] == 0
    assert length <= tile or first[-1] + tile == length
    assert all(0 < b - a <= tile - overlap for a, b in itertools.pairwise(first))


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 50), w=st.integers(1, 50), tile=st.integers(4, 24), batch=st.integers(1, 5))
def test_tiling_does_not_change_a_local_network(h: int, w: int, tile: int, batch: int) -> None:
    image = torch.rand(1, 3, h, w)
    tiled = Inference(tile=tile, overlap=tile // 3, batch=batch)(local, image)
    torch.testing.assert_close(tiled, local(image))


def test_tiles_inside_agree_with_the_whole_image_where_the_overlap_spans_the_network() -> None:
    image = torch.rand(1, 3, 64, 80)
    tiled, whole = Inference(tile=32, overlap=16)(blur, image), blur(image)
    assert (tiled - whole).abs().max() < (Inference(tile=32, overlap=0)(blur, image) - whole).abs().max() / 3


def test_tiles_of_a_network_that_enlarges() -> None:
    image = torch.rand(1, 3, 30, 41)
    torch.testing.assert_close(Inference(tile=16, overlap=4, scale=2)(doubled, image), doubled(image))


def test_padding_to_a_multiple_is_cut_off_again() -> None:
    seen = []

    def network(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape[-2:]))
        return image

    image = torch.rand(1, 3, 9, 3)
    assert torch.equal(Inference(multiple=8)(network, image), image)
    assert seen == [(16, 8)]


@pytest.mark.parametrize("network", [local, blur, doubled])
def test_self_ensemble_keeps_a_network_that_commutes_with_flips(network) -> None:
    image = torch.rand(1, 3, 12, 17)
    scale = 2 if network is doubled else 1
    torch.testing.assert_close(Inference(self_ensemble=True, scale=scale)(network, image), network(image))


def test_self_ensemble_averages_eight_views() -> None:
    image = torch.rand(1, 3, 6, 9)
    seen = []

    def network(view: Tensor) -> Tensor:
        seen.append(view.clone())
        return view

    Inference(self_ensemble=True)(network, image)
    assert len(seen) == 8
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i] if a.shape == b.shape)


def official_tiles(length: int, crop: int, scale: int) -> list[int]:
    """The first pixels of HINet's and NAFNet's tiles, by their loop, with sides in pixels of the output."""
    length, crop, begins, i = length * scale, crop * scale, [], 0
    rows = (length - 1) // crop + 1
    step = crop if rows == 1 else math.ceil((length - crop) / (rows - 1) - 1e-8) // scale * scale
    while True:
        if i + crop >= length:
            return [*begins, (length - crop) // scale]
        begins.append(i // scale)
        i += step


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 300), tile=st.integers(1, 64), scale=st.sampled_from([1, 2, 4]))
def test_tiles_without_overlap_begin_where_those_of_hinet_and_nafnet_do(length: int, tile: int, scale: int) -> None:
    assume(length > tile)
    assert starts(length, tile, 0, scale) == official_tiles(length, tile, scale)


def test_steps_of_hinets_tiles_are_rounded_up() -> None:
    assert starts(200, 64, 0) == [0, 46, 92, 136]  # 136 / 3 = 45.3


def normed(image: Tensor) -> Tensor:
    """A network that depends on the whole of what it sees, as HINet's norms do."""
    return (image - image.mean((2, 3), keepdim=True)) / image.std((2, 3), keepdim=True)


@pytest.mark.parametrize("turns", [1, 8])
def test_without_overlap_pixels_are_the_plain_mean_over_the_tiles_and_their_turns(turns: int) -> None:
    image = torch.rand(1, 3, 50, 67)
    total, count = torch.zeros_like(image), torch.zeros(50, 67)
    for i, j in itertools.product(official_tiles(50, 24, 1), official_tiles(67, 24, 1)):
        for turn in range(turns):  # HINet: transpose and transpose_inverse, trans_num of them for each tile
            tile = image[..., i : i + 24, j : j + 24]
            tile = torch.rot90(tile.flip(3) if turn >= 4 else tile, turn % 4, [2, 3])
            back = torch.rot90(normed(tile), 4 - turn % 4, [2, 3])
            total[..., i : i + 24, j : j + 24] += back.flip(3) if turn >= 4 else back
            count[i : i + 24, j : j + 24] += 1
    tiled = Inference(tile=24, overlap=0, batch=4, self_ensemble=turns == 8)(normed, image)
    torch.testing.assert_close(tiled, total / count)
