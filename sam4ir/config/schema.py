"""What an option file may hold: frozen pydantic models, unknown keys forbidden everywhere.

`python -m sam4ir.config.schema` writes the JSON schema that editors use for completion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sam4ir.config.official import (
    CROP_SIDES,
    ENSEMBLE,
    GEOMETRIC,
    MIXUP,
    TOTAL,
    idle,
    is_placeholder,
    takes_geometric,
)
from sam4ir.config.signature import WHOLE, arguments_model
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, FUSIONS, LOSSES, METRICS, SCHEDULES, VIEWS, Registry


def _folder_name(value: str) -> str:
    """A text that may name one folder or file: it becomes part of paths."""
    if not value.strip():
        raise UserError(f"{value!r} is empty; it names a folder")
    if value.startswith(".") or value != value.strip():
        raise UserError(f"{value!r} names a folder, so it may not begin with a dot nor begin or end with a space")
    if re.search(r'[/\\<>:"|?*]', value) or not value.isprintable():
        raise UserError(f'{value!r} names a folder, so it may not hold / \\ < > : " | ? * or control characters')
    if len(value.encode()) > 200:
        raise UserError(f"{value[:20]!r}... names a folder, so it may have 200 bytes at most")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
Count = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]
Share = Annotated[float, Field(ge=0)]

PLAIN_MODELS = ("ImageRestorationModel", "SRModel", "ImageCleanModel")
DIFFUSION_MODEL = "SAMDiffSRModel"
ModelType = Literal["ImageRestorationModel", "SRModel", "ImageCleanModel", "SAM4IRModel", "SAMDiffSRModel"]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Block(_Options):
    """`type: NAME` and the arguments of what it names, checked against its signature by config/load.py."""

    model_config = ConfigDict(extra="allow")
    type: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What stands beside the keys declared here: the constructor's arguments."""
        return dict(self.model_extra or {})

    @property
    def block(self) -> dict[str, Any]:
        """{type: ..., argument: value ...}"""
        return {"type": self.type, **self.arguments}


class MasksOptions(_Options):
    """Where a data set's masks come from: a mask store, and which image SAM must have looked at.

    views: further maps that samples bring beside what the model reads, for parts of a plugin (registry VIEWS).
    """

    store: str
    source: Literal["gt", "lq", "restored"] | None = None
    views: tuple[Block, ...] = ()

    @model_validator(mode="after")
    def _views_have_names_of_their_own(self) -> MasksOptions:
        names = [view.type for view in self.views]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"has two views of type {name}, whose maps would have one name; keep one")
        return self


class DatasetOptions(Block):
    """A data set and how it is loaded; the other keys are the data set's own arguments.

    gt_sizes, mini_batch_sizes, iters: the stages of progressive training (Restormer); stage k trains iters[k]
    iterations with patches of gt_sizes[k] and micro-batches of mini_batch_sizes[k]; gt_size and batch_size_per_gpu
    then stand for nothing.
    degradations: made on the fly on clean images, one after the other.
    without_effect: keys of official files that the data set has no use for; config/official.py puts them here.
    """

    name: FolderName | None = None
    phase: str | None = None
    masks: MasksOptions | None = None
    degradations: Annotated[tuple[Block, ...], Field(min_length=1)] | None = None
    batch_size_per_gpu: Positive = 1
    mini_batch_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    iters: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    gt_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    bad_images: Literal["stop", "skip"] = "stop"
    num_worker_per_gpu: Count = 0
    use_shuffle: bool = True
    dataset_enlarge_ratio: Positive = 1
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Count | None = None
    pin_memory: bool | None = None
    without_effect: dict[str, Any] | None = None

    @property
    def placeholder(self) -> bool:
        """Whether the block only shows where a data set would go: every dataroot is null, as HINet's files have it."""
        return is_placeholder(self.arguments)


class PathOptions(_Options):
    """Where weights come from and where a run goes.

    pretrain_network_c: of the RRDB that conditions a diffusion network.
    """

    root: str = "."
    pretrain_network_g: str | None = None
    pretrain_network_c: str | None = None
    param_key_g: str | None = None
    param_key: str | None = None
    strict_load_g: bool = True
    resume_state: str | None = None


