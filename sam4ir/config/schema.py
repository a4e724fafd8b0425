"""The keys of an option file: frozen pydantic models that forbid unknown keys everywhere.

Each field has a description below it, which the JSON schema and docs/options.md repeat.
`python -m sam4ir.config.schema` prints the JSON schema that editors use for completion.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from sam4ir.config.block_schema import block_schema, part_schema
from sam4ir.config.official import (
    BASICSR_MODELS,
    CROP_SIDES,
    ENSEMBLE,
    MIXUP,
    OFFICIAL_MODELS,
    SPELLINGS,
    is_placeholder,
)
from sam4ir.config.signature import WHOLE, plain_defaults
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, FUSIONS, LOSSES, METRICS, SCHEDULES, TERMS, VIEWS
from sam4ir.utils import cli


def folder_name(value: str) -> str:
    """Return a text that may name one folder or file, since it becomes part of paths. Raises UserError otherwise."""
    if not value.strip():
        raise UserError(f"{value!r} is empty; it names a folder")
    if value.startswith(".") or value != value.strip():
        raise UserError(f"{value!r} names a folder, so it may not begin with a dot nor begin or end with a space")
    if re.search(r'[/\\<>:"|?*]', value) or not value.isprintable():
        raise UserError(f'{value!r} names a folder, so it may not hold / \\ < > : " | ? * or control characters')
    if len(value.encode()) > 200:
        raise UserError(f"{value[:20]!r}... names a folder, so it may have 200 bytes at most")
    return value


FolderName = Annotated[str, AfterValidator(folder_name)]
Count = Annotated[int, Field(ge=0), WHOLE]
Positive = Annotated[int, Field(ge=1), WHOLE]
Share = Annotated[float, Field(ge=0)]
TermName = Annotated[str, Field(pattern=r"^[a-z]\w*$")]

SHORT_TERMS = {"spd": "SPD", "sgr": "SGR"}  # name of a term -> its type, for the keys train.<name>_opt
PLAIN_MODELS = OFFICIAL_MODELS
DIFFUSION_MODEL = "SAMDiffSRModel"
GAN_MODEL = "ESRGANModel"
ModelType = Literal[
    "ImageRestorationModel", "SRModel", "ImageCleanModel", "ESRGANModel", "SAM4IRModel", "SAMDiffSRModel"
]


class _Options(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Block(_Options):
    """A part by its name and the arguments of its constructor, which config/load.py checks against the signature."""

    model_config = ConfigDict(extra="allow")
    type: str
    """Name of the part in its table of registry.py, or the name that a plugin registers."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments: all keys beside those that a model declares."""
        return dict(self.model_extra or {})

    @property
    def block(self) -> dict[str, Any]:
        """The block as an option file writes it: {type: ..., argument: value ...}."""
        return {"type": self.type, **self.arguments}


class MasksOptions(_Options):
    """The mask store of a data set."""

    store: str
    """Path of the mask store (an LMDB that sam4ir make-masks or sam4ir masks writes); its keys are the image
    keys."""
    source: Literal["gt", "lq", "restored"] | None = None
    """Images that the masks must come from: ground truth, degraded or restored ones; a store of other images is an
    error. Without it any store will do."""
    views: tuple[Block, ...] = ()
    """Further maps that masks bring to a sample, beside those that the model reads; for parts of a plugin."""

    @model_validator(mode="after")
    def _views_have_names_of_their_own(self) -> MasksOptions:
        names = [view.type for view in self.views]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"has two views of type {name}, whose maps would have one name; keep one")
        return self


