"""What a user's file holds: one settings class per verb."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from jobs.training.plan import Metric
from pipelines.class_lists import AnyClasses
from pipelines.keep import KeepSpec
from pipelines.measures import MetricsSpec
from pipelines.pssl_spec import AnyPssl, EnsembleSpec, PsslSpec
from pipelines.shards import ComputeSpec
from pipelines.sources import AnySource
from seg_models.predictor import PredictorSpec
from seg_models.recipes import resolve_recipe
from seg_models.recipes.recipe import Recipe
from seg_models.spec import AnyModelSpec, Spec
from seg_models.weights.files import SHA256
from seg_models.weights.layouts import find_layout

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names a folder and a run in MLflow. A class of jobs that gives its name a default writes this type again."""
AnyRecipe = Annotated[Recipe, BeforeValidator(resolve_recipe)]
"""A recipe by name, or a table with `base` (a recipe's name) and only what differs, or a whole one."""


class TrackingSpec(Spec):
    """Where MLflow runs go."""

    uri: str | None = None
    """MLflow tracking URI; default: MLFLOW_TRACKING_URI, else the SQLite file `out/mlflow.db` in the current folder."""
    experiment: str = "segray"
    enabled: bool = True
    """Track the job in MLflow."""
    required: bool = True
    """An unreachable server is an error before work starts. If false, the job begins without it; what it logs is kept
    in a journal and sent when the server is there."""


class Job(Spec):
    """What every job has."""

    name: RunName
    """Run name; the same name continues a run."""
    compute: ComputeSpec = ComputeSpec()
    tracking: TrackingSpec = TrackingSpec()
    report: bool = True
    """Write a self-contained HTML report of the run."""


class IngestJob(Job):
    """Images and labels of any source -> a dataset."""

    name: RunName = "ingest"
    source: AnySource
    """What to read: `kind` is folder, imagenet, or a published data set (cityscapes, voc, …)."""
    dataset: str
    """Folder or object-store prefix of the dataset to write."""
    labels: str = "human"
    """Name of the label set written for sources that have labels."""
    shard_rows: int = Field(256, gt=0)
    """Largest number of images in a shard."""
    shard_mb: int = Field(64, gt=0)
    """Largest size of a shard's image bytes, in MB."""
    seed: int = 0
    """Deals images to shards."""
    max_rejected: float = Field(0.5, ge=0, le=1)
    """Largest share of unreadable rows before the job stops with an error."""


class CheckJob(Job):
    """Scan a dataset: label values, class pixels, unreadable files, duplicates between splits."""

    name: RunName = "check"
    dataset: str
    labels: str = "human"
    output: str = "out/check"


class PsslJob(Job):
    """Images with classes -> a pseudo-label set beside them: made by an ensemble, or imported as released."""

    name: RunName = "pssl"
    dataset: str
    split: str | None = None
    """Only this split; default all."""
    labels: str = "pssl"
    """Name of the label set to write."""
    pssl: AnyPssl = PsslSpec()
    """How labels are made: a preset (`fast`, `paper`), or a table with `base` and what differs."""
    ensemble: EnsembleSpec = EnsembleSpec()
    """The classifiers that are explained."""
    keep_deciles: bool = False
    """Keep the deciles of the scores beside the labels, so that another rule needs no new explanations."""
    import_from: str | None = None
    """Folder of released labels (`train/<wnid>/<image>.JPEG_eiseg.npz`) to import instead of making any."""
    import_minus_one: Literal["void", "background"] = "void"
    """What -1 in a released label means; `background` is what its own loader makes of it."""
    max_rejected: float = Field(0.5, ge=0, le=1)
    """Largest share of rows without a label before the job stops with an error."""

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        given = bool(self.ensemble.presets or self.ensemble.classifiers)
        if self.import_from is not None and (given or self.pssl != PsslSpec()):
            raise ValueError("import_from takes released labels as they are: `ensemble` and `pssl` have no effect")
        if self.import_from is None and self.import_minus_one != "void":
            raise ValueError("import_minus_one has no effect without import_from")
        if self.import_from is not None and self.keep_deciles:
            raise ValueError("keep_deciles: released labels have no deciles to keep")
        if self.import_from is None and not given and self.pssl.explainer.kind != "random":
            raise ValueError("ensemble: no classifiers; name `presets` (efficientnet_lite, timm15) or `classifiers`")
        return self


class LabelledSplit(Spec):
    """A label set of one split of a dataset."""

    dataset: str
    labels: str = "human"
    split: str = "train"


