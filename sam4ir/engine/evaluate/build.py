"""Options -> the metrics of validation and test, and the test bed."""

from __future__ import annotations

import functools

from sam4ir.config.schema import Options, ValOptions
from sam4ir.config.signature import block_arguments
from sam4ir.engine import build
from sam4ir.engine.agreement import agree, dataset_facts
from sam4ir.engine.devices import choose_device
from sam4ir.engine.evaluate.metric import Metric, prepare_metrics
from sam4ir.engine.evaluate.testbed import TestBed
from sam4ir.engine.restore.build import restore_recipe
from sam4ir.metrics.official import protocol_of
from sam4ir.registry import METRICS
from sam4ir.utils.dist import World
from sam4ir.utils.shell import force_yml


def build_metrics(val: ValOptions | None, basicsr: bool = False) -> dict[str, Metric]:
    """Build the metrics of `val.metrics` under the names that the option file gives them; none without a `val` block.

    An official name, such as calculate_psnr, becomes the protocol that its code base means by it.
    basicsr: whether the option file is one of BasicSR (model_type SRModel).
    Raises BuildError naming the key whose metric cannot be built.
    """
    if val is None:
        return {}
    metrics = {}
    for name, block in val.metrics.items():
        checked = block_arguments(METRICS, block.type, block.arguments)
        with build.naming(f"val.metrics.{name}"):
            protocol, arguments = protocol_of(block.type, checked, basicsr=basicsr)
        metrics[name] = Metric(name, protocol, METRICS.get(protocol), arguments, val.use_image)
    return metrics


def build_test_bed(options: Options, world: World) -> TestBed:
    """Build the test sets and the metrics of an option file, and the networks that metrics need."""
    blocks = options.scored
    if not blocks:
        raise build.BuildError(
            "datasets: has no test set; name one `test`, or test_1, test_2 ... (validation sets are scored where the "
            f"file does not train: {force_yml('train', None)})"
        )
    device = choose_device(options.device, world)
    metrics = prepare_metrics(build_metrics(options.val, options.basicsr), device)
    data = {}
    for key, block in blocks.items():
        data[block.name or key] = build.build_dataset(key, block, options.scale)
    agree(world, *(functools.partial(dataset_facts, name, each, options.manual_seed) for name, each in data.items()))
    return TestBed(
        options.network_g,
        options.path,
        restore_recipe(options),
        options.manual_seed,
        options.channels_last,
        world,
        device,
        data,
        metrics,
        options.reads_average,
    )