class DatasetOptions(Block):
    """A data set and its loader; the other keys are the data set's own arguments."""

    name: FolderName | None = None
    """Name of the data set in logs, results and folders; without it the key (train, val, test ...) is the name."""
    phase: str | None = None
    """Read from BasicSR's files and without effect; the key of the data set says whether it trains or tests."""
    masks: MasksOptions | None = None
    """Mask store of the data set, which SAM4IR's training, SAM-DiffSR's training and val.refiner read."""
    degradations: Annotated[tuple[Block, ...], Field(min_length=1)] | None = None
    """Degradations of the clean images, applied on the fly in the order of the list; DegradedImageDataset needs it."""
    batch_size_per_gpu: Positive = 1
    """Samples in a micro-batch of one process; train.total_batch sums several micro-batches in a step."""
    mini_batch_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Micro-batch of each stage of progressive training, in place of batch_size_per_gpu."""
    iters: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Iterations of each stage of progressive training; the stages follow one another."""
    gt_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Side of the ground truth crops in each stage of progressive training, in pixels, in place of gt_size."""
    bad_images: Literal["stop", "skip"] = "stop"
    """Reaction to an image that cannot be read: stop ends the run, skip names the image and draws another one."""
    num_worker_per_gpu: Count = 0
    """Worker processes that load images ahead for each training process; any number gives the same data."""
    use_shuffle: bool = True
    """Whether the training images are shuffled, in a new order for each epoch."""
    dataset_enlarge_ratio: Positive = 1
    """Rounds through the data set that make one epoch, shuffled together."""
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    """Read from BasicSR's files and without effect; batches are copied ahead on CUDA by themselves."""
    num_prefetch_queue: Count | None = None
    """Length of BasicSR's prefetch queue, without effect; batches are copied ahead on CUDA by themselves."""
    pin_memory: bool | None = None
    """Whether batches go through pinned memory where the run uses CUDA; without it they do."""
    without_effect: dict[str, Any] | None = None
    """Keys of official files that the data set has no use for; the loader moves them here and reports each of them."""

    @property
    def placeholder(self) -> bool:
        """Whether the block only shows where a data set would go: every dataroot is null, as HINet's files have it."""
        return is_placeholder(self.arguments)


class PathOptions(_Options):
    """Sources of weights, and the folder of a run."""

    root: str = "."
    """Folder in which experiments/, results/ and tb_logger/ are made."""
    pretrain_network_g: str | None = None
    """Weights that the deployed network starts from or is tested with: a file, or a name of sam4ir weights
    list such as zoo:NAFNet-SIDD-width32."""
    pretrain_network_c: str | None = None
    """Weights of the RRDB network that conditions a diffusion network, with the keys of BasicSR or of SRDiff."""
    param_key_g: str | None = None
    """Entry of the weights file to read, such as params or params_ema. Without it params_ema goes before params. In a
    file with an official model type params goes first, as in BasicSR, but for a test of its own training's average."""
    param_key: str | None = None
    """Another spelling of param_key_g, which wins where a file has both."""
    strict_load_g: bool = True
    """Whether the weights must fit the network in all names and shapes; false loads what fits and logs the rest."""
    resume_state: str | None = None
    """Training state (.state) that the run continues from; with --auto_resume the run's own newest state wins."""


class OptimOptions(_Options):
    """An optimiser of torch, fused where the device has one."""

    type: Literal["Adam", "AdamW"] = "AdamW"
    """Optimiser: Adam, or AdamW with its decoupled weight decay."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Base learning rate, which the scheduler changes from iteration to iteration."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    weight_decay: Share | None = None
    """Weight decay; without it torch's own default holds: 0.01 for AdamW, 0 for Adam."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Number that is added to the denominator of the update."""

    @property
    def decay(self) -> float:
        """The weight decay in effect."""
        if self.weight_decay is not None:
            return self.weight_decay
        return {"AdamW": 0.01, "Adam": 0.0}[self.type]


class TermOptions(Block):
    """A distillation term: its type, its weight and its use; the other keys are the arguments of that type."""

    loss_weight: Share | None = None
    """Fixed weight of the term in the loss; 0 switches the term off."""
    balance: Share | None = None
    """Share of the reconstruction's gradient that the term takes, from which its weight is measured as training goes
    on; 0 switches the term off. Without both keys it is 0.3 for SPD and 0.05 for SGR."""
    every: Positive = 1
    """Iterations between two computations of the term, whose weight grows by the same factor."""
    fade: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training, at its end, in which the term's weight falls to 0 on a line; 1/3 leaves the last third to
    the ground truth more and more."""
    target: Literal["refiner", "gt"] = "refiner"
    """Image that the term pulls the student's image to: the refiner's output, or the ground truth as a control."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Write the defaults of the type's own arguments out, so that a saved option file shows them."""
        if not isinstance(values, Mapping) or values.get("type") not in TERMS:
            return values
        return {**plain_defaults(TERMS, values["type"]), **values}

    @model_validator(mode="after")
    def _one_of_two(self) -> TermOptions:
        if self.loss_weight is not None and self.balance is not None:
            raise UserError("has loss_weight and balance; one sets the weight, the other measures it: keep one")
        return self

    @property
    def off(self) -> bool:
        """Whether the term is switched off (weight 0)."""
        return self.loss_weight == 0 or (self.loss_weight is None and self.balance == 0)


