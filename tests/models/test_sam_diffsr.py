"""Training of a diffusion network: what a batch's loss is made of, whatever it is split into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sam4ir.data.sample import Batch
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.schedule import cosine_schedule
from sam4ir.errors import UserError
from sam4ir.losses.pixel import L1Loss
from sam4ir.models.sam_diffsr import SamDiffSR, image_of, residual_of, upsampled
from sam4ir.utils.resize import imresize


class Denoiser(nn.Module):
    """An estimate that depends on all that a diffusion network is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, lq: Tensor, lq_up: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat([x_t, lq_up], 1)) + 0.01 * t.view(-1, 1, 1, 1) + lq.mean((1, 2, 3), True)
        return out


def batch(numbers: tuple[int, ...] = (4, 9, 11), spe: bool = True) -> Batch:
    """Samples that follow from their numbers alone."""
    lqs, gts, spes = [], [], []
    for number in numbers:
        g = torch.Generator().manual_seed(number)
        lqs.append(torch.rand(3, 3, 4, generator=g))
        gts.append(torch.rand(3, 12, 16, generator=g))
        spes.append(torch.rand(1, 12, 16, generator=g))
    maps = {"spe": torch.stack(spes)} if spe else {}
    return Batch(torch.stack(lqs), torch.stack(gts), ["x"] * len(numbers), list(numbers), maps)


def model(modulation: str = "none", strength: float = 1.0, seed: int = 0, rms: float = 0.5) -> SamDiffSR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser()
    process = Process(cosine_schedule(20), modulation, strength)  # type: ignore[arg-type]
    return SamDiffSR(network, process, L1Loss(), seed, lambda: rms)


def loss(m: SamDiffSR, data: Batch) -> float:
    return m.losses(data, 1, False).terms["noise"].item()


def test_the_residual_is_clipped_and_gives_the_image_back() -> None:
    gt, lq_up = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8) * 2 - 1
    x_0 = residual_of(gt, lq_up)
    inside = x_0.abs() < 1
    assert x_0.abs().max() == 1
    torch.testing.assert_close(image_of(x_0, lq_up)[inside], gt[inside])
    torch.testing.assert_close(x_0[inside], (2 * ((2 * gt - 1) - lq_up))[inside])


def test_an_even_image_is_up_sampled_to_itself_in_the_signed_scale() -> None:
    torch.testing.assert_close(upsampled(torch.full((1, 3, 4, 5), 0.25), (16, 20)), torch.full((1, 3, 16, 20), -0.5))


def test_up_sampling_is_matlab_s_bicubic() -> None:
    image = torch.rand(1, 3, 6, 7)
    torch.testing.assert_close(upsampled(image, (24, 28)), 2 * imresize(image, 4) - 1)


def test_the_loss_of_a_batch_is_the_mean_over_its_samples_however_it_is_split() -> None:
    m = model("invertible", 0.3)
    parts = [loss(m, batch((number,))) for number in (4, 9, 11)]
    assert loss(m, batch()) == pytest.approx(sum(parts) / 3, rel=1e-5)


def test_another_seed_or_number_draws_other_noise() -> None:
    same = batch((4,))
    assert loss(model(), same) == loss(model(), same)
    assert loss(model(), same) != loss(model(seed=1), same)
    same.numbers = [5]
    assert loss(model(), same) != loss(model(), batch((4,)))


def test_every_time_of_the_process_is_drawn_alike() -> None:
    numbers = list(range(4000))
    t, noise = model()._draw(numbers, torch.zeros(4000, 1, 2, 2))
    counts = torch.bincount(t, minlength=20)
    assert len(counts) == 20
    assert (counts - 200).abs().max() < 5 * 14  # of a binomial with a mean of 200
    assert noise.mean().abs() < 0.03
    assert (noise.std() - 1).abs() < 0.03


def test_without_masks_the_modulations_are_plain_diffusion_bit_for_bit() -> None:
    empty = batch()
    empty.maps = {"spe": torch.zeros_like(empty.gt[:, :1])}
    plain = loss(model(), batch(spe=False))
    assert {loss(model(kind), empty) for kind in ("none", "released", "paper", "invertible")} == {plain}


@pytest.mark.parametrize("kind", ["released", "paper", "invertible"])
def test_masks_change_what_is_learned_and_the_log_tells_by_how_much(kind: str) -> None:
    told = model(kind, 0.3).losses(batch(), 1, True)
    assert told.terms["noise"].item() != loss(model(), batch())
    assert told.measures["spe_shift"] > 0
    assert model().losses(batch(), 1, True).measures == {}


def test_the_logged_shift_is_the_distance_of_x_t_from_plain_diffusion_over_its_length() -> None:
    m, data = model("released", 0.3), batch()
    seen: list[Tensor] = []
    for modulation in ("released", "none"):
        other = model(modulation, 0.3)
        other.network.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
        other.losses(data, 1, True)
    shift = m.losses(data, 1, True).measures["spe_shift"]
    assert type(shift) is float
    assert shift == pytest.approx(((seen[0] - seen[1]).norm() / seen[1].norm()).item())
    assert m.losses(data, 1, False).measures == {}


def test_the_network_gets_x_t_its_time_and_the_image_and_is_judged_by_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m, data = model("invertible", 0.3), batch()
    pairs: list[tuple[object, ...]] = []
    training_pair = Process.training_pair

    def recorded(process: Process, *arguments: object) -> tuple[Tensor, Tensor]:
        pair: tuple[Tensor, Tensor] = training_pair(process, *arguments)  # type: ignore[arg-type]
        pairs.append((arguments, pair))
        return pair

    monkeypatch.setattr(Process, "training_pair", recorded)
    value = loss(m, data)
    ((x_0, t, noise, spe, rms), (x_t, target)) = pairs[0]
    lq_up = 2 * imresize(data.lq, 4) - 1
    torch.testing.assert_close(x_0, (2 * (2 * data.gt - 1 - lq_up)).clamp(-1, 1))
    assert torch.equal(spe, data.spe)
    assert rms == 0.5
    assert t.shape == (3,)
    assert noise.shape == x_0.shape
    assert value == pytest.approx((m.network(x_t, t, data.lq, lq_up) - target).abs().mean().item(), rel=1e-5)


def test_the_scale_of_the_encoding_is_measured_once_and_kept_in_the_state() -> None:
    asked = []
    m = model("invertible", 0.3)
    m.measure_spe = lambda: asked.append(1) or 0.25  # type: ignore[func-returns-value]
    first = loss(m, batch())
    assert loss(m, batch()) == first
    assert asked == [1]
    resumed = model("invertible", 0.3, rms=9.0)
    resumed.load_state(m.state())
    assert loss(resumed, batch()) == first
    other = model("invertible", 0.3, rms=9.0)
    other.encoding = "another"
    other.load_state(m.state())
    assert loss(other, batch()) == loss(model("invertible", 0.3, rms=9.0), batch())
    assert loss(model("invertible", 0.3, rms=9.0), batch()) != first


def test_plain_diffusion_reads_no_masks() -> None:
    m = model()
    m.measure_spe = None
    loss(m, batch(spe=False))
    assert m.state() == {}


def test_missing_encodings_are_named() -> None:
    with pytest.raises(ValueError, match=r"masks\.store"):
        loss(model("released"), batch(spe=False))


def test_a_loss_of_several_parts_is_refused() -> None:
    m = model()
    m.loss = lambda estimate, target: {"edge": (estimate - target).abs().mean()}  # type: ignore[assignment,return-value]
    with pytest.raises(UserError, match=r"train\.pixel_opt: returns several parts"):
        loss(m, batch())
