"""Tiles, padding and self-ensemble."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam4ir.engine.restore.one_pass import Inference, enlarged, padded, starts


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


def test_tiles_are_as_few_as_possible_and_evenly_spread() -> None:
    assert starts(8, 8, 2) == [0]
    assert starts(9, 8, 2) == [0, 1]
    assert starts(21, 8, 2) == [0, 4, 9, 13]  # thirds of 13: 4.33 and 8.67
    assert starts(20, 8, 2) == [0, 6, 12]
    assert starts(24, 8, 0) == [0, 8, 16]


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


def test_tiles_that_share_more_than_the_overlap_are_even_beyond_its_ramp() -> None:
    columns = torch.arange(20.0).expand(1, 3, 4, -1)  # tiles at 0 and 8, which share four columns
    restored = Inference(tile=12, overlap=1)(first_column, columns)
    # weights of the left tile over the four columns are 2, 2, 2, 1, of the right one 1, 2, 2, 2
    shares = torch.tensor([1 / 3, 1 / 2, 1 / 2, 2 / 3])
    expected = torch.cat([torch.zeros(8), 8 * shares, torch.full((8,), 8.0)])
    torch.testing.assert_close(restored, expected.expand_as(restored))


def test_tiles_are_given_in_groups_in_rows_from_the_top() -> None:
    image = torch.arange(20.0).view(1, 1, 4, 5)
    corners: list[list[float]] = []

    def network(tiles: Tensor) -> Tensor:
        corners.append(tiles[:, 0, 0, 0].tolist())
        return tiles

    assert torch.equal(Inference(tile=2, overlap=0, batch=4)(network, image), image)
    # rows start at 0 and 2, columns at 0, 2 (of 1.5, to even) and 3
    assert corners == [[0, 2, 3, 10], [12, 13]]


def test_the_area_of_a_tile_grows_with_the_scale() -> None:
    assert enlarged((slice(2, 5), slice(1, 4)), 3) == (slice(6, 15), slice(3, 12))


def test_an_image_of_the_size_of_a_tile_goes_through_whole() -> None:
    sizes: list[tuple[int, ...]] = []

    def network(image: Tensor) -> Tensor:
        sizes.append(tuple(image.shape))
        return image

    for height, width in ((8, 8), (8, 3), (9, 8)):
        Inference(tile=8, overlap=2, batch=1)(network, torch.zeros(1, 3, height, width))
    assert sizes == [(1, 3, 8, 8), (1, 3, 8, 3), (1, 3, 8, 8), (1, 3, 8, 8)]


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


@pytest.mark.parametrize(
    ("row", "multiple", "least", "expected"),
    [
        ([1, 2, 3], 1, 0, [1, 2, 3]),
        ([1, 2, 3], 3, 3, [1, 2, 3]),
        ([1, 2, 3], 5, 0, [1, 2, 3, 2, 1]),  # mirrored without its last pixel
        ([1, 2, 3], 1, 4, [1, 2, 3, 2]),
        ([1, 2, 3], 4, 5, [1, 2, 3, 2, 1]),
        ([1, 2, 3], 6, 0, [1, 2, 3, 3, 3, 3]),  # too few pixels to mirror
        ([1], 4, 0, [1, 1, 1, 1]),
    ],
)
def test_images_are_mirrored_to_a_multiple_and_a_least_side(
    row: list[int], multiple: int, least: int, expected: list[int]
) -> None:
    image = torch.tensor(row, dtype=torch.float32).expand(1, 1, len(row), len(row))
    result = padded(image, multiple, least)
    assert result.shape == (1, 1, len(expected), len(expected))
    assert result[0, 0, 0].tolist() == result[0, 0, -1].tolist() == expected
    assert padded(image.mT, multiple, least)[0, 0, :, 0].tolist() == expected


def test_a_side_that_is_too_short_to_mirror_repeats_its_edge() -> None:
    image = torch.tensor([[1.0, 2, 3, 4]]).repeat(3, 1).view(1, 1, 3, 4)
    rows, columns = padded(image, 5), padded(image.mT, 5)  # one side is mirrored, the other would be as well
    assert rows[0, 0, 0].tolist() == columns[0, 0, :, 0].tolist() == [1, 2, 3, 4, 3]
    image = image[..., :2, :]
    for wide in (padded(image, 4), padded(image, 1, 4)):  # two rows more, where there are two
        assert wide[0, 0, :, 3].tolist() == [4, 4, 4, 4]
    assert padded(image.mT, 4)[0, 0, 3].tolist() == [4, 4, 4, 4]
    image = torch.arange(12.0).view(1, 1, 2, 6)
    assert padded(image, 4)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5]  # and then the columns repeat theirs too
    assert padded(image, 4)[0, 0, 2].tolist() == [6, 7, 8, 9, 10, 11, 11, 11]


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

    weight = torch.ones((), requires_grad=True)
    assert not Inference(self_ensemble=True)(lambda view: weight * network(view), image).requires_grad
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
