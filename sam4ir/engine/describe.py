"""Describe a network: what it is, what it costs here, how it was trained and what it scores; for `sam4ir info`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sam4ir.config.schema import Options
from sam4ir.engine.build import build_network
from sam4ir.engine.cost import MultiplyAdds, Pass, cost_of, in_giga, measured_pass, parameter_count
from sam4ir.engine.devices import choose_device
from sam4ir.engine.restore.build import build_restorer, restore_recipe
from sam4ir.engine.restore.images import image_form, load_network
from sam4ir.engine.run_record import REFINER, RunRecord, block_line, record_of, training_of
from sam4ir.engine.weights import locate, read_file, zoo_name
from sam4ir.errors import first_line
from sam4ir.utils.memory import in_words, out_of_memory
from sam4ir.utils.state_dicts import Weights, find_state

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class NetworkFacts:
    """What is known of a network.

    options: of the network; network_g is its architecture. scale: output pixels per input pixel.
    channels: of its images. multiply_adds: of one image. device: of the measurement, in words.
    restored: what restoring an image took here; None where it was not measured, and `unmeasured` says why.
    file, size, entry: of its weights; None without weights. licence: of weights of the zoo. notes: what was assumed.
    run: the record of the training; None without one.
    """

    options: Options
    parameters: int
    scale: int
    channels: int
    multiply_adds: MultiplyAdds
    device: str
    restored: Pass | None = None
    unmeasured: str = ""
    file: Path | None = None
    size: int | None = None
    entry: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()
    run: RunRecord | None = field(default=None)


def describe(
    options: Options, weights: str | None, size: Size | None = None, notes: tuple[str, ...] = ()
) -> NetworkFacts:
    """Load a network and measure it.

    weights: a file or a name; None describes the network of the options with its initial weights.
    size: height and width of the input; None means an output of 256 x 256. notes: what was assumed of the options.
    Raises UserError where weights cannot be read or do not fit.
    """
    file, network = None, None
    device = choose_device(options.device)
    if weights is None:
        network = build_network(options.network_g, "g", device, seed=options.manual_seed)
        network.eval()
        channels, scale = image_form(network, device, restore_recipe(options))
    else:
        file = locate(weights)
        loaded = load_network(options, weights)
        network, channels, scale = loaded.network, loaded.channels, loaded.scale
    options = options.model_copy(update={"scale": scale})
    cost = cost_of(options, channels, size)
    restorer = build_restorer(dataclasses.replace(restore_recipe(options), scale=scale), network)
    image = torch.rand(1, channels, cost.height, cost.width, device=device)
    restored, unmeasured = None, ""
    try:
        restored = measured_pass(network, image, lambda lq: restorer(lq, "info"))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        unmeasured = f"memory ran out ({first_line(error)[:100]}); a smaller --size needs less"
    facts = NetworkFacts(
        options, parameter_count(network), scale, channels, cost, device_in_words(device), restored, unmeasured
    )
    if file is None or weights is None:
        return dataclasses.replace(facts, notes=(*notes, "no weights: the network has its initial ones"))
    key = options.path.param_key_g or options.path.param_key
    held: Weights = find_state(read_file(file, mapped=True), file, key, options.reads_average)
    return dataclasses.replace(
        facts,
        file=file,
        size=file.stat().st_size,
        entry=held.entry,
        licence=_licence(weights),
        notes=notes,
        run=record_of(file),
    )


def _licence(weights: str) -> str | None:
    """Return the licence of weights of the zoo; None for other weights."""
    name = zoo_name(weights)
    if name is None:
        return None
    from sam4ir.priors.zoo.weights import ENTRIES

    if name not in ENTRIES:
        return None
    return ENTRIES[name].licence


def device_in_words(device: torch.device) -> str:
    """Return a device as text: 'cpu (2 threads)', 'cuda:0 (NVIDIA H100)'."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def fact_values(facts: NetworkFacts) -> dict[str, Any]:
    """Return the facts as plain values for JSON, with keys that do not depend on the network."""
    values: dict[str, Any] = {
        "architecture": facts.options.network_g.type,
        "arguments": facts.options.network_g.arguments,
        "parameters": facts.parameters,
        "scale": facts.scale,
        "channels": facts.channels,
        "input": {"height": facts.multiply_adds.height, "width": facts.multiply_adds.width},
        "multiply_adds": facts.multiply_adds.macs,
        "multiply_adds_of_the_condition": facts.multiply_adds.condition,
        "device": facts.device,
        "seconds": None,
        "peak_memory": None,
        "file": None,
        "bytes": facts.size,
        "entry": facts.entry,
        "licence": facts.licence,
        "notes": list(facts.notes),
        "training": None,
        "iteration": None,
        "validation": None,
    }
    if facts.restored is not None:
        values |= {"seconds": facts.restored.seconds, "peak_memory": facts.restored.memory or None}
    if facts.file is not None:
        values["file"] = str(facts.file)
    if facts.run is not None:
        values["iteration"] = facts.run.iteration
        if facts.run.options is not None:
            values["training"] = training_of(facts.run.options)
        if facts.run.scores is not None:
            values["validation"] = {"iteration": facts.run.scores.iteration, "sets": facts.run.scores.sets}
    return values


