"""SPF: its shapes, its start, what it must not depend on."""

import pytest
import torch

from sam4ir.distill.pool import boundary_map, region_means_painted
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.registry import FUSIONS
from sam4ir.utils.rng import torch_stream


def images(seed=0, b=2, h=12, w=10, count=4):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, count + 1, (b, h, w), generator=g)
    return torch.rand(b, 3, h, w, generator=g), labels, torch.rand(b, 3, h, w, generator=g)


def fusion(seed=0, trained=True, **arguments):
    """Narrow, and with a last convolution that is not zero where trained."""
    with torch_stream(seed, "spf"):
        spf = SemanticPriorsFusion(width=4, **arguments)
        if trained:
            torch.nn.init.normal_(spf.out.weight)
    return spf


def test_option_files_call_it_spf():
    assert FUSIONS.get("SPF") is SemanticPriorsFusion


@pytest.mark.parametrize("with_input", [False, True])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 8), (12, 10)])
def test_the_fused_image_is_the_restored_image_before_training(with_input, h, w):
    restored, labels, degraded = images(h=h, w=w)
    fused = fusion(trained=False, with_input=with_input)(restored, labels, 4, degraded)
    assert fused.shape == (2, 3, h, w)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, restored)


def test_the_last_convolution_learns_from_the_start():
    spf = fusion(trained=False)
    restored, labels, degraded = images()
    spf(restored, labels, 4, degraded).square().sum().backward()
    assert spf.out.weight.grad.abs().max() > 0


def test_the_fused_image_sees_regions_and_degraded_image():
    restored, labels, degraded = images()
    spf = fusion(with_input=True)
    fused = spf(restored, labels, 4, degraded)
    assert not torch.allclose(fused, spf(restored, torch.zeros_like(labels), 4, degraded))
    assert not torch.allclose(fused, spf(restored, labels, 4, restored))


@pytest.mark.parametrize("with_input", [False, True])
def test_what_is_mixed_is_the_image_its_embedding_the_region_means_and_the_boundaries(with_input):
    restored, labels, degraded = images()
    spf, seen = fusion(with_input=with_input), []
    spf.mix.register_forward_pre_hook(lambda conv, args: seen.append(args[0]))
    spf(restored, labels, 4, degraded)
    embedded = spf.embed(restored)
    parts = [restored, embedded, region_means_painted(embedded, labels, 4), boundary_map(labels)]
    torch.testing.assert_close(seen[0], torch.cat(parts + [degraded] * with_input, dim=1))


def test_the_gate_multiplies_the_first_half_of_the_mixed_channels_by_the_second():
    restored, labels, degraded = images()
    spf = fusion(trained=False)
    with torch.no_grad():
        spf.mix.weight.zero_()
        spf.mix.bias.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]))
        spf.out.weight[0, 0, 1, 1] = 1  # the middle of the kernel: red takes the first product, green the last
        spf.out.weight[1, 3, 1, 1] = 1
        spf.out.bias[2] = 0.5
    added = spf(restored, labels, 4, degraded) - restored
    expected = torch.tensor([1 * 5, 4 * 8, 0.5]).view(1, 3, 1, 1).expand_as(restored)
    torch.testing.assert_close(added, expected, rtol=1e-5, atol=0)


def test_the_degraded_image_is_left_out_by_default():
    restored, labels, degraded = images()
    spf = fusion()
    assert torch.equal(spf(restored, labels, 4, degraded), spf(restored, labels, 4, torch.zeros_like(degraded)))


def test_numbering_of_regions_does_not_matter():
    restored, labels, degraded = images()
    spf = fusion()
    renumbered = torch.tensor([0, 3, 1, 4, 2])[labels]
    torch.testing.assert_close(spf(restored, renumbered, 4, degraded), spf(restored, labels, 4, degraded))


def test_empty_extra_regions_do_not_matter():
    restored, labels, degraded = images()
    spf = fusion()
    torch.testing.assert_close(spf(restored, labels * 2, 11, degraded), spf(restored, labels, 4, degraded))


