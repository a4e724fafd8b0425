"""Options -> the metrics of validation and test."""

from __future__ import annotations

from sam4ir.config.schema import ValOptions
from sam4ir.config.signature import block_arguments
from sam4ir.engine.build import naming
from sam4ir.engine.evaluate.metric import Metric
from sam4ir.metrics.official import protocol_of
from sam4ir.registry import METRICS


def build_metrics(val: ValOptions | None, basicsr: bool = False) -> dict[str, Metric]:
    """The metrics of `val.metrics` by the names that the option file gives them; none without a `val` block.

    An official name, such as calculate_psnr, becomes the protocol that its code base means by it.
    basicsr: whether the option file is one of BasicSR (model_type SRModel).
    Raises BuildError naming the key whose metric cannot be built.
    """
    if val is None:
        return {}
    metrics = {}
    for name, block in val.metrics.items():
        given = block_arguments(METRICS, block.type, block.arguments)
        with naming(f"val.metrics.{name}"):
            protocol, arguments = protocol_of(block.type, given, basicsr=basicsr)
        metrics[name] = Metric(name, protocol, METRICS.get(protocol), arguments, val.use_image)
    return metrics