def fact_rows(facts: NetworkFacts) -> list[tuple[str, str]]:
    """Return the facts as (name, text), in the order in which they are printed."""
    cost = facts.multiply_adds
    size = f"{cost.height} x {cost.width}"
    rows = [
        ("architecture", block_line(facts.options.network_g)),
        ("parameters", f"{facts.parameters:,}"),
        ("multiply-adds", _multiply_adds_text(cost)),
        ("images", f"{facts.channels} channels, scale {facts.scale}"),
    ]
    if facts.restored is not None:
        rows.append(("time", f"{_seconds(facts.restored.seconds)} for {size}, median of {facts.restored.runs}"))
        if facts.restored.memory:
            rows.append(("peak memory", f"{in_words(facts.restored.memory)} {_whose(facts.device)}"))
    else:
        rows.append(("time", f"not measured: {facts.unmeasured}"))
    rows.append(("device", facts.device))
    if facts.file is not None and facts.size is not None:
        rows.append(("file", f"{facts.file}, {facts.size:,} bytes"))
        rows.append(("entry", facts.entry or "none: the file is a state dict"))
    if facts.licence is not None:
        rows.append(("licence", facts.licence))
    rows += [("note", note) for note in facts.notes]
    return rows + _run_rows(facts.run)


def _run_rows(run: RunRecord | None) -> list[tuple[str, str]]:
    """Return rows on the training and its scores."""
    if run is None:
        return []
    rows = []
    if run.options is None:
        rows.append(("training", run.problem))
    else:
        rows += training_of(run.options).items()
    if run.iteration is not None:
        rows.append(("weights of", f"iteration {run.iteration:,}"))
    if run.scores is not None:
        for name, values in run.scores.sets.items():
            text = ", ".join(f"{metric_in_words(metric)} {value:.4f}" for metric, value in values.items())
            rows.append((f"scores {name}", f"{text} (validation, iteration {run.scores.iteration:,})"))
    return rows


def metric_in_words(metric: str) -> str:
    """Return the name of a mean of the log: 'psnr', 'psnr of the refiner'."""
    if metric.endswith(REFINER):
        return f"{metric.removesuffix(REFINER)} of the refiner"
    return metric


def _multiply_adds_text(cost: MultiplyAdds) -> str:
    if cost.macs is None:
        return f"unknown: {cost.reason}"
    text = f"{cost.macs:,} ({in_giga(cost.macs)}, MACs = FLOPs / 2) at {cost.height} x {cost.width}"
    if cost.condition is not None:
        text += f" for a step, {cost.condition:,} ({in_giga(cost.condition)}) before the steps"
    return text


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.2f} s"


def _whose(device: str) -> str:
    if device.startswith("cuda"):
        return "of tensors on the device"
    return "of this process"