class OptimOptions(_Options):
    """An optimiser of torch, fused where the device has one. weight_decay left out is torch's own: AdamW's 0.01."""

    type: Literal["Adam", "AdamW"] = "AdamW"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Share | None = None
    eps: Annotated[float, Field(gt=0)] = 1e-8

    @property
    def decay(self) -> float:
        """The weight decay that holds."""
        own = 0.01 if self.type == "AdamW" else 0.0
        return own if self.weight_decay is None else self.weight_decay


class TermOptions(_Options):
    """Weight of a loss term: by hand, or from the share of the reconstruction's gradient (methods.md, [D])."""

    loss_weight: Share | None = None
    balance: Share | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TermOptions:
        if self.loss_weight is not None and self.balance is not None:
            raise UserError("has loss_weight and balance; one sets the weight, the other measures it: keep one")
        return self

    @property
    def off(self) -> bool:
        """Whether the term is switched off (weight 0)."""
        return self.loss_weight == 0 or (self.loss_weight is None and self.balance == 0)


class SpdOptions(TermOptions):
    """Semantic priors distillation."""

    criterion: Literal["l1", "charbonnier", "psnr"] = "l1"
    gate: Literal["none", "region", "pixel"] = "region"
    target: Literal["refiner", "gt"] = "refiner"

    @model_validator(mode="after")
    def _pixel_gate_needs_a_curve(self) -> SpdOptions:
        if self.gate == "pixel" and self.criterion == "l1":
            raise UserError(
                "has gate pixel with criterion l1, whose gradient equals that of a gated L1 to the ground truth; "
                "take criterion charbonnier"
            )
        return self


class SgrOptions(TermOptions):
    """Semantic-guided relation in the features of a frozen VGG."""

    target: Literal["refiner", "gt"] = "refiner"
    every: Positive = 1
    variant: Literal["vgg16", "vgg19"] = "vgg16"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("relu2_2", "relu3_3", "relu4_3")
    weights: str | None = None
    min_cells: Share = 4.0
    bf16: bool = False


class DistillOptions(_Options):
    """How student and refiner train together."""

    schedule: Literal["joint", "two_phase"] = "joint"
    start_iter: Count | None = None
    refine_iter: Positive | None = None
    teacher: Literal["raw", "ema"] = "raw"
    masks: Literal["store", "empty"] = "store"
    init_refiner: Literal["none", "student"] = "none"

    @model_validator(mode="after")
    def _phases(self) -> DistillOptions:
        if (self.schedule == "two_phase") != (self.refine_iter is not None):
            raise UserError("refine_iter belongs to schedule two_phase: give both or neither")
        return self


class MixingOptions(_Options):
    """Mixup of the images of a batch (Restormer's denoising recipes)."""

    mixup: bool = False
    mixup_beta: Annotated[float, Field(gt=0)] = 1.2
    use_identity: bool = True


class TrainOptions(_Options):
    """The training recipe."""

    total_iter: Positive
    optim_g: OptimOptions
    optim_r: OptimOptions | None = None
    scheduler: Block | None = None
    scheduler_r: Block | None = None
    warmup_iter: Annotated[int, Field(ge=-1), WHOLE] = -1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_grad_clip: bool = True
    grad_clip: Annotated[float, Field(gt=0)] = 0.01
    total_batch: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    mixing_augs: MixingOptions | None = None
    max_nonfinite: Positive = 10
    pixel_opt: Block
    refine_opt: Block | None = None
    spd_opt: SpdOptions | None = None
    sgr_opt: SgrOptions | None = None
    distill: DistillOptions = DistillOptions()


class DiffusionOptions(_Options):
    """The diffusion of SAM-DiffSR (diffusion.schedule, diffusion.process).

    schedule: cosine has `s`, linear beta_start and beta_end. modulation: how SAM's structure enters the forward noise;
    strength: how much of it; profile: over the times, for invertible. mean: what the position encoding divides a mask's
    sum by.
    """

    schedule: Literal["cosine", "linear"] = "cosine"
    timesteps: Annotated[int, Field(ge=2), WHOLE] = 100
    s: Annotated[float, Field(gt=0)] = 0.008
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    modulation: Literal["none", "released", "paper", "invertible"] = "none"
    strength: Share = 1.0
    profile: Literal["flat", "signal", "noise", "released"] = "flat"
    target: Literal["noise", "x_0", "v"] = "noise"
    mean: Literal["image", "region"] = "image"

    @property
    def needs_masks(self) -> bool:
        """Whether training looks at masks."""
        return self.modulation != "none" and self.strength > 0