class ElasticWorkers(Spec):
    """A group that grows and shrinks with the cluster; the global batch and the order of the samples stay the same."""

    min: int = Field(gt=0)
    """Fewer workers than this wait for room."""
    max: int = Field(gt=0)
    """More workers than this are never started; `accumulate` belongs to this number."""
    look_every_s: float = Field(60.0, gt=0)
    """Seconds between looks at whether the cluster has room for more."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        if self.min == self.max:
            raise ValueError(f"min and max are both {self.min}: write workers = {self.min}")
        return self


class TrainData(LabelledSplit):
    """One part of the training data."""

    name: str | None = None
    """What the recipe's sampling rules and the tables call it."""
    weight: float | None = Field(None, gt=0)
    """Share of every step, in proportion to the weights of the other parts; default: as much as it has samples."""


class ValidationSplit(LabelledSplit):
    """What validations evaluate on, and how they look at it."""

    predictor: PredictorSpec = PredictorSpec()


class TrainJob(Job):
    """Datasets and a recipe -> a checkpoint."""

    recipe: AnyRecipe
    """A recipe's name, or a table with `base` (a recipe's name) and the keys that differ."""
    data: tuple[TrainData, ...] = Field(min_length=1)
    """Label sets to train on together; they must agree on the class list."""
    validate_on: ValidationSplit | None = None
    """Evaluated after the training, and every `validate_every` steps beside it."""
    validate_every: int | None = Field(None, gt=0)
    """Steps between validations of the weights, in a Ray task of its own that takes the resources in `compute`."""
    validate_metric: Metric = "miou"
    """What validations are compared by."""
    keep_best: bool = False
    """Keep the weights of the best validation in `output`/`name`/best."""
    patience: int | None = Field(None, gt=0)
    """End the run after so many validations without gain."""
    validate_timeout_s: float = Field(3600.0, gt=0)
    """Seconds to wait, after the training, for validations that are still to be done."""
    output: str = "out/runs"
    """The run's folder is `output`/`name`."""
    init_from: str | None = None
    """A checkpoint to start from; class-dependent parameters are new when the class lists differ."""
    workers: Annotated[int, Field(gt=0)] | ElasticWorkers = 1
    """Ray Train workers, which must divide the recipe's lanes and global batch; or a range { min, max } of them."""
    accumulate: int = Field(1, gt=0)
    """Micro-batches per step; workers * per-worker batch * accumulate = global batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast on a CUDA device that has it, else fp32; fp16 scales the loss."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every worker holds the whole network; fsdp: weights, gradients and optimizer are split among the workers."""
    reduce: Literal["auto", "all_reduce", "ordered"] = "auto"
    """How ddp adds up gradients: ordered in the order of the workers, so that a resumed run has the same bits with more
    than two; auto: ordered where it matters for a deterministic run on CPUs."""
    channels_last: bool = True
    """Keep the channels of a pixel side by side in memory, which convolutions are faster with."""
    compile: bool = False
    """Compile the network with torch.compile; the first steps take minutes, a C++ compiler is needed on a CPU."""
    threads: int | None = Field(None, gt=0)
    """Torch threads of each worker; default: its share of the CPUs."""
    data_workers: int = Field(0, ge=0)
    """Ray Data actors of one CPU each, anywhere in the cluster, that decode and augment for all workers together; 0:
    threads of the workers do. The batches are the same bytes."""
    deterministic: bool = True
    """Deterministic algorithms, so that resume equals no interruption."""
    checkpoint_every: int = Field(500, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, gt=0)
    save_timeout_s: float = Field(600.0, gt=0)
    """Seconds after which a checkpoint that is still being written is given up; the training goes on without it."""
    log_every: int = Field(20, gt=0)
    profile_steps: tuple[int, int] | None = None
    """First and last step, counted from 1, of which a profiler's trace is written to `profile` in the run's folder."""
    max_failures: int = Field(3, ge=0)
    """Worker-group restarts before the run gives up."""

    @property
    def min_workers(self) -> int:
        """The smallest group."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def look_every_s(self) -> float:
        """Seconds between looks at the room for an elastic group; a group of one size is not looked at."""
        return 60.0 if isinstance(self.workers, int) else self.workers.look_every_s

    @property
    def max_workers(self) -> int:
        """The largest group."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.validate_every is not None and self.validate_on is None:
            raise ValueError(f"validate_every = {self.validate_every} takes no effect without validate_on")
        for key in ("validate_metric", "keep_best", "patience", "validate_timeout_s"):
            value = getattr(self, key)
            if self.validate_every is None and value != type(self).model_fields[key].default:
                raise ValueError(f"{key} = {value!r} takes no effect without validate_every")
        if self.validate_every is not None:
            self._check_number_of_validations(self.validate_every)
        return self

    def _check_number_of_validations(self, every: int) -> None:
        """The one after the last step is made in any case, and ends nothing."""
        steps = self.recipe.steps
        beside = (steps - 1) // every
        if not beside:
            raise ValueError(f"validate_every = {every} takes no effect: the run has {steps} steps (recipe.steps)")
        if self.patience is not None and self.patience >= beside:
            raise ValueError(
                f"patience = {self.patience} takes no effect: with validate_every = {every}, {steps} steps have "
                f"{beside} validation{'s' if beside > 1 else ''} before the last step, and the run could end after "
                f"{self.patience + 1} at the earliest"
            )

    @model_validator(mode="after")
    def _check_profile(self) -> Self:
        if self.profile_steps is not None:
            (first, last), steps = self.profile_steps, self.recipe.steps
            if not 1 <= first <= last <= steps:
                raise ValueError(
                    f"profile_steps must be (first, last) with 1 <= first <= last <= {steps} (recipe.steps), "
                    f"found {self.profile_steps}"
                )
        return self

    @model_validator(mode="after")
    def _check_data_workers(self) -> Self:
        if 0 < self.data_workers < self.max_workers:
            raise ValueError(
                f"data_workers = {self.data_workers}: each of {self.max_workers} workers needs one of its own; use "
                f"{self.max_workers} or more, or 0 for threads"
            )
        return self

    @model_validator(mode="after")
    def _check_parallel(self) -> Self:
        if self.max_workers == 1 and self.parallel == "fsdp":
            raise ValueError("parallel = 'fsdp' takes no effect with workers = 1: there is nobody to share with")
        if self.max_workers == 1 and self.reduce != "auto":
            raise ValueError(f"reduce = {self.reduce!r} takes no effect with workers = 1: there is nothing to add up")
        if self.parallel == "fsdp" and self.reduce != "auto":
            raise ValueError(f"reduce = {self.reduce!r} takes no effect with parallel = 'fsdp'; use parallel = 'ddp'")
        if self.parallel == "fsdp" and self.compile:
            raise ValueError("compile = true does not go with parallel = 'fsdp'; use parallel = 'ddp'")
        return self