def _of_type(name: str) -> BeforeValidator:
    """Return a validator that adds `type: name` to a term whose key already names its type."""

    def add(values: Any) -> Any:
        """Add the type to a block; leave anything else to the checks that follow."""
        if not isinstance(values, Mapping):
            return values
        return {"type": name, **values}

    return BeforeValidator(add)


class DistillOptions(_Options):
    """Joint training of student and refiner."""

    terms: dict[TermName, TermOptions] = {}
    """Further distillation terms by the names that the log gives them, each with a type; spd_opt and sgr_opt are short
    forms for terms of the names spd and sgr."""
    schedule: Literal["joint", "two_phase"] = "joint"
    """Order of training: joint trains both networks at once; two_phase trains the refiner first, then the student
    beside the frozen refiner."""
    start_iter: Count | None = None
    """Iteration after which the distillation terms join the loss (schedule joint); without it a tenth of total_iter."""
    refine_iter: Positive | None = None
    """Iterations that train the refiner alone; schedule two_phase needs it. With total_iter the student never trains,
    which measures what a refiner gains with some masks."""
    teacher: Literal["raw", "ema"] = "raw"
    """Refiner whose output is the target: the trained one, or its running average, which needs ema_decay above 0."""
    masks: Literal["store", "empty", "own"] = "store"
    """Masks that the refiner sees: those of the store; none, as a control without SAM; or segments of the student's own
    output, made anew in each step by Felzenszwalb's method."""
    init_refiner: Literal["none", "student"] = "none"
    """Start of the refiner's second network: random weights, or those of path.pretrain_network_g."""

    @model_validator(mode="after")
    def _phases(self) -> DistillOptions:
        if (self.schedule == "two_phase") != (self.refine_iter is not None):
            raise UserError("refine_iter belongs to schedule two_phase: give both or neither")
        return self


class MixingOptions(_Options):
    """Mixup of the images of a batch (Restormer's denoising recipes)."""

    mixup: bool = False
    """Whether each image of a total batch is mixed with another one, ground truth and degraded input alike."""
    mixup_beta: Annotated[float, Field(gt=0)] = 1.2
    """Both parameters of the Beta distribution that the share of an image is drawn from."""
    use_identity: bool = True
    """Whether half of the total batches, by chance, stay unmixed."""


