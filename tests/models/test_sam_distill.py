"""Student, refiner and terms together: who learns from what, when, and how hard."""

import copy

import pytest
import torch
from torch import nn

from sam4ir.archs.nafnet import NAFNet
from sam4ir.data.sample import Batch
from sam4ir.distill import balance
from sam4ir.distill.balance import TermWeight
from sam4ir.distill.lesson import Lesson
from sam4ir.distill.segments import own_segments
from sam4ir.distill.sgr import SemanticGuidedRelation
from sam4ir.distill.spd import SemanticPriorsDistillation
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.losses.pixel import L1Loss, MSELoss, PSNRLoss
from sam4ir.models.restoration import Reconstruction, Restoration, batch_psnr
from sam4ir.models.sam_distill import Refiner, SamDistill, Schedule, Term, gradient_norm


class Net(nn.Module):
    """A residual network with what depends on train and eval: batch normalisation and dropout."""

    def __init__(self, dropout=0.0, stages=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout))
        self.tail = nn.Conv2d(6, 3, 3, padding=1)
        self.stages = stages

    def forward(self, image):
        out = image + self.tail(self.body(image))
        return [image * 0.9, out] if self.stages else out


def batch(number=0, b=2, h=12, w=8, count=4):
    g = torch.Generator().manual_seed(number)
    gt = torch.rand(b, 3, h, w, generator=g)
    lq = gt + 0.2 * torch.randn(gt.shape, generator=g)
    labels = torch.randint(0, count + 1, (b, h // 4, w // 4), generator=g)
    regions = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return Batch(
        lq,
        gt,
        ["a"] * b,
        list(range(number * b, (number + 1) * b)),
        {"regions": regions},
        {"regions": int(regions.max())},
    )


def network(seed, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**arguments)


def refiner(seed=1, mask_dropout=0.0, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        spf = SemanticPriorsFusion(width=4, mask_dropout=mask_dropout)
        nn.init.normal_(spf.out.weight, std=0.05)
        return Refiner(spf, Net(**arguments))


def spd(target="refiner", fixed=None, share=0.3, criterion="l1", gate="none"):
    return Term(SemanticPriorsDistillation(criterion, gate), target, TermWeight(fixed, share))


class Pixels:
    """Features that are the pixels themselves."""

    strides = {"pixel": 1}  # noqa: RUF012

    def __call__(self, image):
        return {"pixel": image - 0.4}


def sgr(target="refiner", fixed=None, share=0.05, every=1):
    relation = SemanticGuidedRelation(lambda variant, layers, weights: Pixels())
    return Term(relation, target, TermWeight(fixed, share), every)


def model(**arguments):
    """A model; `loss` is that of student and refiner."""
    loss = arguments.pop("loss", PSNRLoss())
    terms = {"spd": arguments.pop("spd", spd()), "sgr": arguments.pop("sgr", sgr())}
    terms = {name: term for name, term in terms.items() if term is not None}
    built = {
        "student": network(0),
        "refiner": refiner(),
        "reconstruction": Reconstruction({"pix": loss}),
        "refinement": Reconstruction({"refine": loss}),
        "terms": terms,
        **arguments,
    }
    return SamDistill(**built)


def sgr_loss(m, student, target, data):
    """The SGR of a model on these images."""
    images = (student, target, data.gt, data.lq)
    return m.terms["sgr"].loss(target, Lesson(*images, data.regions, data.region_count, data.maps))


def step(m, data, iteration=1, measure=False):
    """The losses of a step of one micro-batch in one process."""
    result = m.losses(data, iteration, measure)
    m.end_step(lambda squares: squares)
    return result


def settled(iteration=1, **arguments):
    """A model after a step, whose weights so follow what it measured."""
    m = model(**arguments)
    step(m, batch(), iteration)
    return m


def gradients(net):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in net.parameters()])


def state_after(net, act):
    """Whether `act` changed any parameter or buffer of the network."""
    before = copy.deepcopy(net.state_dict())
    act()
    return any(not torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_term_that_returns_more_than_one_number_is_named():
    class PerImage(nn.Module):
        def forward(self, target, lesson):
            return (lesson.student - target).abs().mean(dim=(1, 2, 3))

    m = model(spd=None, sgr=Term(PerImage(), weight=TermWeight(1.0)))
    with pytest.raises(ValueError, match=r"term 'sgr' returned \(2,\); a term returns one number"):
        m.losses(batch(), 1, False)


# who learns from what


def test_the_refiners_loss_trains_the_refiner_and_its_fusion_alone():
    m = model()
    m.losses(batch(), 1, False).terms["refine"].backward()
    assert gradients(m.student).abs().max() == 0
    assert gradients(m.refiner.spf).abs().max() > 0
    assert gradients(m.refiner.network).abs().max() > 0


@pytest.mark.parametrize("term", ["pix", "spd", "sgr"])
def test_the_students_terms_train_the_student_alone(term):
    m = settled()
    m.losses(batch(), 1, False).terms[term].backward()
    assert gradients(m.student).abs().max() > 0
    assert gradients(m.refiner).abs().max() == 0


def test_a_term_that_stops_no_gradient_itself_does_not_teach_the_refiner():
    class Plain(nn.Module):
        def forward(self, target, lesson):
            return (lesson.student - target).square().mean()

    m = model(spd=None, sgr=Term(Plain(), weight=TermWeight(1.0)))
    m.losses(batch(), 1, False).terms["sgr"].backward()
    assert gradients(m.student).abs().max() > 0
    assert gradients(m.refiner).abs().max() == 0


@pytest.mark.parametrize("factor", [3.0, 1e-6])
def test_the_norm_of_a_gradient_is_its_length(factor):
    at = torch.ones(2, 8, requires_grad=True)
    assert gradient_norm(factor * at.sum(), at) == pytest.approx(factor * 4)
    assert gradient_norm(torch.ones(2, requires_grad=True).sum(), at) == 0
    assert gradient_norm(torch.ones(()), at) == 0


def train(m, steps, lr=1e-2):
    optimisers = [torch.optim.AdamW(net.parameters(), lr=lr) for net in m.networks.values()]
    for i in range(steps):
        loss = torch.stack(list(step(m, batch(i), i + 1).terms.values())).sum()
        loss.backward()
        for optimiser, net in zip(optimisers, m.networks.values(), strict=True):
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            optimiser.step()
            optimiser.zero_grad()


@pytest.mark.parametrize("kind", ["dropout", "stages", "NAFNet"])
def test_without_terms_the_student_is_bit_for_bit_the_plainly_trained_network(kind):
    if kind == "NAFNet":
        with torch.random.fork_rng():
            student = NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1])
    else:
        student = network(0, dropout=0.3, stages=kind == "stages")
    second = refiner(dropout=0.3, mask_dropout=0.5, stages=kind == "stages")
    plain = Restoration(copy.deepcopy(student), Reconstruction({"pix": PSNRLoss()}), seed=7)
    initial = copy.deepcopy(student.state_dict())
    train(plain, 5)
    train(model(student=student, refiner=second, spd=None, sgr=None, seed=7), 5)
    for name, value in plain.network.state_dict().items():
        assert torch.equal(student.state_dict()[name], value), name
        assert not torch.equal(initial[name], value), name


