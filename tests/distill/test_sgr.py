"""SGR against a loop in float64, and what it must not depend on."""

import pytest
import torch
import torch.nn.functional as F

from sam4ir.distill.lesson import Lesson
from sam4ir.distill.sgr import SemanticGuidedRelation, prototypes, relation_distance
from sam4ir.priors.features import VGGFeatures

STRIDES = {"fine": 1, "coarse": 4}


def analyser(image):
    """Two layers of random, fixed features; relu as VGG, so that dark images give zeros."""
    g = torch.Generator().manual_seed(0)
    fine = F.relu(F.conv2d(image, torch.randn(5, 3, 3, 3, generator=g).to(image), padding=1))
    coarse = F.relu(F.conv2d(F.avg_pool2d(fine, 4), torch.randn(7, 5, 1, 1, generator=g).to(image)))
    return {"fine": fine, "coarse": coarse}


class Frozen:
    """A function of images as the analyser that SGR builds."""

    def __init__(self, features, strides):
        self.features, self.strides = features, strides

    def __call__(self, image):
        return self.features(image)


def sgr_of(features, strides, **arguments):
    """SGR with these features, called with (student, target, labels, region count)."""
    term = SemanticGuidedRelation(lambda variant, layers, weights: Frozen(features, strides), **arguments)

    def loss(student, target, labels, count):
        return term(target, Lesson(student, target, target, target, labels, count, {}))

    return loss


def relation(min_cells=4.0, **arguments):
    return sgr_of(analyser, STRIDES, min_cells=min_cells, **arguments)


def images(seed=0, b=3, h=18, w=21, count=5):
    """student, target, labels of blocks; the last image has two regions, the fifth region is one pixel."""
    g = torch.Generator().manual_seed(seed)
    student, target = torch.rand(2, b, 3, h, w, generator=g)
    labels = torch.randint(0, count, (b, -(-h // 5), -(-w // 5)), generator=g)
    labels = labels.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, :h, :w].contiguous()
    labels[-1].clamp_(max=2)
    labels[0, 0, 0] = count
    return student, target, labels


def looped(student, target, labels, min_cells):
    """Mean over images and layers, region by region and cell by cell, float64."""
    values = []
    ours, theirs = analyser(student.double()), analyser(target.double())
    for name, stride in STRIDES.items():
        for i in range(len(student)):
            h, w = ours[name].shape[-2:]
            prototypes = []
            for region in range(1, int(labels.max()) + 1):
                inside = (labels[i, : h * stride, : w * stride] == region).double()
                coverage = inside.view(h, stride, w, stride).mean((1, 3))
                if coverage.sum() < min_cells:
                    continue
                means = [(f[name][i] * coverage).sum((1, 2)) / coverage.sum() for f in (ours, theirs)]
                prototypes.append([m / max(m.norm().item(), 1e-6) for m in means])
            pairs = [(p, q) for k, p in enumerate(prototypes) for m, q in enumerate(prototypes) if k != m]
            distance = [abs((p[0] @ q[0]) - (p[1] @ q[1])).item() for p, q in pairs]
            values.append(sum(distance) / len(distance) if distance else 0.0)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("min_cells", [0.5, 4.0, 30.0, 1e6])
def test_the_value_is_the_one_of_a_loop_over_images_layers_and_regions(seed, min_cells):
    student, target, labels = images(seed)
    got = relation(min_cells)(student, target, labels, 5)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(looped(student, target, labels, min_cells), rel=2e-4, abs=1e-7)
    assert (got.item() == 0) == (min_cells == 1e6)


def test_the_distance_of_relations_is_the_mean_over_valid_pairs_and_then_over_images():
    student = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]).repeat(3, 1, 1)
    target = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).repeat(3, 1, 1)
    # pairs (0 1), (0 2), (1 2): student 0, 0.6, 0.8; target 1, 0, 0
    valid = torch.tensor([[True, True, True], [True, True, False], [False, False, True]])
    distance = relation_distance(student, target, valid)
    assert distance.shape == ()
    assert distance.item() == pytest.approx(((1 + 0.6 + 0.8) / 3 + 1 + 0) / 3)


def test_a_prototype_is_the_weighted_mean_of_unit_length():
    features = torch.tensor([[3.0, 1, 0, 5], [4.0, 2, 0, 5]]).view(1, 2, 2, 2)
    weights = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]])
    expected = torch.tensor([[2 / 13**0.5, 3 / 13**0.5], [0, 0], [0, 0]])  # of the means (2, 3), 0 and 0
    torch.testing.assert_close(prototypes(features, weights)[0], expected)
    faint = prototypes(features * 1e-7, weights)[0, 0]  # shorter than 1e-6: divided by 1e-6
    torch.testing.assert_close(faint, torch.tensor([0.2, 0.3]))