class SamplingOptions(_Options):
    """How a diffusion network makes an image. seed: with the image's name it fixes the noise.

    steps left out are the sampler's default (engine.restore.sampling). spacing: of the times. precision: of the
    network.
    """

    sampler: Literal["ddpm", "ddim", "dpm_solver_2m"] | None = None
    steps: Positive | None = None
    spacing: Literal["uniform", "logsnr"] = "logsnr"
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Count = 0
    precision: Literal["fp32", "bf16"] = "fp32"


class ValOptions(_Options):
    """Validation during training, and the test of test.py.

    samples: images that a diffusion network makes of each in test.py. published: a table of published figures that is
    printed beside ours (engine.evaluate.published). max_minibatch: tiles at once (engine.restore.build has the
    default).
    """

    val_freq: Positive | None = None
    save_img: bool = False
    sampling: SamplingOptions = SamplingOptions()
    samples: Positive = 1
    published: str | None = None
    metrics: dict[str, Block] = {}
    use_image: bool = True
    refiner: bool = False
    grids: bool = False
    crop_size: Positive | None = None
    overlap: Count | None = None
    max_minibatch: Positive | None = None
    window_size: Positive | None = None
    self_ensemble: bool = False
    random_crop_num: Count | None = None
    rgb2bgr: bool | None = None
    suffix: str | None = None
    pbar: bool | None = None

    @model_validator(mode="after")
    def _grid_has_a_size(self) -> ValOptions:
        if self.grids and self.crop_size is None:
            raise UserError("grids is true without crop_size; set crop_size to the side of a tile, such as 256")
        if self.crop_size is not None and self.overlap is not None and self.overlap >= self.crop_size:
            raise UserError(f"overlap {self.overlap} is not smaller than crop_size {self.crop_size}")
        return self


class LoggerOptions(_Options):
    """What is written while a run goes on."""

    print_freq: Positive = 100
    save_checkpoint_freq: Positive = 5000
    use_tb_logger: bool = False
    wandb: Any = None


class Options(_Options):
    """One option file, resolved."""

    name: FolderName
    model_type: ModelType = "ImageRestorationModel"
    scale: Positive = 1
    num_gpu: Count | Literal["auto"] | None = None
    manual_seed: Count = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = True
    checkpoint_activations: bool = False
    find_unused_parameters: bool = False
    deterministic: bool = False
    plugins: tuple[str, ...] = ()
    datasets: dict[str, DatasetOptions] = {}
    network_g: Block
    network_r: Block | None = None
    spf: Block | None = None
    path: PathOptions = PathOptions()
    diffusion: DiffusionOptions | None = None
    train: TrainOptions | None = None
    val: ValOptions | None = None
    logger: LoggerOptions = LoggerOptions()
    dist_params: dict[str, Any] | None = None
    img_path: dict[str, Any] | None = None

    @property
    def distills(self) -> bool:
        """Whether this is SAM4IR training, with a refiner beside the student."""
        return self.model_type == "SAM4IRModel"

    @property
    def basicsr(self) -> bool:
        """Whether metric names mean what BasicSR means by them, not what NAFNet, HINet and Restormer do."""
        return self.model_type == "SRModel"

    @property
    def diffuses(self) -> bool:
        """Whether the network is a diffusion network."""
        return self.model_type == DIFFUSION_MODEL

    @property
    def process(self) -> DiffusionOptions:
        """The diffusion, by default that of the released SRDiff."""
        return self.diffusion or DiffusionOptions()

    def phase(self, prefix: str) -> dict[str, DatasetOptions]:
        """The data sets whose key starts with `train`, `val` or `test`, without validation and test placeholders."""
        named = {k: v for k, v in self.datasets.items() if k.startswith(prefix)}
        return {k: v for k, v in named.items() if prefix == "train" or not v.placeholder}

    @property
    def scored(self) -> dict[str, DatasetOptions]:
        """The data sets of test.py: the test sets; in a file without any and without training, the validation sets."""
        return self.phase("test") or (self.phase("val") if self.train is None else {})