def test_the_terms_change_what_the_student_learns():
    with_terms, without = model(), model(spd=None, sgr=None)
    train(with_terms, 3)
    train(without, 3)
    assert not torch.equal(with_terms.student.tail.weight, without.student.tail.weight)


def test_the_loss_falls():
    m = model()
    first = m.losses(batch(), 1, True).measures
    train(m, 15, lr=5e-3)
    last = m.losses(batch(), 1, True).measures
    assert last["psnr"] > first["psnr"] + 1
    assert last["psnr_refiner"] > first["psnr_refiner"] + 1


# when


def test_joint_terms_begin_after_start_iter():
    m = model(schedule=Schedule(start_iter=3))
    names = {i: set(m.losses(batch(), i, False).terms) for i in (1, 3, 4)}
    assert names[1] == names[3] == {"pix", "refine"}
    assert names[4] == {"pix", "refine", "spd", "sgr"}
    assert all(m.active(i) == ("g", "r") for i in (1, 3, 4))


def test_two_phases_train_the_refiner_and_then_the_student():
    m = model(schedule=Schedule(refine_iter=2))
    terms = {i: set(m.losses(batch(), i, False).terms) for i in (1, 2, 3)}
    assert terms == {1: {"refine"}, 2: {"refine"}, 3: {"pix", "spd", "sgr"}}
    assert [m.active(i) for i in (1, 2, 3)] == [("r",), ("r",), ("g",)]