class TrainOptions(_Options):
    """The training recipe."""

    total_iter: Positive
    """Iterations of the run; one iteration is one step of the optimiser."""
    optim_g: OptimOptions
    """Optimiser of the deployed network, which is the student in SAM4IR."""
    optim_r: OptimOptions | None = None
    """Optimiser of the refiner; without it the refiner uses optim_g."""
    scheduler: Block | None = None
    """Schedule of the learning rate; without it the rate stays constant."""
    scheduler_r: Block | None = None
    """Schedule of the refiner's learning rate; without it the refiner follows scheduler."""
    warmup_iter: Annotated[int, Field(ge=-1), WHOLE] = -1
    """Iterations in which the learning rate rises on a line from 0; -1 and 0 mean no warm-up."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running average of the weights, which validation and tests use; 0 keeps no average."""
    ema_warmup: bool | None = None
    """Whether the decay rises to ema_decay in the first updates, so that the average forgets the first weights soon.
    Without the key it does, but not for an official model type in the file, where it is constant as in BasicSR."""
    use_grad_clip: bool = True
    """Whether the gradient norm of each network is clipped to grad_clip; without the key SRModel does not clip, as in
    BasicSR."""
    grad_clip: Annotated[float, Field(gt=0)] = 0.01
    """Largest gradient norm of a network with use_grad_clip."""
    total_batch: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """Samples in one step over all processes, or a list with a number for each stage; a multiple of the micro-batch.
    Without it a step takes one micro-batch of each process."""
    mixing_augs: MixingOptions | None = None
    """Mixing of the images of a total batch; SAM4IR and data sets with masks do not allow it."""
    max_nonfinite: Positive = 10
    """Steps in a row without a finite loss or gradient that end the run; fewer of them are skipped."""
    pixel_opt: Block | None = None
    """Reconstruction loss, l_pix in the log; may be left out beside losses or perceptual_opt. In SAM-DiffSR it is the
    loss on the diffusion target, L1Loss or MSELoss, and required."""
    losses: dict[str, Block] = {}
    """Further reconstruction losses by names of your own, l_NAME in the log; all are summed. The student and, without
    refine_opt, the refiner (l_refine_NAME) have them."""
    perceptual_opt: Block | None = None
    """Further reconstruction loss of BasicSR's files, usually PerceptualLoss; l_percep and l_style in the log."""
    refine_opt: Block | None = None
    """Only reconstruction loss of the refiner, l_refine in the log; without it the refiner has those of the student."""
    spd_opt: Annotated[TermOptions | None, _of_type(SHORT_TERMS["spd"])] = None
    """Distillation term of type SPD with the name spd; without it the term is off."""
    sgr_opt: Annotated[TermOptions | None, _of_type(SHORT_TERMS["sgr"])] = None
    """Distillation term of type SGR with the name sgr; without it the term is off."""
    distill: DistillOptions = DistillOptions()
    """Joint training of SAM4IR's student and refiner."""

    @property
    def terms(self) -> dict[str, tuple[tuple[str, ...], TermOptions]]:
        """The distillation terms by name (spd, sgr, then others), each with its key path in the option file."""
        terms: dict[str, tuple[tuple[str, ...], TermOptions]] = {}
        if self.spd_opt is not None:
            terms["spd"] = (("train", "spd_opt"), self.spd_opt)
        if self.sgr_opt is not None:
            terms["sgr"] = (("train", "sgr_opt"), self.sgr_opt)
        for name, term in self.distill.terms.items():
            terms[name] = (("train", "distill", "terms", name), term)
        return terms


class DiffusionOptions(_Options):
    """The diffusion of SAM-DiffSR (diffusion.schedule, diffusion.process)."""

    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule: cosine has the argument s, linear has beta_start and beta_end."""
    timesteps: Annotated[int, Field(ge=2, le=100_000), WHOLE] = 100
    """Steps of the forward process."""
    s: Annotated[float, Field(gt=0)] = 0.008
    """Offset of the cosine schedule, which keeps the first betas from being too small."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """First beta of the linear schedule."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Last beta of the linear schedule."""
    modulation: Literal["none", "released", "paper", "invertible"] = "none"
    """Use of the structural position encoding (SPE) of SAM's masks in the forward noise: none (SRDiff), as in the
    released code, by the paper's equations, or in a form that keeps x_0 exact."""
    strength: Share = 1.0
    """Factor of the SPE; 0 makes the process plain diffusion."""
    profile: Literal["flat", "signal", "noise", "released"] = "flat"
    """Course of the strength of modulation invertible over the time steps, scaled to a mean square of 1."""
    target: Literal["noise", "x_0", "v"] = "noise"
    """Quantity that the network predicts; modulation paper allows noise alone."""
    mean: Literal["image", "region"] = "image"
    """Area in pixels that the encoding's sum over a mask is divided by: the image's, as released, or the mask's own."""

    @property
    def needs_masks(self) -> bool:
        """Whether training looks at masks."""
        return self.modulation != "none" and self.strength > 0