# Known keys of the field's files that do nothing here, and why. A key of a path may be a
# pattern: `*` is any text, `|` stands between alternatives.
WITHOUT_EFFECT: Mapping[tuple[str, ...], str] = {
    ("dist_params",): "torchrun sets up the processes",
    ("img_path",): "scripts/restore.py restores single images and takes their paths on its command line",
    ("datasets", "*", "prefetch_mode"): "batches are pinned and copied ahead on CUDA by themselves",
    ("datasets", "*", "num_prefetch_queue"): "batches are pinned and copied ahead on CUDA by themselves",
    ("datasets", "*", "phase"): "the key of the data set (train, val, test) says it",
    ("datasets", "val*|test*", "gt_sizes"): "only training has stages",
    ("datasets", "val*|test*", "mini_batch_sizes"): "only training has stages",
    ("datasets", "val*|test*", "iters"): "only training has stages",
    ("datasets", "*", "without_effect", "*"): "the data set makes its degraded images from the clean ones",
    ("logger", "wandb", "project"): "scalars go to TensorBoard and to log.jsonl",
    ("val", "random_crop_num"): "tiles cover the image evenly and are blended",
    ("val", "rgb2bgr"): "images are RGB everywhere and files are written in the right order",
    ("val", "suffix"): "images are saved under the name of the run",
    ("val", "pbar"): "long work shows a progress bar when it runs in a terminal",
}


def _block_schema(registry: Registry, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Any of the known types, each with its own arguments, or a name that a plugin adds."""
    branches: list[dict[str, Any]] = []
    for name in registry.names():
        own = arguments_model(registry.get(name), registry.handed).model_json_schema()
        own.pop("title", None)
        own["properties"] = {"type": {"const": name}, **extra, **own.get("properties", {})}
        optional: set[str] = set()
        if registry is DATASETS:
            _data_set_spellings(name, own["properties"])
        if registry is SCHEDULES:
            optional = {TOTAL}  # as_ours fills it in
        own["required"] = ["type", *(key for key in own.get("required", []) if key not in optional)]
        branches.append(own)
    others: dict[str, Any] = {"type": {"type": "string", "not": {"enum": registry.names()}}}
    branches.append({"type": "object", "properties": others, "required": ["type"]})
    return {"anyOf": branches}


def _data_set_spellings(name: str, properties: dict[str, Any]) -> None:
    """What as_ours and the placeholders of official files take beyond the signature."""
    if takes_geometric(name):
        properties[GEOMETRIC] = {"type": "boolean"}
    properties.update({key: {"type": "string"} for key in idle(name)})
    for key, own in properties.items():
        if key.startswith("dataroot"):
            properties[key] = {"anyOf": [own, {"type": "null"}]}


def _official_spellings(definitions: dict[str, Any]) -> None:
    """Keys that config/official.py brings into ours."""
    definitions["TrainOptions"]["properties"][MIXUP] = {"type": "boolean"}
    val = definitions["ValOptions"]["properties"]
    val[ENSEMBLE] = {"enum": [1, 8]}
    val.update({key: {"type": "integer", "minimum": 1} for key in CROP_SIDES})


def json_schema() -> dict[str, Any]:
    """JSON schema of an option file, the `type:` blocks spelled out by registry."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Options.model_json_schema()}
    definitions = schema["$defs"]
    definitions["Degradation"] = _block_schema(DEGRADATIONS, {})
    definitions["View"] = _block_schema(VIEWS, {})
    definitions["MasksOptions"]["properties"]["views"]["items"] = {"$ref": "#/$defs/View"}
    loader = definitions["DatasetOptions"]["properties"]
    chain = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Degradation"}}
    loader["degradations"] = {"anyOf": [chain, {"type": "null"}]}
    definitions["DatasetOptions"] = _block_schema(DATASETS, {k: v for k, v in loader.items() if k != "type"})
    for owner, key, registry in (
        (schema, "network_g", ARCHS),
        (schema, "network_r", ARCHS),
        (schema, "spf", FUSIONS),
        (definitions["TrainOptions"], "pixel_opt", LOSSES),
        (definitions["TrainOptions"], "refine_opt", LOSSES),
        (definitions["TrainOptions"], "scheduler", SCHEDULES),
        (definitions["TrainOptions"], "scheduler_r", SCHEDULES),
    ):
        block = _block_schema(registry, {})
        if key not in owner["required"]:
            block["anyOf"].append({"type": "null"})
        owner["properties"][key] = block
    metrics = definitions["ValOptions"]["properties"]["metrics"]
    metrics["additionalProperties"] = _block_schema(METRICS, {})
    _official_spellings(definitions)
    return schema


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