class EvaluateJob(Job):
    """A checkpoint and a labelled split -> metrics and a report."""

    name: RunName = "evaluate"
    checkpoint: str
    dataset: str
    labels: str = "human"
    split: str = "test"
    predictor: PredictorSpec = PredictorSpec()
    metrics: MetricsSpec = MetricsSpec()
    """What is measured beside mIoU, frequency-weighted IoU and accuracies."""
    output: str = "out/evaluate"
    num_pictures: int = Field(8, ge=0)
    """Fixed pictures, the same every time for a split."""
    num_worst: int = Field(8, ge=0)


class CompareJob(Job):
    """Two evaluations of the same images -> what each class gained."""

    name: RunName = "compare"
    baseline: str
    """Folder of the evaluation that gains are counted from."""
    evaluation: str
    """Folder of the evaluation that may have gained."""
    output: str = "out/compare"


class AutolabelJob(Job):
    """A teacher checkpoint and images -> a label set; or another one from what a teacher said before."""

    name: RunName = "autolabel"
    checkpoint: str | None = None
    """The teacher. Its class and confidence of every pixel are kept in the label set `<labels>-raw`."""
    derive_from: str | None = None
    """Instead of a teacher: a label set that one wrote, or that was derived from it. No teacher runs."""
    dataset: str
    split: str | None = None
    labels: str = "teacher"
    """Name of the label set to write."""
    keep: KeepSpec = KeepSpec()
    """Which of the teacher's labels are kept; the other pixels become void."""
    predictor: PredictorSpec = PredictorSpec()
    max_rejected: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        if (self.checkpoint is None) == (self.derive_from is None):
            raise ValueError("either `checkpoint` (a teacher) or `derive_from` (a label set that one wrote) is needed")
        if self.derive_from is not None and self.predictor != PredictorSpec():
            raise ValueError("predictor has no effect with derive_from: no teacher runs")
        if self.derive_from is not None and self.compute.gpus > 0:
            raise ValueError("compute.gpus has no effect with derive_from: no teacher runs")
        return self