@pytest.mark.parametrize(("iteration", "learns", "rests"), [(1, "r", "g"), (3, "g", "r")])
def test_what_is_frozen_takes_no_gradient_and_keeps_its_statistics(iteration, learns, rests):
    m = model(
        student=network(0, dropout=0.5),
        refiner=refiner(dropout=0.5, mask_dropout=0.5),
        schedule=Schedule(refine_iter=2),
    )

    def step():
        torch.stack(list(m.losses(batch(), iteration, True).terms.values())).sum().backward()

    assert not state_after(m.networks[rests], step)
    assert state_after(m.networks[learns], step)
    assert gradients(m.networks[rests]).abs().max() == 0
    assert gradients(m.networks[learns]).abs().max() > 0


@pytest.mark.parametrize(("iteration", "rests", "measure"), [(1, "g", "psnr"), (3, "r", "psnr_refiner")])
def test_what_is_frozen_is_in_eval_mode_for_the_step_only(iteration, rests, measure):
    random = {"g": 0.5 * (rests == "g"), "r": 0.5 * (rests == "r")}
    m = model(
        student=network(0, dropout=random["g"]),
        refiner=refiner(dropout=random["r"], mask_dropout=random["r"]),
        schedule=Schedule(refine_iter=2),
    )
    m.networks[rests].get_submodule("network.body.1" if rests == "r" else "body.1").eval()
    modes = [module.training for net in m.networks.values() for module in net.modules()]
    values = set()
    for number in range(3):  # which seeds dropout
        data = batch()
        data.numbers = [number]
        values.add(m.losses(data, iteration, True).measures[measure])
    assert len(values) == 1
    assert [module.training for net in m.networks.values() for module in net.modules()] == modes


def test_the_refiners_randomness_is_a_function_of_seed_and_sample_number():
    def refined(seed, number):
        data = batch()
        data.numbers = [number]
        m = model(refiner=refiner(mask_dropout=0.5, dropout=0.5), spd=None, sgr=None, seed=seed)
        return m.losses(data, 1, False).terms["refine"].item()

    first = refined(0, 0)
    assert refined(0, 0) == first
    assert refined(0, 1) != first
    assert refined(1, 0) != first


def test_every_k_th_step_has_the_term_with_k_times_the_weight():
    data = batch()
    each = model(spd=None, sgr=sgr(fixed=0.5)).losses(data, 3, False).terms["sgr"]
    m = model(spd=None, sgr=sgr(fixed=0.5, every=3))
    terms = [m.losses(data, i, False).terms for i in range(1, 7)]
    assert ["sgr" in t for t in terms] == [False, False, True, False, False, True]
    torch.testing.assert_close(
        model(spd=None, sgr=sgr(fixed=0.5, every=3)).losses(data, 3, False).terms["sgr"], 3 * each
    )


def test_a_term_that_fades_counts_less_and_less_and_says_so():
    data = batch()
    term = sgr(fixed=0.5)
    term.fade = (4, 8)
    m = model(spd=None, sgr=term)
    whole = m.losses(data, 4, False).terms["sgr"]
    half = m.losses(data, 6, True)
    torch.testing.assert_close(half.terms["sgr"], whole / 2)
    assert half.measures["weight_sgr"] == 0.25
    assert m.losses(data, 8, False).terms["sgr"] == 0


