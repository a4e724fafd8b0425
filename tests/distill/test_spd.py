"""SPD: the gate by its definition, zero at equality, gradient to the student alone."""

import itertools
import math

import pytest
import torch

from sam4ir.distill import pool
from sam4ir.distill.lesson import Lesson
from sam4ir.distill.spd import CRITERIA, GATES, SemanticPriorsDistillation


def lesson(student, *, refined, gt, labels, count):
    """What SPD sees of a micro-batch."""
    return Lesson(student, refined, gt, gt, labels, count, {})


ALL = list(itertools.product(CRITERIA, GATES))


def images(seed=0, b=2, h=7, w=6, count=3):
    """student, refined, gt, labels; each of student and refined is the better one somewhere."""
    g = torch.Generator().manual_seed(seed)
    student, refined, gt = torch.rand(3, b, 3, h, w, generator=g)
    return student, refined, gt, torch.randint(0, count + 1, (b, h, w), generator=g)


def looped_gate(gate, student, refined, gt, labels):
    """(b, h, w) float64 by the words of docs/method.md#spd."""
    b, _, h, w = student.shape
    ours, theirs = (((image - gt).double() ** 2).sum(1).flatten(1).tolist() for image in (student, refined))
    result = torch.zeros(b, h * w, dtype=torch.float64)
    for i in range(b):
        flat = labels[i].flatten().tolist()
        for p in range(h * w):
            members = {"none": [], "pixel": [p], "region": [q for q in range(h * w) if flat[q] == flat[p]]}[gate]
            better = sum(theirs[i][q] for q in members) < sum(ours[i][q] for q in members)
            result[i, p] = gate == "none" or better
    return result.view(b, h, w)


def looped_loss(criterion, gate, student, target, refined, gt, labels):
    open_ = looped_gate(gate, student, refined, gt, labels).unsqueeze(1)
    d = student.double() - target.double()
    if criterion == "l1":
        return (open_ * d.abs()).sum() / d.numel()
    if criterion == "charbonnier":
        return (open_ * (d**2 + 1e-2**2) ** 0.5).sum() / d.numel()
    return sum(10 * math.log10((open_[i] * d[i] ** 2).sum() / d[i].numel() + 1e-4) for i in range(len(d))) / len(d)


@pytest.fixture(params=[2**26, -1], ids=["matmul", "index"], name="both_ways")
def _both_ways_of_summing(request, monkeypatch):
    monkeypatch.setattr(pool, "MATMUL_LIMIT", request.param)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("criterion", "gate"), ALL)
@pytest.mark.parametrize("target_is", ["refined", "gt"])
def test_the_value_is_the_one_of_a_loop_over_pixels(criterion, gate, target_is):
    student, refined, gt, labels = images()
    target = refined if target_is == "refined" else gt
    got = SemanticPriorsDistillation(criterion, gate)(
        target, lesson(student, refined=refined, gt=gt, labels=labels, count=3)
    )
    assert got.shape == ()
    assert got.item() == pytest.approx(
        float(looped_loss(criterion, gate, student, target, refined, gt, labels)), rel=1e-5
    )


def test_only_regions_where_the_refiner_is_better_teach_and_the_rest_is_one_more():
    gt = torch.zeros(1, 3, 1, 4)
    student = torch.full_like(gt, 0.5)
    refined = torch.tensor([0.4, 0.6, 0.4, 0.6]).expand(1, 3, 1, 4)
    labels = torch.tensor([[[0, 1, 2, 2]]])  # rest: better; 1: worse; 2: 0.16 + 0.36 > 0.25 + 0.25, worse
    spd = SemanticPriorsDistillation("l1", "region")
    assert spd.open_gate(student, refined, gt, labels, 2).flatten().tolist() == [1, 0, 0, 0]
    loss = spd(refined, lesson(student, refined=refined, gt=gt, labels=labels, count=2))
    assert loss.item() == pytest.approx(0.1 / 4)  # divided by all pixels, open or not


def test_the_channels_of_a_pixel_are_judged_together():
    gt, student = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
    refined = torch.tensor([0.0, 0.0, 0.8]).view(1, 3, 1, 1)  # worse in one channel, better in sum
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    assert SemanticPriorsDistillation("charbonnier", "pixel").open_gate(student, refined, gt, labels, 0).item() == 1


