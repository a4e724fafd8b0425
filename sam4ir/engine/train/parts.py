"""The parts of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sam4ir.engine.train.ema import Ema
from sam4ir.engine.train.optim import Optimiser
from sam4ir.models.restoration import Model


@dataclass
class TrainingParts:
    """The model of a training run with its optimisers and averages; engine.train.build builds them from the options.

    optimisers, emas: one for each label of model.networks. scaler: scales the loss for float16; switched off otherwise.
    shared: the networks as the model calls them, wrapped in DistributedDataParallel where several processes train.
    metadata: plain values that each weights file holds beside the weights. save_format: of those files, pth or
    safetensors.
    """

    model: Model
    optimisers: Mapping[str, Optimiser]
    emas: Mapping[str, Ema]
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    shared: tuple[nn.Module, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    save_format: str = "pth"
