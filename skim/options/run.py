"""Options of a training: what ``conf/train.yaml``, ``conf/hardware`` and ``conf/callbacks`` say, declared once.

Type and bounds are the annotation of a field, unit and meaning the string below it; the comments of the files in
``conf`` are these strings (``python -m skim.options.comments``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from skim.options.declared import check_fields
from skim.options.kinds import Between, Count, Fraction, NotNegative, Number, Positive

Execution: TypeAlias = Literal["auto", "masked", "packed", "narrowed"]
Folder: TypeAlias = str | int  # a name of digits is read as a number
Part: TypeAlias = Annotated[float, Field(ge=0, lt=1)]  # a share that may be none, and is not all
BatchSizes: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1, examples=[[1, 32]])]


class Options:
    """A group of options; they are checked when it is made.

    Raises:
        OptionError: a value that its declaration does not allow.
    """

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """Options of a run as a whole."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1
    """random seed of initialisation, data order, dropout and gate noise"""
    tags: tuple[str, ...] = ()
    """words to find the run by, in results.json and on dashboards: [baseline,draft]"""
    print_config: bool = True
    """show the config as a tree before a run begins, each group with what is set in it; the same tree is in
    config_tree.txt in the run's folder either way"""
    init_from: Folder | None = None
    """a finished run's folder (or a folder of transformers) whose backbone and head the training starts from; a run of
    the same method hands on what its method has learned as well; null starts from the pretrained backbone"""
    resume: Folder | None = None
    """the folder of an interrupted run to go on with, from its checkpoints/last.ckpt (previous.ckpt, if that is
    damaged), or a checkpoint file. Its config is taken over; what is typed beside it is a change, which is listed, or
    refused where it would break the schedule. auto, with hydra.run.dir=<folder>: this same command goes on in that
    folder as often as it is started, begins there if there is no checkpoint yet, and leaves a run that has finished as
    it is; with -m, the newest sweep of this command goes on. null begins anew"""
    trust_modules: tuple[str, ...] = ()
    """modules of your own that a config in a run's folder may take classes from: [mine]. Any class may be named on this
    command line and in conf/; a stored config is a stranger's, and names skim's, Lightning's and torch's alone"""
    execution: Execution = "auto"
    """execution in evaluation: auto (packed, or narrowed where the family cannot), masked, packed, narrowed"""
    formulas: tuple[Literal["ltp"], ...] = ()
    """published FLOPs formulas to report beside the true count"""


@dataclass(frozen=True, kw_only=True)
class Schedule(Options):
    """Options of a whole training, or of a stage of a method that has several."""

    epochs: Count = 1
    """passes over the training data; of each stage, if the method has several"""
    lr: NotNegative = 5e-5
    """peak learning rate of backbone and head"""
    method_lr: NotNegative = 1e-3
    """peak learning rate of the method's own parameters (predictors), which start from nothing; 0 freezes them"""
    weight_decay: NotNegative = 0.01
    """weight decay on matrices; never on biases, norms or the method"""
    method_weight_decay: NotNegative = 0.0
    """weight decay on the method's own parameters"""
    warmup: Fraction = 0.1
    """share of training (of a stage, if the method has several) in which the learning rate rises, before it falls"""


@dataclass(frozen=True, kw_only=True)
class StageSchedule(Schedule):
    """Options of one stage of a method that has several."""

    epochs: Count | Between = 1  # type: ignore[assignment]
    """passes over the training data; below 1 it is a share of train.epochs, which the stages with shares divide among
    themselves"""