def test_an_image_is_fused_the_same_alone_and_in_a_batch():
    restored, labels, degraded = images()
    spf = fusion()
    alone = spf(restored[:1], labels[:1], 4, degraded[:1])
    torch.testing.assert_close(spf(restored, labels, 4, degraded)[:1], alone)


def test_no_regions_are_no_regions_however_they_are_said():
    restored, labels, degraded = images()
    spf = fusion()
    torch.testing.assert_close(
        spf(restored, torch.zeros_like(labels), 0, degraded), spf(restored, torch.zeros_like(labels), 3, degraded)
    )


def test_mask_dropout_drops_in_training_only():
    restored, labels, degraded = images()
    spf, plain = fusion(mask_dropout=0.5), fusion()
    assert not torch.equal(spf(restored, labels, 4, degraded), plain(restored, labels, 4, degraded))
    spf.eval()
    assert torch.equal(spf(restored, labels, 4, degraded), plain(restored, labels, 4, degraded))


def test_mask_dropout_follows_the_random_stream():
    restored, labels, degraded = images()
    spf = fusion(mask_dropout=0.5)

    def fused(number):
        with torch_stream(0, "r", number):
            return spf(restored, labels, 4, degraded)

    assert torch.equal(fused(1), fused(1))
    assert any(not torch.equal(fused(1), fused(n)) for n in range(2, 6))


def test_mask_dropout_turns_whole_regions_of_each_image_into_no_region():
    _, labels, _ = images(b=3, h=40, w=40)
    spf = fusion(mask_dropout=0.5)
    with torch_stream(0, "drop"):
        dropped = torch.stack([spf._drop(labels, 4) for _ in range(400)])
    for i in range(3):
        for label in range(1, 5):
            inside = dropped[:, i][:, labels[i] == label]
            assert ((inside == label).all(1) | (inside == 0).all(1)).all()
            assert inside[:, 0].ne(0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (dropped[:, labels == 0] == 0).all()


@pytest.mark.parametrize("arguments", [{"mask_dropout": 0.0}, {"mask_dropout": 0.5}])
def test_nothing_is_drawn_without_drop_out_or_training(arguments):
    restored, labels, degraded = images()
    spf = fusion(**arguments).train(arguments["mask_dropout"] == 0)
    before = torch.get_rng_state()
    spf(restored, labels, 4, degraded)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_number_is_drawn_for_each_label_of_each_image():
    _, labels, _ = images(b=3)
    with torch_stream(0, "drop"):
        dropped = fusion(mask_dropout=0.25)._drop(labels, 4)
    with torch_stream(0, "drop"):
        drawn = torch.rand(3, 5)
    for i in range(3):
        expected = [label if drawn[i, label] >= 0.25 else 0 for label in labels[i].flatten().tolist()]
        assert dropped[i].flatten().tolist() == expected


def test_mask_dropout_is_a_probability():
    for wrong in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=f"mask_dropout is {wrong}"):
            SemanticPriorsFusion(mask_dropout=wrong)
    assert SemanticPriorsFusion(mask_dropout=0.99).mask_dropout == 0.99


def test_the_fused_image_is_float32_also_of_an_image_in_half_precision():
    restored, labels, degraded = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert fusion()(restored.bfloat16(), labels, 4, degraded).dtype == torch.float32


@pytest.mark.parametrize("case", ["constant", "one pixel", "all covering", "none"])
@pytest.mark.parametrize("bf16", [False, True])
def test_values_and_gradients_stay_finite(case, bf16):
    restored, labels, degraded = images()
    labels, count = torch.zeros_like(labels), 0
    if case == "constant":
        restored = torch.zeros_like(restored)
        labels[:, :6], count = 1, 1
    elif case == "one pixel":
        labels[:, 0, 0], count = 1, 1
    elif case == "all covering":
        labels, count = torch.ones_like(labels), 1
    restored.requires_grad_()
    spf = fusion()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        fused = spf(restored, labels, count, degraded)
    assert fused.dtype == torch.float32
    assert fused.isfinite().all()
    fused.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in [restored, *spf.parameters()])
