"""PerceptualLoss against its definition written a second time, for every criterion, part and normalisation."""

from __future__ import annotations

import functools
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.losses.perceptual import PerceptualLoss, gram_matrix
from sam4ir.priors.features import VGGFeatures

# configuration E of Simonyan and Zisserman: convolutions per block
CONVOLUTIONS = (2, 2, 4, 4, 4)
LAYERS = {"conv1_2": 0.5, "relu2_1": 1.0, "pool2": 0.25, "conv3_1": 2.0}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def network(variant: str, layers: tuple[str, ...], weights: str | None, normalise: bool) -> VGGFeatures:
    assert weights == "random"
    return VGGFeatures(variant, layers, weights, normalise).double()


def perceptual(layer_weights: dict[str, float] | None = None, **arguments) -> PerceptualLoss:
    return PerceptualLoss(network, layer_weights or LAYERS, weights="random", **arguments)


def images(seed: int = 0, b: int = 2, side: int = 12) -> tuple[Tensor, Tensor]:
    """Prediction with gradient and target, float64, some of it outside [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    prediction, target = torch.rand(2, b, 3, side, side + 3, generator=random, dtype=torch.float64) * 1.2 - 0.1
    return prediction.requires_grad_(), target


def activations(image: Tensor, weights: dict[str, Tensor], normalised: bool) -> dict[str, Tensor]:
    """All activations of vgg19 up to the weights' end, by BasicSR's names, from the definition of the network."""
    if normalised:
        channels = [(image[:, c] - MEAN[c]) / STD[c] for c in range(3)]
        image = torch.stack(channels, dim=1)
    named, position = {}, 0
    for block, count in enumerate(CONVOLUTIONS, 1):
        for number in range(1, count + 1):
            if f"features.{position}.weight" not in weights:
                return named
            kernel, bias = (weights[f"features.{position}.{name}"].double() for name in ("weight", "bias"))
            image = named[f"conv{block}_{number}"] = F.conv2d(image, kernel, bias, padding=1)
            image = named[f"relu{block}_{number}"] = image * (image > 0)
            position += 2
        image = named[f"pool{block}"] = F.max_pool2d(image, 2, 2)
        position += 1
    return named


def gram(f: Tensor) -> Tensor:
    _, c, h, w = f.shape
    return torch.einsum("bihw,bjhw->bij", f, f) / (c * h * w)


def distance(criterion: str, a: Tensor, b: Tensor) -> Tensor:
    if criterion == "l1":
        return (a - b).abs().sum() / a.numel()
    if criterion == "l2":
        return ((a - b) ** 2).sum() / a.numel()
    return ((a - b) ** 2).sum().sqrt()


def expected(
    prediction: Tensor, target: Tensor, criterion: str, factors: tuple[float, float], normalised: bool, ranged: bool
) -> dict[str, Tensor]:
    """The perceptual part and the style part, without those of factor 0."""
    weights = network("vgg19", tuple(LAYERS), "random", True).state_dict()
    if ranged:
        prediction, target = (prediction + 1) / 2, (target + 1) / 2
    own, wanted = (activations(image, weights, normalised) for image in (prediction, target.detach()))
    parts = {"": 0.0, "style": 0.0}
    for layer, weight in LAYERS.items():
        parts[""] += weight * distance(criterion, own[layer], wanted[layer])
        parts["style"] += weight * distance(criterion, gram(own[layer]), gram(wanted[layer]))
    return {part: parts[part] * factor for part, factor in zip(parts, factors, strict=True) if factor}


@pytest.mark.parametrize(("normalised", "ranged"), [(True, False), (False, False), (True, True), (False, True)])
@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.0, 50.0), (0.3, 20.0)])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fro"])
def test_values_and_gradients_are_those_of_the_definition(
    criterion: str, factors: tuple[float, float], normalised: bool, ranged: bool
) -> None:
    loss = perceptual(
        criterion=criterion,
        perceptual_weight=factors[0],
        style_weight=factors[1],
        use_input_norm=normalised,
        range_norm=ranged,
    )
    prediction, target = images()
    parts = loss(prediction, target)
    definition = expected(prediction, target, criterion, factors, normalised, ranged)
    assert list(parts) == list(definition)
    for part, value in parts.items():
        assert value.item() == pytest.approx(definition[part].item(), rel=1e-6)
        own, wanted = (torch.autograd.grad(v, prediction, retain_graph=True)[0] for v in (value, definition[part]))
        assert (own - wanted).norm() <= 1e-6 * wanted.norm()
        assert wanted.norm() > 0


def test_the_defaults_are_those_of_basicsr() -> None:
    defaults = {name: p.default for name, p in inspect.signature(PerceptualLoss).parameters.items()}
    assert defaults["vgg_type"] == "vgg19"
    assert (defaults["use_input_norm"], defaults["range_norm"]) == (True, False)
    assert (defaults["perceptual_weight"], defaults["style_weight"], defaults["criterion"]) == (1.0, 0.0, "l1")


@pytest.mark.parametrize("criterion", ["l1", "l2", "fro"])
def test_equal_images_give_0_and_no_gradient(criterion: str) -> None:
    prediction, _ = images()
    parts = perceptual(criterion=criterion, style_weight=1.0)(prediction, prediction.detach().clone())
    (gradient,) = torch.autograd.grad(sum(parts.values()), prediction)
    assert [value.item() for value in parts.values()] == [0, 0]
    assert gradient.abs().max() == 0


def test_no_gradient_reaches_the_target_or_the_network() -> None:
    prediction, target = images()
    target.requires_grad_()
    loss = perceptual(style_weight=1.0)
    sum(loss(prediction, target).values()).backward()
    assert prediction.grad is not None
    assert target.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_the_gram_matrix_is_symmetric_and_scaled_by_the_size() -> None:
    f = torch.full((1, 2, 3, 5), 2.0)
    assert torch.equal(gram_matrix(f), torch.full((1, 2, 2), 4 * 15 / (2 * 15)))


def test_autocast_does_not_change_the_loss() -> None:
    prediction, target = (image.detach().float() for image in images())
    loss = PerceptualLoss(VGGFeatures, {"relu1_2": 1.0}, weights="random")
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(prediction, target)[""]
    assert value.item() == loss(prediction, target)[""].item()
    half = loss(prediction.bfloat16(), target)[""]
    assert half.dtype == torch.float32
    assert math.isfinite(half.item())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_weights": {"conv9_9": 1}}, "vgg19 has no layer 'conv9_9'.*known: conv1_1"),
        ({"layer_weights": {"conv1_1": -1}}, r"layer_weights\.conv1_1 is -1, expected 0 or more"),
        ({"style_weight": -0.5}, "style_weight is -0.5"),
        ({"perceptual_weight": 0.0}, "both 0"),
        ({"criterion": "cosine"}, "'cosine', expected l1, l2, fro"),
    ],
)
def test_wrong_arguments_name_what_would_do(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perceptual(**arguments)
    with pytest.raises(ValueError, match="expected a list"):
        PerceptualLoss(network, {}, weights="random")


def test_images_of_different_shapes_are_refused() -> None:
    prediction, target = images()
    with pytest.raises(ValueError, match=r"\(1, 3, 12, 15\), target is \(2, 3, 12, 15\)"):
        perceptual()(prediction[:1], target)