class SamplingOptions(_Options):
    """Sampling of an image by a diffusion network."""

    sampler: Literal["ddpm", "ddim", "dpm_solver_2m"] | None = None
    """Sampler; without it ddpm. Modulation paper allows ddpm alone."""
    steps: Positive | None = None
    """Network evaluations for an image, diffusion.timesteps at most; without it 20, or 15 for dpm_solver_2m."""
    spacing: Literal["uniform", "logsnr"] = "logsnr"
    """Spacing of the sampled time steps: uniform in time, or uniform in the logarithm of the signal-to-noise ratio."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise in each step of ddim: 0 is deterministic, 1 has the noise of ddpm."""
    seed: Count = 0
    """Seed of the sampling noise, which is a function of the seed, the image's key and the number of the sample."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Number format of the network while it samples; bf16 means autocast to bfloat16, and auto means bf16 where it is
    fast."""


class SaveOptions(_Options):
    """Images that a validation and sam4ir test save."""

    panel: Annotated[
        tuple[Literal["lq", "restored", "refined", "gt", "error", "regions"], ...], Field(min_length=1)
    ] = ("lq", "restored", "gt")
    """Views that are put side by side, with their scores, into one picture of each image, in this order. Restored
    images are saved as files of their own too. refined and regions need val.refiner; sam4ir test leaves them out."""


class ValOptions(_Options):
    """Validation during training, and what sam4ir test does."""

    val_freq: Positive | None = None
    """Iterations between two validations; without it nothing is validated."""
    save_img: bool | SaveOptions = False
    """Whether restored images are written as PNG files; or {panel: [lq, restored, gt]} for pictures side by side too,
    in the folder panels of the run or the result."""
    sampling: SamplingOptions = SamplingOptions()
    """Sampling of images by a diffusion network."""
    samples: Positive = 1
    """Images that a diffusion network draws for each input in sam4ir test; scores then have a mean and a spread."""
    published: str | None = None
    """Table of published figures that sam4ir test prints beside ours, such as SAM-DiffSR."""
    metrics: dict[str, Block] = {}
    """Metrics to report, under column names of your choice."""
    panel: Count = 4
    """Crops of validation images that each validation shows, restored beside their ground truth: in TensorBoard and in
    visualization/panel. The crops are the same at each validation; 0 shows none."""
    save_best: str | None = None
    """Score whose best weights are kept as models/net_g_best: a name in metrics (the mean of all validation sets), or
    SET/NAME for one set, such as psnr or set5/psnr."""
    patience: Positive | None = None
    """Validations without a better score of save_best after which the run ends early; without it the run goes to
    train.total_iter."""
    use_image: bool = True
    """Whether outputs are rounded to 8 bits before they are scored, as a saved image would be."""
    refiner: bool = False
    """Whether the refiner of SAM4IR is scored too, which needs masks for the validation set."""
    grids: bool = False
    """Whether images are restored in tiles of crop_size rather than whole."""
    crop_size: Positive | None = None
    """Side of a tile in pixels of the input; needed and used with grids only."""
    overlap: Count | None = None
    """Pixels of the input that neighbouring tiles share at least, where they are blended; 0 gives HINet's and NAFNet's
    tiles, as few as cover the image. Without it an eighth of crop_size, or 0 for an official model type in the file."""
    max_minibatch: Positive | None = None
    """Tiles that go through the network at once; without it 8, and for a diffusion network as many as have the pixels
    of one tile of 128 x 128."""
    window_size: Positive | None = None
    """Divisor of the sides of an image in pixels, to which it is padded by reflection; without it the network pads."""
    self_ensemble: bool = False
    """Whether the output is the mean over the eight flips and rotations of the image."""
    random_crop_num: Count | None = None
    """Number of random tiles in NAFNet's files, without effect; tiles cover the image evenly."""
    rgb2bgr: bool | None = None
    """Channel order in NAFNet's and Restormer's files, without effect; images are RGB everywhere."""
    suffix: str | None = None
    """Suffix of saved images in BasicSR's files, without effect; images are saved under the name of the run."""
    pbar: bool | None = None
    """Progress bar of BasicSR's files, without effect; long work shows one when it runs in a terminal."""

    @model_validator(mode="after")
    def _grid_has_a_size(self) -> ValOptions:
        if self.grids and self.crop_size is None:
            raise UserError("grids is true without crop_size; set crop_size to the side of a tile, such as 256")
        if self.crop_size is not None and self.overlap is not None and self.overlap >= self.crop_size:
            raise UserError(f"overlap {self.overlap} is not smaller than crop_size {self.crop_size}")
        return self


