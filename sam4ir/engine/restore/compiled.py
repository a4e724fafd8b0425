"""Compile a network for inference: torch.compile with weights that are constants of the compiled code."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sam4ir.archs.size import SizeRule, pad, unpad
from sam4ir.errors import first_line
from sam4ir.models.restoration import last_output
from sam4ir.utils.memory import out_of_memory

log = logging.getLogger(__name__)


class CompiledNetwork(nn.Module):
    """A network that restores images by compiled code; its weights must not change any more.

    (b, c, h, w) -> (b, c, h scale, w scale), as the network does. The padding of the network stays outside of the
    compiled code, which would else be made once for sizes with padding and once for those without.

    in_tiles: whether images come in tiles of one size. Faster code is then made for batches of the first size, beside
    the code for all sizes, which is made when another one comes; without tiles there is that code alone. torch counts
    how often code is made (torch._dynamo.config.recompile_limit, 8): beyond, the network runs as it is. So does it
    where the compiler fails.
    """

    def __init__(self, network: nn.Module, in_tiles: bool) -> None:
        super().__init__()
        rule = getattr(network, "size", None)
        self.rule = SizeRule()
        if isinstance(rule, SizeRule):
            self.rule = rule
            network = copy.copy(network)  # the same weights; the network itself goes on padding
            network.size = SizeRule()  # type: ignore[assignment]
        self.network = network
        self.code = torch.compile(network, dynamic=True, options={"freezing": True})
        self.code_of_tiles = self.code
        if in_tiles:
            self.code_of_tiles = torch.compile(network, dynamic=False, options={"freezing": True})
        self.tiles: torch.Size | None = None
        self.usable = True

    @property
    def unshuffle(self) -> int:
        """The number that sides of images must be multiples of for the network; 1 for most."""
        return int(getattr(self.network, "unshuffle", 1))

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the restored images; of a network with several outputs the last one."""
        padded = pad(image, self.rule)
        restored = self._restored(padded)
        scale = restored.shape[-1] // padded.shape[-1]
        return unpad(restored, (image.shape[-2] * scale, image.shape[-1] * scale))

    def _restored(self, padded: Tensor) -> Tensor:
        if self.usable:
            try:
                return last_output(self._code_for(padded.shape)(padded))
            except Exception as error:  # the compiler may fail in any way, and the network works without it
                if out_of_memory(error):
                    raise
                self.usable = False
                log.warning("compile: the network runs as it is, since compiling fails: %s", first_line(error)[:200])
        return last_output(self.network(padded))

    def _code_for(self, shape: torch.Size) -> Callable[[Tensor], Tensor | list[Tensor]]:
        """Return the code for batches of a size; the first size is that of tiles."""
        if self.tiles is None:
            self.tiles = shape
        if shape == self.tiles:
            return self.code_of_tiles
        return self.code