class PredictJob(Job):
    """A checkpoint and any images -> label maps."""

    name: RunName = "predict"
    checkpoint: str
    images: str
    """A folder, an object-store prefix, or a dataset."""
    split: str | None = None
    output: str = "out/predict"
    format: Literal["png", "overlay", "table"] = "png"
    """Index PNG, coloured overlay, or a table with encoded labels and confidence."""
    predictor: PredictorSpec = PredictorSpec()


class ExportJob(Job):
    """A checkpoint -> torch.export and ONNX files, compared with the eager model."""

    name: RunName = "export"
    checkpoint: str
    output: str = "out/export"
    formats: tuple[Literal["pt2", "onnx"], ...] = ("pt2",)
    size: tuple[int, int] = (512, 512)
    """Height and width of the exported input."""
    tolerance: float = Field(1e-4, gt=0)
    """Largest allowed difference from the eager model, relative to its largest output."""


class ImportJob(Job):
    """A published checkpoint -> a checkpoint of ours, with an account of every tensor."""

    name: RunName = "import"
    checkpoint: str
    """The published file: a path, an https URL or `s3://`; safetensors or torch's format; no code in it is run."""
    sha256: str | None = Field(None, pattern=SHA256)
    """What the file must hash to, or how that begins; needed for a URL."""
    model: AnyModelSpec
    """The network it belongs to, by preset or table."""
    layout: str
    """How its tensors are named, such as pspnet_mmseg or segformer_official."""
    classes: AnyClasses
    """The classes it was trained on, in order: names, a text file with one a line, or a `classes.json`."""
    output: str = "out/import"
    """The checkpoint is written to `output`/model."""
    partial: bool = False
    """Accept tensors without a place and places without a tensor, which keep fresh values."""
    seed: int = 0
    """Of the values that a partial import leaves fresh."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            find_layout(self.layout)
        except ValueError as error:
            raise ValueError(f"layout: {error}") from error
        if self.checkpoint.startswith("https://") and self.sha256 is None:
            raise ValueError("sha256: is needed for a checkpoint from a URL")
        return self


class UnpackJob(Job):
    """A label set -> one file per image, for people, other tools and archives."""

    name: RunName = "unpack"
    dataset: str
    split: str | None = None
    """Only this split; default all."""
    labels: str = "human"
    """Name of the label set."""
    format: Literal["png", "npz", "jxl"] = "png"
    """PNG with the class colours (16-bit from 256 classes on), the released layout of PSSL, or lossless JPEG XL (extra
    `archive`)."""
    content: Literal["label", "deciles"] = "label"
    """Class indices, or the deciles that PSSL kept."""
    output: str = "out/unpack"


class ReportJob(Job):
    """Write the HTML page of a finished run again."""

    name: RunName = "report"
    run: str
    """The run's folder."""


class ModelsJob(Spec):
    """List the named models."""

    json_output: bool = False
    num_classes: int = Field(19, gt=0)
    model: AnyModelSpec | None = None
    """Only this model."""


class RecipesJob(Spec):
    """List the named recipes."""

    json_output: bool = False
    like: str = ""
    """Only recipes with this in their name."""


class WeightsJob(Spec):
    """List the files of trained weights that jobs need, where to get and where to put them."""

    ensemble: EnsembleSpec = EnsembleSpec()
    """Classifiers of a `pssl` job."""
    recipe: AnyRecipe | None = None
    """Recipe of a training, for the weights its backbone begins with."""
    check: bool = False
    """End with an error where a file is missing or has another hash."""
    json_output: bool = False

    @model_validator(mode="after")
    def _check_anything(self) -> Self:
        if not self.ensemble.presets and not self.ensemble.classifiers and self.recipe is None:
            raise ValueError("name an `ensemble` (such as timm15), a `recipe`, or both")
        return self


class DemoJob(Job):
    """The whole walk on an embedded sample, in minutes on two cores."""

    name: RunName = "demo"
    output: str = "out/demo"
    """Folder of everything the demo makes; an earlier demo there is replaced."""
    seed: int = 0


class RealJob(Job):
    """The whole walk on real data: PSSL on ImageNet images, fine-tuning and auto-labelling on CamVid."""

    name: RunName = "real"
    data: str = "../shared/data"
    """Folder of the data sets and weights."""
    output: str = "out/real"
    """The same folder continues an interrupted walk."""
    seed: int = 0
    samples: int = Field(1, gt=0)
    """SmoothGrad samples per image and classifier."""
    pretrain_steps: int = Field(500, gt=0)
    finetune_steps: int = Field(2000, gt=0)