def test_own_masks_are_segments_of_the_students_image():
    data = batch()
    seen = []
    m = model(spd=None, sgr=None, masks="own", student=network(0).eval())
    m.refiner.spf.register_forward_pre_hook(lambda spf, inputs: seen.append(inputs[1:3]))
    m.losses(data, 1, False)
    labels, count = seen[0]
    expected, most = own_segments(m.student(data.lq))
    assert torch.equal(labels, expected)
    assert count == most == int(labels.max())
    for image in labels:
        assert image.unique().tolist() == list(range(1, int(image.max()) + 1))


# what the target is


def test_ground_truth_as_target_compares_with_the_ground_truth():
    m, data = model(spd=spd("gt", fixed=1.0), sgr=sgr("gt", fixed=1.0), student=network(0).eval()), batch()
    terms = m.losses(data, 1, False).terms
    y1 = m.student(data.lq)
    torch.testing.assert_close(terms["spd"], (y1 - data.gt).abs().mean())
    torch.testing.assert_close(terms["sgr"], sgr_loss(m, y1, data.gt, data))


def test_the_refiners_image_is_the_target_by_default():
    m, data = model(student=network(0).eval(), refiner=refiner().eval(), spd=spd(fixed=2.0)), batch()
    y1 = m.student(data.lq)
    y2 = m.refiner(y1, data.regions, data.region_count, data.lq)
    torch.testing.assert_close(m.losses(data, 1, False).terms["spd"], 2 * (y1 - y2).abs().mean())


@pytest.mark.parametrize(("schedule", "iteration"), [(Schedule(), 1), (Schedule(refine_iter=2), 3)])
def test_a_given_teacher_teaches_in_eval_mode_and_without_gradient(schedule, iteration):
    teacher = refiner(9, dropout=0.5, mask_dropout=0.5).train()
    m = model(student=network(0).eval(), teacher=teacher, spd=spd(fixed=1.0), schedule=schedule)
    data = batch()
    result = []
    assert not state_after(teacher, lambda: result.append(m.losses(data, iteration, False)))
    with torch.no_grad():
        y1 = m.student(data.lq)
        expected = (y1 - teacher.eval()(y1, data.regions, data.region_count, data.lq)).abs().mean()
    torch.testing.assert_close(result[0].terms["spd"].detach(), expected)
    torch.stack(list(result[0].terms.values())).sum().backward()
    assert gradients(teacher).abs().max() == 0


def test_the_frozen_refiner_of_the_second_phase_is_the_teacher():
    m, data = model(student=network(0).eval(), teacher=refiner(9), schedule=Schedule(refine_iter=2)), batch()
    with torch.no_grad():
        y2 = m.teacher.eval()(m.student(data.lq), data.regions, data.region_count, data.lq)
    assert m.losses(data, 3, True).measures["psnr_refiner"] == pytest.approx(batch_psnr(y2, data.gt), abs=1e-3)


def test_a_teacher_is_not_asked_where_no_term_is_due():
    class Silent(nn.Module):
        def forward(self, *_):
            raise AssertionError("asked")

    m = model(teacher=Silent(), spd=None, sgr=sgr(every=2))
    assert "sgr" not in m.losses(batch(), 1, False).terms


def test_stage_outputs_are_summed_in_the_loss_and_the_last_is_distilled():
    m = model(
        student=network(0, stages=True).eval(),
        refiner=refiner(stages=True).eval(),
        loss=L1Loss(),
        spd=spd(fixed=1.0),
        sgr=sgr(fixed=1.0),
    )
    data = batch()
    terms, measures = m.losses(data, 1, True)
    first, y1 = m.student(data.lq)
    refined_first, y2 = m.refiner(y1, data.regions, data.region_count, data.lq)
    loss = L1Loss()
    torch.testing.assert_close(terms["pix"], loss(first, data.gt) + loss(y1, data.gt))
    torch.testing.assert_close(terms["refine"], loss(refined_first, data.gt) + loss(y2, data.gt))
    torch.testing.assert_close(terms["spd"], loss(y1, y2))
    torch.testing.assert_close(terms["sgr"], sgr_loss(m, y1, y2, data))
    assert measures["psnr"] == pytest.approx(batch_psnr(y1, data.gt))
    assert measures["psnr_refiner"] == pytest.approx(batch_psnr(y2, data.gt))


