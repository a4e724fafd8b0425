"""Plain restoration: the loss of single and list outputs, its random stream, what it asks of a batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sam4ir.data.sample import Batch
from sam4ir.losses.pixel import L1Loss, PSNRLoss
from sam4ir.models.restoration import Reconstruction, Restoration, batch_psnr, last_output, restore, total


def batch(number=0, b=2, h=8, w=6):
    g = torch.Generator().manual_seed(number)
    lq, gt = torch.rand(2, b, 3, h, w, generator=g)
    return Batch(lq, gt, keys=["a"] * b, numbers=list(range(number * b, (number + 1) * b)))


def pixel(loss):
    return Reconstruction({"pix": loss})


class Outputs(nn.Module):
    """Two stage outputs, as HINet gives."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image):
        one = self.first(image)
        return [one, self.second(one)]


def test_the_one_term_is_the_loss_of_the_output():
    net, loss = nn.Conv2d(3, 3, 1), PSNRLoss()
    terms, measures = Restoration(net, pixel(loss)).losses(batch(), 1, False)
    assert terms.keys() == {"pix"}
    assert terms["pix"].item() == loss(net(batch().lq), batch().gt).item()
    assert measures == {}


def test_stage_outputs_are_summed_in_the_loss_and_the_last_is_the_image():
    net, loss, data = Outputs(), L1Loss(), batch()
    first, second = net(data.lq)
    terms, measures = Restoration(net, pixel(loss)).losses(data, 1, True)
    assert terms["pix"].item() == pytest.approx(loss(first, data.gt).item() + loss(second, data.gt).item())
    assert measures["psnr"] == pytest.approx(batch_psnr(second, data.gt))
    assert torch.equal(restore(net, data.lq), second)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_one_output_is_that_output(kind):
    image, gt = torch.rand(2, 1, 3, 4, 4)
    assert last_output(kind([image])) is image
    assert pixel(L1Loss())(kind([image]), gt)["pix"].item() == L1Loss()(image, gt).item()


def in_parts(output, gt):
    """A loss with two parts."""
    return {"": (output - gt).square().mean(), "edge": (output - gt).diff(dim=-1).abs().mean()}


def test_every_loss_has_its_name_and_parts_follow_it():
    output, gt = torch.rand(2, 1, 3, 4, 4)
    losses = {"pix": L1Loss(), "both": in_parts, "percep": in_parts}
    terms = Reconstruction(losses, {"percep_edge": "style"})(output, gt)
    assert list(terms) == ["pix", "both", "both_edge", "percep", "style"]
    assert terms["both_edge"].item() == terms["style"].item() == in_parts(output, gt)["edge"].item()
    assert total(terms).item() == pytest.approx(sum(term.item() for term in terms.values()))


def test_every_loss_is_summed_over_stage_outputs():
    first, second, gt = torch.rand(3, 1, 3, 4, 4)
    losses = Reconstruction({"pix": L1Loss(), "both": in_parts})
    alone, other = losses([first], gt), losses(second, gt)
    for name, value in losses([first, second], gt).items():
        torch.testing.assert_close(value, alone[name] + other[name])


def test_the_total_of_one_loss_is_that_loss():
    loss = torch.rand(())
    assert total({"pix": loss}) is loss


def test_a_network_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="needs a reconstruction loss"):
        Reconstruction({})


@pytest.mark.parametrize("step", [1, 16, 100])
def test_psnr_measured_of_an_even_difference_is_the_closed_form(step):
    gt = torch.full((3, 3, 5, 5), 0.3)
    assert batch_psnr(gt + step / 255, gt) == pytest.approx(20 * torch.log10(torch.tensor(255 / step)).item(), abs=1e-3)


def test_psnr_is_the_mean_over_images_of_unclamped_values():
    gt = torch.zeros(2, 3, 4, 4)
    restored = torch.stack([torch.full((3, 4, 4), -0.1), torch.full((3, 4, 4), 10.0)])
    assert batch_psnr(restored, gt) == pytest.approx((20 - 20) / 2, abs=1e-4)


def test_dropout_is_a_function_of_seed_and_sample_number_and_leaves_the_global_stream_alone():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 3, 1))

    def value(seed, number):
        data = batch()
        data.numbers = [number, number + 1]
        return Restoration(net, pixel(L1Loss()), seed).losses(data, 1, False).terms["pix"].item()

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = value(0, 4)
    assert torch.equal(torch.rand(1), expected)
    assert value(0, 4) == first
    assert value(1, 4) != first
    assert value(0, 6) != first


def test_training_without_ground_truth_is_refused():
    data = SimpleNamespace(lq=torch.rand(1, 3, 4, 4), gt=None, regions=None, region_count=0, numbers=[0])
    with pytest.raises(ValueError, match="dataroot_gt"):
        Restoration(nn.Identity(), pixel(L1Loss())).losses(data, 1, False)


def test_the_network_trains_and_is_saved_as_g_with_no_state_beside():
    net = nn.Identity()
    model = Restoration(net, pixel(L1Loss()))
    assert model.networks == {"g": net}
    assert model.active(1) == ("g",)
    assert model.state() == {}
