"""Write an option file with a comment for each line that a user may want to change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sam4ir.engine.new_options.images import Survey
from sam4ir.engine.new_options.recipe import Recipe
from sam4ir.engine.new_options.split import Split
from sam4ir.metrics.ssim import WINDOW
from sam4ir.utils.shell import yaml_line, yaml_value

_WIDTH = 44  # column of the comments
_VALIDATIONS = 10  # of a run
_LINES = 50  # of the console, a run
_MOST_STEPS_A_LINE = 100


@dataclass(frozen=True)
class Content:
    """What an option file holds.

    command: the one that wrote it. name: of the run. gt, lq: the folders. noise: sigma of Gaussian noise, in units of 0
    to 255, None for pairs. lists: the files with the names of training and of validation images. store: the mask store,
    None without masks.
    """

    command: str
    name: str
    gt: Path
    lq: Path | None
    noise: float | None
    images: Survey
    split: Split
    lists: tuple[Path, Path]
    recipe: Recipe
    store: Path | None


def option_text(content: Content) -> str:
    """Return the text of the option file."""
    lines = [
        f"# Written by: {content.command}",
        f"# Data: {images_in_words(content.images)}, as they lie there. The lists beside this file",
        "# split them by a hash of each name, so an image stays where it is when others are added.",
        *_head(content),
        "",
        "datasets:",
        *_training_set(content),
        *_scored_set(content, "val"),
        *_scored_set(content, "test"),
        "",
        *_network(content),
        "",
        *_train(content),
        "",
        *_val(content),
        "",
        *_logger(content),
    ]
    return "\n".join(lines) + "\n"


def images_in_words(images: Survey) -> str:
    """Return the images in words: '60 pairs, colour, 8 bits, 481x321 (w x h)'."""
    words = [f"{len(images.keys)} images"]
    if images.pairing is not None:
        words = [f"{len(images.keys)} pairs"]
    if images.all_grey:
        words.append("grey")
    elif images.grey:
        words.append("colour and grey")
    else:
        words.append("colour")
    if images.deep == images.looked:
        words.append("16 bits")
    elif images.deep:
        words.append("8 and 16 bits")
    else:
        words.append("8 bits")
    pixels = sorted((size for size in images.sizes.values()), key=lambda size: size[0] * size[1])
    smallest, largest = pixels[0], pixels[-1]
    size = f"{smallest[1]}x{smallest[0]}"
    if largest != smallest:
        between = "to" if largest[0] * largest[1] != smallest[0] * smallest[1] else "and"
        size += f" {between} {largest[1]}x{largest[0]}"
    words.append(size)
    return ", ".join(words)


def _line(text: str, comment: str = "") -> str:
    """Return a line with its comment in a column."""
    if not comment:
        return text
    return f"{text:{_WIDTH}} # {comment}"


def _path(path: Path) -> str:
    """Return a path as a YAML value; option files expand $VAR, and $$ is a dollar sign."""
    return yaml_value(path.as_posix().replace("$", "$$"))


def _head(content: Content) -> list[str]:
    model, comment = "ImageRestorationModel", "a plain network; --sam NAME of the command above brings SAM4IR"
    if content.store is not None:
        model, comment = "SAM4IRModel", "the network learns from a refiner that sees SAM's masks"
    elif content.images.scale > 1:
        model, comment = "SRModel", "super-resolution"
    lines = [
        _line(f"name: {yaml_value(content.name)}", f"results go to experiments/{content.name}"),
        _line(f"model_type: {model}", comment),
        _line("manual_seed: 0", "weights, order, crops and noise are functions of it"),
        _line("device: auto", "CUDA where there is one, else the CPU"),
    ]
    if content.images.scale > 1:
        lines.insert(2, _line(f"scale: {content.images.scale}", "side of GT over side of LQ"))
    return lines


def _data(content: Content, names: Path) -> list[str]:
    """Return the lines that the data sets share."""
    grey = content.images.all_grey
    lines = []
    if content.noise is None:
        assert content.lq is not None
        lines.append("    type: PairedImageDataset")
        lines.append(_line(f"    dataroot_gt: {_path(content.gt)}", "clean images"))
        lines.append(_line(f"    dataroot_lq: {_path(content.lq)}", "degraded ones"))
        template = content.images.pairing.template if content.images.pairing is not None else "{}"
        if template != "{}":
            lines.append(_line(f"    filename_tmpl: {yaml_value(template)}", "LQ name by the GT name"))
        if grey:
            lines.append(_line("    channels: 1", "grey"))
    else:
        lines.append(_line("    type: GaussianDenoisingDataset", "adds noise to the clean images"))
        lines.append(_line(f"    dataroot_gt: {_path(content.gt)}", "clean images"))
        if grey:
            lines.append(_line("    in_ch: 1", "grey"))
    lines.append(_line(f"    meta_info_file: {_path(names)}", "the names that are used, one a line"))
    return lines


def _masks(content: Content) -> list[str]:
    if content.store is None:
        return []
    return [
        _line(f"    masks: {yaml_line({'store': content.store.as_posix().replace('$', '$$')})}", "make-masks writes it")
    ]


def _training_set(content: Content) -> list[str]:
    recipe = content.recipe
    lines = ["  train:", f"    name: {yaml_value(content.name + '_train')}", *_data(content, content.lists[0])]
    lines += _masks(content)
    if content.noise is not None:
        lines.append("    sigma_type: constant")
        lines.append(_line(f"    sigma_range: {content.noise:g}", "of 0 to 255; random and [0, 50] draw a level"))
    lines += [
        _line(f"    gt_size: {recipe.patch}", "side of the crops in pixels of GT"),
        _line("    use_hflip: true", "mirrored at random"),
        _line("    use_rot: true", "turned at random; false where up and down differ"),
        _line(f"    batch_size_per_gpu: {recipe.micro_batch}", "crops at once; fewer need less memory"),
        _line(f"    num_worker_per_gpu: {recipe.workers}", "processes that load images ahead"),
    ]
    return lines


def _scored_set(content: Content, key: str) -> list[str]:
    lines = []
    if key == "test":
        lines += [
            "  # What sam4ir test scores: the validation images once more. They chose no weights but those of",
            "  # net_g_best; for a figure to publish name images here that nothing else has seen.",
        ]
    lines += [f"  {key}:", f"    name: {yaml_value(f'{content.name}_{key}')}", *_data(content, content.lists[1])]
    if key == "val":
        lines += _masks(content)
    if content.noise is not None:
        lines.append(f"    sigma_range: {content.noise:g}")
        lines.append(_line("    noise_seed: 0", "the same noise every time"))
    return lines


def _network(content: Content) -> list[str]:
    block = content.recipe.network
    lines = [_line("network_g:", f"the network that is deployed: {content.recipe.about}")]
    for key, value in block.items():
        lines.append(f"  {key}: {yaml_value(value)}")
    return lines


def _train(content: Content) -> list[str]:
    recipe = content.recipe
    lines = ["train:", _line(f"  total_iter: {recipe.iterations}", "steps; T_max below is the same number")]
    if recipe.batch != recipe.micro_batch:
        lines.append(_line(f"  total_batch: {recipe.batch}", "crops of a step, over all processes"))
    lines += [
        _line("  ema_decay: 0.999", "validation and restoring use averaged weights"),
        "  ema_warmup: true",
        _line(f"  optim_g: {yaml_line(recipe.optim)}"),
        _line(f"  scheduler: {yaml_line(recipe.schedule)}"),
    ]
    if content.images.scale > 1:
        lines.append("  use_grad_clip: false")
    lines.append(f"  pixel_opt: {{type: {recipe.loss}}}")
    if content.store is not None:
        lines.append(_line("  spd_opt: {balance: 0.3}", "distillation, as a share of the gradient"))
        if not content.images.all_grey:
            lines.append(_line("  sgr_opt: {balance: 0.05, every: 4, bf16: auto}", "the same in VGG's features"))
    return lines


def without_ssim(content: Content) -> int:
    """Return how many validation images are smaller than the window of SSIM; where there are any, it is left out."""
    return sum(min(content.images.sizes[key]) < WINDOW for key in content.split.val)


def _val(content: Content) -> list[str]:
    luma = content.images.scale > 1 and not content.images.all_grey
    suffix = "_y" if luma else ""
    lines = ["val:", _line(f"  val_freq: {_freq(content)}", "steps between two validations")]
    if content.store is not None:
        lines.append(_line("  refiner: true", "score the refiner too; it is not deployed"))
    lines.append(_line(f"  save_best: psnr{suffix}", "keeps models/net_g_best beside net_g_latest"))
    if content.images.deep:
        lines.append(_line("  use_image: true", "scores are of 8 bits; false scores floats"))
    lines += ["  metrics:", f"    psnr{suffix}: {{type: psnr{suffix}}}"]
    if not without_ssim(content):
        lines.append(f"    ssim{suffix}: {{type: ssim{suffix}}}")
    return lines


def _logger(content: Content) -> list[str]:
    print_freq = max(1, min(_MOST_STEPS_A_LINE, content.recipe.iterations // _LINES))
    return [
        "logger:",
        _line(f"  print_freq: {print_freq}", "steps between two lines of the console"),
        _line(f"  save_checkpoint_freq: {_freq(content)}", "a run that was stopped goes on with --auto_resume"),
        _line("  keep_last: 2", "training states that stay; weights all stay"),
    ]


def _freq(content: Content) -> int:
    return max(1, content.recipe.iterations // _VALIDATIONS)