@pytest.mark.parametrize("gate", GATES)
def test_a_refiner_no_better_anywhere_teaches_only_without_a_gate(gate):
    student, _, gt, labels = images()
    refined = gt + 2 * (student - gt)
    loss = SemanticPriorsDistillation("l1", gate)(
        refined, lesson(student, refined=refined, gt=gt, labels=labels, count=3)
    )
    assert (loss.item() > 0) == (gate == "none")


@pytest.mark.parametrize("gate", ["region", "pixel"])
def test_a_refiner_as_good_as_the_student_does_not_teach(gate):
    student, _, gt, labels = images()
    spd = SemanticPriorsDistillation("l1", gate)
    assert spd(gt, lesson(student, refined=student.clone(), gt=gt, labels=labels, count=3)).item() == 0


@pytest.mark.parametrize(("criterion", "gate"), ALL)
@pytest.mark.parametrize("better", [False, True])
def test_gradient_is_zero_where_the_student_equals_the_teacher(criterion, gate, better):
    student, refined, gt, labels = images()
    judged = gt if better else refined  # an open gate everywhere, or by chance
    student.requires_grad_()
    target = student.detach().clone()
    loss = SemanticPriorsDistillation(criterion, gate)(
        target, lesson(student, refined=judged, gt=gt, labels=labels, count=3)
    )
    loss.backward()
    assert student.grad.abs().max() == 0
    if criterion == "l1":
        assert loss.item() == 0


@pytest.mark.parametrize(("criterion", "gate"), ALL)
def test_gradient_reaches_the_student_alone(criterion, gate):
    student, refined, gt, labels = images()
    for image in (student, refined, gt):
        image.requires_grad_()
    loss = SemanticPriorsDistillation(criterion, gate)(
        refined, lesson(student, refined=refined, gt=gt, labels=labels, count=3)
    )
    loss.backward()
    assert student.grad.abs().max() > 0
    assert refined.grad is None
    assert gt.grad is None
    closed = looped_gate(gate, student, refined, gt, labels) == 0
    assert student.grad.permute(0, 2, 3, 1)[closed].abs().sum() == 0


@pytest.mark.parametrize(("criterion", "gate"), ALL)
def test_numbering_and_empty_regions_do_not_matter(criterion, gate):
    student, refined, gt, labels = images()
    spd = SemanticPriorsDistillation(criterion, gate)
    loss = spd(refined, lesson(student, refined=refined, gt=gt, labels=labels, count=3))
    relabelled = torch.tensor([0, 5, 2, 8])[labels]
    other = spd(refined, lesson(student, refined=refined, gt=gt, labels=relabelled, count=9))
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(("criterion", "gate"), ALL)
@pytest.mark.parametrize("case", ["noise", "constant", "one pixel", "all covering"])
def test_values_and_gradients_stay_finite_in_bf16(criterion, gate, case):
    student, refined, gt, labels = images()
    if case == "constant":
        student, refined, gt = (torch.full_like(student, v) for v in (0.5, 0.25, 0.25))
    elif case == "one pixel":
        labels = torch.zeros_like(labels)
        labels[:, 0, 0] = 3
    elif case == "all covering":
        labels = torch.full_like(labels, 3)
    student = student.bfloat16().requires_grad_()
    spd = SemanticPriorsDistillation(criterion, gate)
    with torch.autocast("cpu", torch.bfloat16):
        half = refined.bfloat16()
        loss = spd(half, lesson(student, refined=half, gt=gt, labels=labels, count=3))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_the_pull_of_the_psnr_criterion_is_bounded_near_equality():
    gt, labels = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)

    def pull(rmse):
        student = torch.full_like(gt, rmse).requires_grad_()
        SemanticPriorsDistillation("psnr", "none")(
            gt, lesson(student, refined=gt, gt=gt, labels=labels, count=0)
        ).backward()
        return student.grad.norm().item()

    assert pull(1e-2) > pull(1e-3) > pull(1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"criterion": "l2"}, "'l2'.*charbonnier"), ({"gate": "mask"}, "'mask'.*region")]
)
def test_unknown_criteria_and_gates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemanticPriorsDistillation(**arguments)
