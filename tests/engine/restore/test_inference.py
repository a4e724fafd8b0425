"""Tiles, padding and self-ensemble."""

import itertools

import pytest
import torch
from hypothesis import given, settings
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


def first_column(image: Tensor) -> Tensor:
    """A network that gives a tile the value of its first column everywhere."""
    return image[..., :1].expand_as(image)


@pytest.mark.parametrize("overlap", [1, 3, 5])
@pytest.mark.parametrize("scale", [1, 2])
def test_two_tiles_are_blended_on_a_line_over_all_pixels_that_they_share(overlap: int, scale: int) -> None:
    tile, shift = 12, 12 - overlap
    columns = torch.arange(float(tile + shift)).expand(1, 3, 4, -1)  # the tiles give 0 and `shift`

    def network(image: Tensor) -> Tensor:
        return first_column(image).repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    restored = Inference(tile=tile, overlap=overlap, scale=scale)(network, columns)
    shared = overlap * scale
    share = torch.arange(1, shared + 1) / (shared + 1)  # of the right tile: 1/4, 2/4, 3/4 over three pixels
    apart = torch.zeros(shift * scale)
    expected = torch.cat([apart, share, apart + 1]) * shift
    torch.testing.assert_close(restored, expected.expand_as(restored))
    turned = Inference(tile=tile, overlap=overlap, scale=scale)(lambda x: network(x.mT).mT, columns.mT)
    torch.testing.assert_close(turned.mT, restored)


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
