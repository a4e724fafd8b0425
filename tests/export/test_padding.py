"""The padding of exported graphs gives the pixels that the restore path gives, at every size."""

from __future__ import annotations

import itertools

import pytest
import torch

from sam4ir.archs.size import SizeRule, pad
from sam4ir.engine.restore.one_pass import padded
from sam4ir.export.padding import Padding

SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31)


def images():
    for h, w in itertools.product(SIDES, SIDES):
        yield torch.rand(2, 1, h, w)


@pytest.mark.parametrize(
    "rule",
    [
        SizeRule(),
        SizeRule(8),
        SizeRule(8, mode="reflect"),
        SizeRule(4, minimum=8, mode="reflect"),
        SizeRule(4, minimum=16, mode="reflect"),
        SizeRule(1, minimum=2, mode="reflect"),
    ],
)
def test_padding_of_a_rule_is_that_of_the_network(rule):
    padding = Padding.of_rule(rule)
    for image in images():
        assert torch.equal(padding(image), pad(image, rule))


@pytest.mark.parametrize(("multiple", "least"), [(2, 1), (4, 1), (4, 8), (3, 6)])
def test_padding_together_is_that_of_the_restore_path(multiple, least):
    padding = Padding(multiple, least=least, mode="together")
    for image in images():
        assert torch.equal(padding(image), padded(image, multiple, least))