def test_shares_are_measured_against_the_sum_of_the_students_losses():
    losses = {"pix": L1Loss(), "mse": MSELoss(loss_weight=20.0)}
    several = {"reconstruction": Reconstruction(losses), "refinement": Reconstruction({"refine_mse": MSELoss()})}
    m, outputs = settled(**several), []
    m.student.register_forward_hook(lambda net, args, out: outputs.append(out))
    terms, measures = m.losses(batch(), 1, True)
    assert list(terms) == ["pix", "mse", "refine_mse", "spd", "sgr"]
    whole = gradient_norm(terms["pix"] + terms["mse"], outputs[0])
    assert whole > 1.2 * gradient_norm(terms["pix"], outputs[0])
    assert gradient_norm(terms["spd"], outputs[0]) / whole == pytest.approx(measures["share_spd"], rel=1e-4)
    assert measures["share_spd"] == pytest.approx(0.3)


# masks


def test_the_control_without_masks_does_not_look_at_the_regions():
    data, without = batch(), batch()
    without.maps, without.counts = {}, {}
    one, other = (model(masks="empty").losses(d, 1, False).terms for d in (data, without))
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in other.items()}
    assert one["sgr"].item() == 0
    with_masks = model().losses(data, 1, False).terms
    assert with_masks["refine"].item() != one["refine"].item()


def test_a_batch_with_fewer_than_two_regions_still_trains():
    data = batch()
    data.maps, data.counts = {"regions": data.regions.clamp(max=1)}, {"regions": 1}
    m = model()
    terms, measures = m.losses(data, 1, True)
    torch.stack(list(terms.values())).sum().backward()
    assert terms["sgr"].item() == 0
    assert measures["share_sgr"] == 0
    assert m.terms["sgr"].weight.batches == 0
    assert gradients(m.student).isfinite().all()


def test_missing_regions_are_refused_with_what_would_do():
    data = batch()
    data.maps = {}
    with pytest.raises(ValueError, match=r"masks\.store"):
        model().losses(data, 1, False)


def test_regions_of_another_size_are_refused():
    data = batch()
    data.maps = {"regions": data.regions[:, :6]}
    with pytest.raises(ValueError, match=r"\(6, 8\).*\(12, 8\)"):
        model().losses(data, 1, False)


# how hard


def test_the_share_is_the_asked_one_on_the_batch_that_set_it():
    m = settled(spd=spd(share=0.3), sgr=sgr(share=0.05))
    measures = m.losses(batch(), 1, True).measures
    assert measures.keys() == {"psnr", "psnr_refiner", "weight_spd", "share_spd", "weight_sgr", "share_sgr"}
    assert measures["share_spd"] == pytest.approx(0.3)
    assert measures["share_sgr"] == pytest.approx(0.05)
    assert measures["weight_spd"] > 1  # a mean L1 beside PSNRLoss pulls far too weakly by itself
    assert all(type(v) is float for v in measures.values())


@pytest.mark.parametrize("term", ["spd", "sgr"])
def test_the_share_is_that_of_the_gradients_at_the_students_image(term):
    m, seen = settled(), []
    m.student.register_forward_hook(lambda net, args, out: seen.append(out))
    terms, measures = m.losses(batch(), 1, True)
    share = gradient_norm(terms[term], seen[0]) / gradient_norm(terms["pix"], seen[0])
    assert share == pytest.approx(measures[f"share_{term}"], rel=1e-4)