def test_a_small_region_is_dropped_for_both_images():
    student, target, labels = images(b=1)
    without = torch.where(labels == 5, 0, labels)
    dark = target.clone()
    dark[0, :, 0, 0] = 0  # the one-pixel region looks different, and is too small to count
    flat = sgr_of(lambda image: {"pixel": image + 1e-3}, {"pixel": 1}, min_cells=4)
    for a, b in ((student, dark), (dark, student)):
        torch.testing.assert_close(flat(a, b, labels, 5), flat(a, b, without, 5))
    whole = sgr_of(lambda image: {"pixel": image + 1e-3}, {"pixel": 1}, min_cells=1)
    assert not torch.allclose(whole(student, dark, labels, 5), whole(student, dark, without, 5))


def test_min_cells_counts_cells_of_the_layer_and_the_limit_itself_counts():
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[:, :8, :8], labels[:, 8:, 8:] = 1, 2  # 4 cells of stride 4 each
    student, target, _ = images(b=1, h=16, w=16)
    coarse = lambda image: {"coarse": analyser(image)["coarse"]}  # noqa: E731
    assert sgr_of(coarse, STRIDES, min_cells=4)(student, target, labels, 2) > 0
    assert sgr_of(coarse, STRIDES, min_cells=4.01)(student, target, labels, 2) == 0


def test_equal_images_give_zero_with_gradient_zero():
    student, _, labels = images()
    student.requires_grad_()
    loss = relation()(student, student.detach().clone(), labels, 5)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


def test_gradient_reaches_the_student_alone():
    student, target, labels = images()
    student.requires_grad_()
    target.requires_grad_()
    relation()(student, target, labels, 5).backward()
    assert student.grad.abs().max() > 0
    assert target.grad is None


def test_gradient_equals_finite_differences():
    student, target, labels = images(b=1, h=8, w=8)
    labels = torch.arange(64).view(1, 8, 8) // 16 + 1
    step = torch.rand(student.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    sgr = sgr_of(lambda image: {"pixel": image}, {"pixel": 1})
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(sgr(student, target, labels, 4), student)
    with torch.no_grad():
        ends = [sgr(student + s * 1e-2 * step, target, labels, 4).item() for s in (1, -1)]
    assert (gradient * step).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("min_cells", [0.0, 4.0])
def test_numbering_and_empty_regions_do_not_matter(min_cells):
    student, target, labels = images()
    loss = relation(min_cells)(student, target, labels, 5)
    renumbered = torch.tensor([0, 7, 2, 9, 1, 4])[labels]
    assert relation(min_cells)(student, target, renumbered, 12).item() == pytest.approx(loss.item(), rel=1e-5)


def test_scaling_the_features_of_an_image_does_not_matter():
    student, target, labels = images()
    plain = sgr_of(lambda image: {"pixel": image}, {"pixel": 1})
    expected = plain(student, target, labels, 5).item()
    assert plain(3 * student, target, labels, 5).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_regions_are_zero_without_looking_at_the_images(count):
    def never(image):
        raise AssertionError("features of an image without relations")

    student, target, labels = images()
    loss = sgr_of(never, STRIDES)(student, target, labels.clamp(max=count), count)
    assert loss.item() == 0
    assert loss.shape == ()


def test_an_image_without_relations_counts_as_zero_in_the_mean():
    student, target, labels = images(b=1)
    alone = relation()(student, target, labels, 5)
    both = torch.cat([labels, torch.zeros_like(labels)])
    twice = relation()(student.repeat(2, 1, 1, 1), target.repeat(2, 1, 1, 1), both, 5)
    assert twice.item() == pytest.approx(alone.item() / 2, rel=1e-4)  # sums of another order on some CPUs: 3e-5


@pytest.mark.parametrize("case", ["black", "constant", "one-pixel masks", "all-covering mask", "noise"])
@pytest.mark.parametrize("precision", ["fp32", "own bf16", "autocast"])
def test_values_and_gradients_stay_finite(case, precision):
    student, target, labels = images()
    if case == "black":
        student = torch.zeros_like(student)
    elif case == "constant":
        student, target = torch.full_like(student, 0.5), torch.full_like(student, 0.25)
    elif case == "one-pixel masks":
        labels = torch.zeros_like(labels)
        labels[:, 0, 0], labels[:, 9, 9] = 1, 2
    elif case == "all-covering mask":
        labels = torch.ones_like(labels)
    student.requires_grad_()
    sgr = relation(min_cells=0.01, bf16=precision == "own bf16")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        loss = sgr(student, target, labels, 5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_bf16_features_give_nearly_the_value_of_fp32():
    student, target, labels = images()
    expected = relation()(student, target, labels, 5).item()
    assert relation(bf16=True)(student, target, labels, 5).item() == pytest.approx(expected, rel=0.1)


def test_vgg_features_relate_regions():
    vgg = VGGFeatures(layers=("relu1_2", "relu2_2", "relu3_3"), weights="random")
    sgr = sgr_of(vgg, vgg.strides)
    student, target, labels = images(b=2, h=33, w=38)
    student.requires_grad_()
    loss = sgr(student, target, labels, 5)
    loss.backward()
    assert loss.item() > 0
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0
    assert all(p.grad is None for p in vgg.parameters())
    with torch.no_grad():
        assert sgr(target, target, labels, 5).item() == 0