@dataclass(frozen=True, kw_only=True)
class Training(Schedule):
    """Options of the training of a run."""

    lr_find: Literal["suggest", "use"] | None = None
    """test rates of backbone and head, from 1e-7 to 0.1 in 100 steps, on a copy of the model before training: suggest
    says which one Lightning's finder names (with a picture, lr_find.png) and trains at train.lr all the same, use
    trains at it, in stages that have no lr of their own; null: without one"""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """optimizer steps; takes precedence over epochs when above -1"""
    clip: NotNegative | None = 1.0
    """norm to which gradients are clipped; null or 0 is off"""
    accumulate: Count = 1
    """batches whose gradients make one step"""
    nonfinite: Literal["stop", "skip"] = "stop"
    """at a loss or gradient that is NaN or infinite: stop ends training, names the step, its rows and the checkpoint to
    go on from; skip leaves the step out, says so and counts it. Neither lets it touch the weights"""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """learning rates where each process has a batch of its own (task.global_batch=false): none as they stand, linear
    times the number of processes, sqrt times its root. On one process, or with a global batch, they stay"""
    method_after: Part | None = 0.0
    """share of training that trains (and validates) the plain dense backbone before the method begins; with stages, a
    part of the first one; null is 0"""
    freeze: Literal["embeddings"] | Count | None = None
    """what of the backbone stays as it is, and needs no gradient: embeddings, or a number of lower layers with them;
    null: all of it learns"""
    ema: Part | None = None
    """decay, such as 0.999, of a moving average of the weights, the method's among them, that is evaluated and exported
    in their place; it begins anew in every stage, with a smaller decay at first; null is off"""
    label_smoothing: Part = 0.0
    """share of each label's probability that training gives to all classes alike; 0 is off. The losses that are
    evaluated are never smoothed"""
    distill: Fraction | None = None
    """weight of the distance to the teacher's logits; the task's loss weighs the rest; null: 0.5 where there is a
    teacher (init_from names a dense run on this task, or distill_from is self), else 0"""
    distill_hidden: NotNegative | None = None
    """weight of the distance to the teacher's hidden states, layer by layer, of the tokens that the student still
    computes there; beside the rest of the loss; null: 1 where there is a teacher and the method merges no tokens, else
    0"""
    distill_from: Literal["init", "self"] = "init"
    """the teacher: init is the dense model that init_from names (of a run in which some layers did not run, those that
    did, on all tokens); self is the model itself, run uncompressed on each batch"""
    distill_temperature: Positive = 2.0
    """softens both distributions of that distance"""
    between: Annotated[int, Field(ge=0, le=8)] = 1
    """budgets that each step draws between the smallest and the largest, where method.target is a range; a step runs
    its batch once for each, and the largest teaches the others"""
    calibrate: Number = 512
    """inputs of the evaluation split (never labels) on which decisions are shifted to land on method.target: at the
    end, and before training with hard decisions; 0 is off"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""
    evals_per_epoch: Count = 1
    """evaluations per epoch"""
    eval_every: Count | None = None
    """training batches between two evaluations, whatever the epoch; takes precedence over evals_per_epoch; null is
    off"""


@dataclass(frozen=True, kw_only=True)
class Hardware(Options):
    """Hardware that a run computes on."""

    accelerator: str = "auto"
    """auto, cpu, gpu, mps"""
    devices: int | str | list[int] = 1
    """devices to use on each node: their number, a list of ids, or auto for all that there are"""
    num_nodes: Count | Literal["auto"] = 1
    """machines; auto: as many as torchrun or SLURM has started this on"""
    precision: int | str = "32-true"
    """of numbers: 32-true, 16-mixed, bf16-mixed"""
    strategy: str = "auto"
    """how several devices work together: auto, ddp"""
    timeout: Positive = 1800.0
    """seconds in which no process of a run moves on, after which it ends and names the one that hangs"""
    threads: Count | None = None
    """CPU threads of torch; null leaves torch's choice"""
    num_workers: Number = 0
    """worker processes that load data; 0 loads in the main process (batches are pre-tokenised, so it is rarely the
    bottleneck)"""


@dataclass(frozen=True, kw_only=True)
class Callbacks(Options):
    """Things that happen beside the training."""

    patience: Count | None = None
    """stop when the task's metric has not risen for this many evaluations in a row; null never stops early. What
    counts, here and for the best weights: evaluations of the last stage, since the method has begun, at method.target
    (within 0.03)"""
    export: Literal["best", "last"] = "best"
    """the weights that are measured and exported: best (checkpoints/best.ckpt: of the evaluation with the best of the
    task's metric, if that still holds once both are on their target), or last (at the end of training)"""
    log_every: Count = 50
    """steps between two lines of metrics.csv; a training of fewer steps has one, at its end"""
    progress: bool = True
    """the progress bar, with loss, keep ratio and relative FLOPs; false: lines, as where there is no terminal"""
    save_every: Count | None = None
    """steps between two writings of checkpoints/last.ckpt besides those at evaluations; null is none: for long
    epochs"""
    sentences: Number = 4
    """evaluation sentences that are shown at every evaluation with each token shaded by the layers that computed it, by
    loggers that can (wandb, tensorboard, mlflow); 0 is none"""


@dataclass(frozen=True, kw_only=True)
class Benchmark(Options):
    """Options of the measurement of latency after a training."""

    enabled: bool = True
    """measure latency after training, side by side with the packed dense model and padded Hugging Face"""
    samples: Count = 256
    """sentences per measured pass"""
    batch_sizes: BatchSizes = (1, 32)
    """batch sizes to measure at, in sentences"""
    repeats: Count = 5
    """counted passes of each candidate"""
