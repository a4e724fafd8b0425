"""Size rules: padding and cropping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.archs.size import SizeRule, pad, unpad

SIDES = st.integers(1, 65)


@settings(max_examples=60, deadline=None)
@given(h=SIDES, w=SIDES, log2=st.integers(0, 5), above=st.integers(0, 1), mode=st.sampled_from(["zeros", "reflect"]))
def test_padded_size_fits_and_crop_undoes_pad(h, w, log2, above, mode):
    rule = SizeRule(multiple=2**log2, minimum=2 ** (log2 + above), mode=mode)
    image = torch.rand(2, 3, h, w)
    padded = pad(image, rule)
    assert rule.fits(*padded.shape[-2:])
    assert torch.equal(unpad(padded, (h, w)), image)
    assert (padded.shape == image.shape) == rule.fits(h, w)


def test_reflection_does_not_repeat_the_edge_and_replicates_where_too_short():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    padded = pad(image, SizeRule(multiple=4, mode="reflect"))[0, 0]
    assert padded.tolist() == [[0, 1, 2, 1], [3, 4, 5, 4], [3, 4, 5, 4], [3, 4, 5, 4]]


def test_one_long_side_reaches_the_minimum_but_padding_goes_all_the_way():
    rule = SizeRule(multiple=16, minimum=32, mode="reflect")
    assert rule.padded(16, 32) == (16, 32)
    assert rule.padded(16, 16) == rule.padded(16, 20) == rule.padded(1, 1) == (32, 32)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(b, c, h, w\)"):
        pad(torch.zeros(shape), SizeRule())