def test_the_share_beside_a_reconstruction_without_a_pull_is_zero():
    data = batch()
    data.lq = data.gt.clone()
    m = model(student=nn.Conv2d(3, 3, 1, bias=False), loss=MSELoss(), spd=spd(fixed=1.0), sgr=None)
    with torch.no_grad():
        m.student.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    measures = m.losses(data, 1, True).measures
    assert (measures["weight_spd"], measures["share_spd"]) == (1.0, 0.0)


def test_weights_are_kept_after_their_batches_and_shares_logged_on(monkeypatch):
    monkeypatch.setattr(balance, "BATCHES", 3)
    m = model()
    for i in range(1, 4):
        step(m, batch(i), i)
    kept = m.state()
    measures = step(m, batch(5), 4, True).measures
    assert m.state() == kept
    assert measures["share_spd"] == pytest.approx(0.3, rel=0.5)
    assert measures["share_spd"] != pytest.approx(0.3, rel=1e-6)


def test_pulls_of_micro_batches_and_processes_make_the_weight_of_one_large_batch():
    whole, parts = model(student=nn.Conv2d(3, 3, 1)), model(student=nn.Conv2d(3, 3, 1))
    parts.student.load_state_dict(whole.student.state_dict())
    for m in (whole, parts):
        m.refiner.eval()  # its batch normalisation sees other batches
    large = batch(b=4)
    step(whole, large)
    for i in (0, 2):
        maps = {"regions": large.regions[i : i + 2]}
        small = Batch(large.lq[i : i + 2], large.gt[i : i + 2], ["a"] * 2, [i, i + 1], maps, {"regions": 4})
        parts.losses(small, 1, False)
    parts.end_step(lambda squares: squares)
    for name in ("spd", "sgr"):
        assert parts.terms[name].weight.value == pytest.approx(whole.terms[name].weight.value, rel=1e-4)
    other = model(student=whole.student)
    other.losses(large, 1, False)
    other.end_step(lambda squares: 4 * squares)  # what the processes' mean gives is what counts
    assert other.state()["spd"]["term"] == pytest.approx(2 * whole.state()["spd"]["term"])


def test_shares_are_logged_also_where_the_term_is_not_due_and_logging_changes_no_weight():
    m = settled(iteration=2, sgr=sgr(every=2))
    kept = m.state()["sgr"]
    terms, measures = step(m, batch(1), 3, True)
    assert "sgr" not in terms
    assert measures["share_sgr"] > 0
    assert m.state()["sgr"] == kept


def test_logging_does_not_change_training():
    logged, silent = (model(student=network(0, dropout=0.3), sgr=sgr(every=2)) for _ in range(2))
    for i in range(1, 4):
        one, other = step(logged, batch(i), i, True), step(silent, batch(i), i, False)
        assert {k: v.item() for k, v in one.terms.items()} == {k: v.item() for k, v in other.terms.items()}
    assert other.measures == {}


def test_a_weight_by_hand_multiplies_the_term():
    half, whole = (model(spd=spd(fixed=f)).losses(batch(), 1, False).terms["spd"] for f in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole)


def test_the_weights_come_back_with_the_state():
    m, resumed = settled(), model()
    resumed.load_state(m.state())
    assert resumed.state() == m.state()
    one, other = (x.losses(batch(1), 2, False).terms["spd"].item() for x in (m, resumed))
    assert one == pytest.approx(other, rel=1e-6)


def test_without_terms_there_is_no_state():
    assert model(spd=None, sgr=None).state() == {}


def test_terms_are_finite_under_bf16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        m = settled(spd=spd(criterion="psnr", gate="region"))
        terms, measures = m.losses(batch(), 1, True)
    torch.stack(list(terms.values())).sum().backward()
    assert all(t.dtype == torch.float32 and t.isfinite() for t in terms.values())
    assert all(gradients(net).isfinite().all() for net in m.networks.values())
    assert measures["share_sgr"] == pytest.approx(0.05, rel=1e-3)


def test_student_and_refiner_are_the_networks_to_save():
    m = model()
    assert m.networks == {"g": m.student, "r": m.refiner}