class WandbOptions(_Options):
    """Weights & Biases. A resumed run goes on with the id that experiments/NAME/trackers holds."""

    project: str | None = None
    """Project that the run belongs to; without it nothing is sent."""
    resume_id: str | None = None
    """Id of a run of the service to go on with, where the run folder names none."""
    entity: str | None = None
    """Account or team; without it that of the login."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """Whether points are sent at once, or kept in the run folder for `wandb sync`; without it as WANDB_MODE says."""


class MlflowOptions(_Options):
    """MLflow. A resumed run goes on with the id that experiments/NAME/trackers holds."""

    experiment: str = "sam4ir"
    """Experiment that the run belongs to."""
    tracking_uri: str | None = None
    """Address of the server or database; without it MLFLOW_TRACKING_URI, or mlflow.db below path.root."""


class TrackioOptions(_Options):
    """Settings of trackio, of Hugging Face. A resumed run goes on under its name."""

    project: str = "sam4ir"
    """Project that the run belongs to."""
    space_id: str | None = None
    """Space of Hugging Face (owner/name) that shows the runs; without it `trackio show` shows them here."""


class LoggerOptions(_Options):
    """Intervals of the log and of checkpoints, and the places that they go to."""

    print_freq: Positive = 100
    """Iterations between two lines of the console and the log file; log.jsonl has every iteration."""
    save_checkpoint_freq: Positive = 5000
    """Iterations between two checkpoints (weights and training state); the last iteration is always saved."""
    keep_last: Positive | None = None
    """Training states that stay, those of the newest checkpoints; without it all. The weights of older checkpoints stay
    (see keep_last_weights); a run resumes from a state alone."""
    keep_last_weights: Positive | None = None
    """Checkpoints whose weights stay, the newest ones; without it all. It needs keep_last, which it cannot be less
    than. net_g_best and net_g_latest stay in any case."""
    save_format: Literal["pth", "safetensors"] = "pth"
    """Format of the weights of a checkpoint. A pth file holds the weights and their average (EMA). A safetensors file
    holds what is deployed, the average where there is one, and describes its network; the weights that were averaged
    are then in net_g_ITERATION_params.safetensors beside it."""
    use_tb_logger: bool | None = None
    """Whether curves and pictures go to TensorBoard, in tb_logger/NAME; without it they do where it is installed."""
    wandb: WandbOptions | None = None
    """Weights & Biases, which needs the extra sam4ir[wandb]; without a project nothing goes there, as in BasicSR."""
    mlflow: MlflowOptions | None = None
    """MLflow, which needs the extra sam4ir[mlflow]; `mlflow: {}` keeps runs in mlflow.db below path.root."""
    trackio: TrackioOptions | None = None
    """The program trackio, which needs the extra sam4ir[trackio]; `trackio: {}` keeps runs on this machine."""

    @model_validator(mode="after")
    def _states_have_weights(self) -> LoggerOptions:
        if self.keep_last_weights is not None and self.keep_last_weights < (self.keep_last or sys.maxsize):
            raise UserError("keep_last_weights needs keep_last, and at least its number: a state needs its weights")
        return self


class Options(_Options):
    """One option file, resolved."""

    name: FolderName
    """Name of the run, which names its folders: experiments/NAME, results/NAME, tb_logger/NAME."""
    model_type: ModelType = "ImageRestorationModel"
    """Kind of training: a plain network (ImageRestorationModel, SRModel with BasicSR's metrics, ImageCleanModel),
    distillation from SAM's masks (SAM4IRModel) or diffusion (SAMDiffSRModel). BasicSR's ESRGANModel only tests."""
    scale: Positive = 1
    """Side of the restored image over the side of the input; 1 but in super-resolution."""
    num_gpu: Count | Literal["auto"] | None = None
    """Number of GPUs in BasicSR's files, without effect; torchrun sets the number of processes."""
    manual_seed: Count = 0
    """Seed of the run; weights, order of images, crops and noise are functions of it."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    """Device of the run: auto, cpu, cuda, cuda:N or mps; auto takes CUDA where there is one and the CPU otherwise."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of training: bf16 and fp16 mean autocast, while weights and losses stay float32; fp16 scales the
    loss. auto means bf16 where it is fast (CUDA 8.0 and later, CPUs with AMX or AVX512-BF16) and fp32 elsewhere."""
    compile: bool | Literal["inference"] = False
    """Whether torch.compile is timed at the start of the run and kept where it is faster. `inference` compiles nothing
    in a training; `sam4ir restore` and `sam4ir test` then run code in which the weights are constants."""
    channels_last: bool = True
    """Whether weights and images lie in memory format channels_last, the fastest one for our networks."""
    checkpoint_activations: bool = False
    """Whether blocks compute their activations again in the backward pass: less memory for about one more forward pass
    a step."""
    find_unused_parameters: bool = False
    """Whether parameters that no loss reaches are allowed; otherwise they are an error when several processes train."""
    deterministic: bool = False
    """Whether CUDA repeats a run bit for bit, which is slower; a CPU does so anyway."""
    plugins: tuple[str, ...] = ()
    """Modules with your own parts, beside the option file or on the Python path; they are imported first."""
    datasets: dict[str, DatasetOptions] = {}
    """Data sets by key: train, and any number of keys that begin with val or test."""
    network_g: Block
    """The deployed network, which is the student in SAM4IR: one of those below, of a plugin, or spandrel:NAME."""
    network_r: Block | None = None
    """Second network of the refiner; without it the same as network_g."""
    spf: Block | None = None
    """Fusion of restored image and masks in front of the refiner's network; without it SPF with its defaults."""
    path: PathOptions = PathOptions()
    """Sources of weights, and the folder that a run writes to."""
    diffusion: DiffusionOptions | None = None
    """Forward process of a diffusion network (SAMDiffSRModel)."""
    train: TrainOptions | None = None
    """Training recipe; a file for sam4ir test alone has none."""
    val: ValOptions | None = None
    """Validation during training and what sam4ir test does."""
    logger: LoggerOptions = LoggerOptions()
    """Log and checkpoints of a run."""
    dist_params: dict[str, Any] | None = None
    """Settings of distributed training in BasicSR's files, without effect; torchrun sets up the processes."""
    img_path: dict[str, Any] | None = None
    """Paths of single images in NAFNet's files, without effect; sam4ir restore works on single images."""
    _trained_average: bool = PrivateAttr(default=False)  # load_options sets it where it leaves `train` out

    def with_average(self) -> Options:
        """Return the options of a network that was trained with an average, where they lack the training itself."""
        copy = self.model_copy()
        copy._trained_average = True
        return copy

    @property
    def distills(self) -> bool:
        """Whether this is SAM4IR training, with a refiner beside the student."""
        return self.model_type == "SAM4IRModel"

    @property
    def basicsr(self) -> bool:
        """Whether metric names have BasicSR's meaning, not that of NAFNet, HINet and Restormer."""
        return self.model_type in BASICSR_MODELS

    @property
    def ema_warms_up(self) -> bool:
        """Whether the decay of the weights' average rises at first, where no checkpoint decides."""
        if self.train is not None and self.train.ema_warmup is not None:
            return self.train.ema_warmup
        return not self.official

    @property
    def official(self) -> bool:
        """Whether the file states a model type of BasicSR, NAFNet, HINet or Restormer."""
        return self.model_type in OFFICIAL_MODELS and "model_type" in self.model_fields_set

    @property
    def reads_average(self) -> bool:
        """Whether a test reads the average of the weights (params_ema) where a file holds both.

        Official files mean params, unless they train with an average, which their validation scores.
        """
        averaged = self.train is not None and self.train.ema_decay > 0
        return not self.official or averaged or self._trained_average

    @property
    def diffuses(self) -> bool:
        """Whether the network is a diffusion network."""
        return self.model_type == DIFFUSION_MODEL

    @property
    def process(self) -> DiffusionOptions:
        """The diffusion, by default that of the released SRDiff."""
        return self.diffusion or DiffusionOptions()

    def phase(self, prefix: str) -> dict[str, DatasetOptions]:
        """Return the data sets whose key starts with `train`, `val` or `test`, without test placeholders.

        Placeholders among validation and test sets are left out; a training set never is.
        """
        chosen = {}
        for key, dataset in self.datasets.items():
            if key.startswith(prefix) and (prefix == "train" or not dataset.placeholder):
                chosen[key] = dataset
        return chosen

    @property
    def scored(self) -> dict[str, DatasetOptions]:
        """The data sets of sam4ir test: test sets; in a file without any and without training, the validation sets."""
        tests = self.phase("test")
        if not tests and self.train is None:
            return self.phase("val")
        return tests


def _official_spellings(definitions: dict[str, Any]) -> None:
    """Add the keys of official files that config/official.py replaces by ours."""
    train, val = definitions["TrainOptions"]["properties"], definitions["ValOptions"]["properties"]
    train[MIXUP] = {"type": "boolean"}
    val[ENSEMBLE] = {"enum": [1, 8]}
    for key in CROP_SIDES:
        val[key] = {"type": "integer", "minimum": 1}
    for properties in (train, val):
        for key in properties.keys() & SPELLINGS.keys():
            properties[key]["description"] = SPELLINGS[key]


def _join_lines(schema: Any) -> None:
    """Put every description into one line; those of fields are wrapped as in this file."""
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            schema["description"] = " ".join(schema["description"].split())
        for inner in schema.values():
            _join_lines(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _join_lines(inner)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of an option file; each `type:` block lists the parts of its table and their arguments."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Options.model_json_schema()}
    definitions = schema["$defs"]
    definitions["Degradation"] = block_schema(DEGRADATIONS)
    definitions["View"] = block_schema(VIEWS)
    definitions["MasksOptions"]["properties"]["views"]["items"] = {"$ref": "#/$defs/View"}
    loader = definitions["DatasetOptions"]["properties"]
    chain = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Degradation"}}
    loader["degradations"].update({"anyOf": [chain, {"type": "null"}]})
    del loader["type"]
    definitions["DatasetOptions"] = block_schema(DATASETS, loader)
    for owner, key, registry in (
        (schema, "network_g", ARCHS),
        (schema, "network_r", ARCHS),
        (schema, "spf", FUSIONS),
        (definitions["TrainOptions"], "pixel_opt", LOSSES),
        (definitions["TrainOptions"], "perceptual_opt", LOSSES),
        (definitions["TrainOptions"], "refine_opt", LOSSES),
        (definitions["TrainOptions"], "scheduler", SCHEDULES),
        (definitions["TrainOptions"], "scheduler_r", SCHEDULES),
    ):
        block = block_schema(registry)
        if key not in owner["required"]:
            block["anyOf"].append({"type": "null"})
        block["description"] = owner["properties"][key]["description"]
        owner["properties"][key] = block
    _term_blocks(definitions)
    definitions["TrainOptions"]["properties"]["losses"]["additionalProperties"] = block_schema(LOSSES)
    metrics = definitions["ValOptions"]["properties"]["metrics"]
    metrics["additionalProperties"] = block_schema(METRICS)
    _official_spellings(definitions)
    _join_lines(schema)
    return schema


def _term_blocks(definitions: dict[str, Any]) -> None:
    """Write out the distillation terms with the keys that all of them have; spd_opt and sgr_opt need no `type`."""
    common = definitions["TermOptions"]["properties"]
    del common["type"]
    definitions["TermOptions"] = block_schema(TERMS, common)
    terms = definitions["DistillOptions"]["properties"]["terms"]
    terms["additionalProperties"] = {"$ref": "#/$defs/TermOptions"}
    train = definitions["TrainOptions"]["properties"]
    for short_name, name in SHORT_TERMS.items():
        key = f"{short_name}_opt"
        block = part_schema(TERMS, name, common)
        block["required"].remove("type")
        train[key] = {"anyOf": [block, {"type": "null"}], "default": None, "description": train[key]["description"]}


if __name__ == "__main__":
    cli.run(lambda: print(json.dumps(json_schema(), indent=1)))
