"""The network of SAM-DiffSR (Wang et al., arXiv 2402.17133) in training and deployment: U-Net and frozen RRDB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_unet import MAPS, DiffSRUnet
from sam4ir.archs.rrdb import DiffSRRRDBNet, to_diffsr_keys

V = TypeVar("V")

RELEASED_BUFFERS = frozenset(  # tables of the released diffusion module, functions of its noise schedule
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
)
RELEASED_PARTS = ("posterior_", "ssim_loss.")


class DiffSR(nn.Module):
    """The network of SRDiff and SAM-DiffSR: a denoising U-Net and the RRDB network that conditions it.

    The RRDB network is frozen and stays in evaluation mode. Attributes: `multiple`, the number that the sides of an LR
    image must be multiples of; `smallest`, the least side that it may have. Raises ValueError as DiffSRUnet and
    DiffSRRRDBNet do.

    Args:
        hidden_size: Channels of the U-Net at full resolution, an even number of at least 4.
        dim_mults: Factor of hidden_size at each level of the U-Net, from fine to coarse.
        rrdb_num_feat: Channels of the RRDB network; its dense blocks grow by half of them.
        rrdb_num_block: Number of blocks of the RRDB network; its maps 3, 6, 9 and so on are the condition.
        sr_scale: Side of the HR image over side of the LR image: 4 or 8; equal to the file's scale.
        use_attn: Whether the coarsest level of the U-Net has linear attention.
        up_input: Whether the up-sampled LR image is a condition too.
    """

    def __init__(
        self,
        hidden_size: int = 64,
        dim_mults: Sequence[int] = (1, 2, 3, 4),
        rrdb_num_feat: int = 64,
        rrdb_num_block: int = 17,
        sr_scale: int = 4,
        use_attn: bool = False,
        up_input: bool = False,
    ) -> None:
        super().__init__()
        self.denoise_fn = DiffSRUnet(
            dim=hidden_size,
            dim_mults=dim_mults,
            cond_dim=rrdb_num_feat,
            rrdb_num_block=rrdb_num_block,
            sr_scale=sr_scale,
            use_attn=use_attn,
            up_input=up_input,
        )
        self.rrdb = DiffSRRRDBNet(nf=rrdb_num_feat, nb=rrdb_num_block, gc=rrdb_num_feat // 2, sr_scale=sr_scale)
        self.rrdb.requires_grad_(False).eval()
        self.sr_scale = sr_scale
        self.multiple = self.denoise_fn.multiple // math.gcd(self.denoise_fn.multiple, sr_scale)
        self.smallest = self.multiple * math.ceil(2 * self.denoise_fn.multiple / (self.multiple * sr_scale))

    def train(self, mode: bool = True) -> DiffSR:
        """Set training mode for the denoiser only."""
        super().train(mode)
        self.rrdb.eval()
        return self

    def condition(self, lq: Tensor) -> Tensor:
        """Return the condition (b, hidden_size, H, W) of (b, 3, h, w) in [0, 1]; it serves all steps of a chain."""
        with torch.no_grad():
            maps = self.rrdb.features(lq * 2 - 1, every=MAPS)
        return self.denoise_fn.projected(maps)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor | None = None) -> Tensor:
        """Return the estimate of the diffusion target (such as the noise), (b, 3, H, W), in x_t's type.

        x_t: (b, 3, H, W); t: (b,) int64; condition: (b, hidden_size, H, W); lq_up: (b, 3, H, W) in [-1, 1], needed with
        up_input only.
        """
        return self.denoise_fn.denoise(x_t, t, condition, lq_up)

    def forward(self, x_t: Tensor, t: Tensor, lq: Tensor, lq_up: Tensor | None = None) -> Tensor:
        """Compute condition and estimate at once, for training; no gradient reaches the RRDB network."""
        return self.denoise(x_t, t, self.condition(lq), lq_up)

    @staticmethod
    def adapted(state: Mapping[str, V]) -> dict[str, V]:
        """Return a released state without its diffusion tables, with BasicSR's keys under rrdb. renamed to ours."""
        rrdb: dict[str, V] = {}
        adapted: dict[str, V] = {}
        for key, value in state.items():
            if key.startswith("rrdb."):
                rrdb[key.removeprefix("rrdb.")] = value
            elif not is_released_table(key):
                adapted[key] = value
        for key, value in to_diffsr_keys(rrdb).items():
            adapted[f"rrdb.{key}"] = value
        return adapted


def is_released_table(key: str) -> bool:
    """Return whether this is the key of a table of the released diffusion module, which is no weight."""
    return key in RELEASED_BUFFERS or key.startswith(RELEASED_PARTS)
