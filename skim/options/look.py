"""Options of a look at a finished run, as in ``conf/evaluate.yaml``; declared as those of :mod:`skim.options.run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from skim.options.kinds import Between, Count, Fraction, NotNegative, Number, Positive
from skim.options.run import BatchSizes, Execution, Folder, Options

Kind: TypeAlias = Literal[
    "metrics",
    "tokens",
    "predict",
    "latency",
    "throughput",
    "peers",
    "curve",
    "depth",
    "redundancy",
    "skip",
    "search",
    "export",
    "choose",
]
Shift: TypeAlias = Annotated[float, Field(ge=-1e4, le=1e4)]  # beyond that no decision is left to be moved


@dataclass(frozen=True, kw_only=True)
class Look(Options):
    """Options of a look as a whole."""

    ckpt: Folder | None = None
    """a run's folder, its model/, or a checkpoint file in its checkpoints/; what=redundancy and what=peers also look at
    a pretrained model without a run, of backbone=<name> on task=<name>"""
    folder: Folder | None = None
    """for a look without a run: the folder that it writes into; null is runs/<task>/<method>/<backbone>/
    pretrained, and for what=choose the folder chosen/ in that of the runs"""
    trust_modules: tuple[str, ...] = ()
    """modules of your own that a config in a run's folder may take classes from: [mine]. Any class may be named on this
    command line and in conf/; a stored config is a stranger's, and names skim's, Lightning's and torch's alone"""
    what: Kind = "metrics"
    """metrics: the task's metrics and FLOPs, packed, and each class's; predict: files of what the model says of the
    test split or of split, row by row, and in the format of the task's leader board where it has one; tokens: a shaded
    sentence; latency: time side by side with dense; throughput: samples per second in training (of the model alone,
    where something is trained beside it), side by side with dense; peers: time side by side with what else could be run
    (bf16, torch.compile, the first layers, ONNX Runtime, OpenVINO), of a run or of backbone=<name> on task=<name>;
    curve: one trained model at several budgets, without training again; depth: how many layers tokens of each kind go
    through ([CLS], [SEP], masked, by tag); redundancy: which layers and neurons the task does not need; skip: a dense
    model without each layer, and with its first and last ones alone, untrained; search: the lengths of a length_drop
    model's layers that are best at each budget, and a model that follows them; export: an ONNX file in which tokens
    leave, checked on the split; choose: of many runs the cheapest setting that is good enough, exported with a model
    card"""
    runs: str | list[str] | None = None
    """for what=choose: a folder, or a list of them, searched for finished runs"""
    max_drop: Annotated[float, Field(ge=0, le=100)] | None = None
    """for what=choose: how far the task's metric may be below dense of the same task and backbone, in points of 0.01,
    in the mean over seeds; the cheapest within it is chosen, by relative FLOPs, or by time if that has a bound; null:
    any, and of what is cheap enough the best is chosen"""
    max_flops: Fraction | None = None
    """for what=choose: relative FLOPs, at most; null: any"""
    max_time: Positive | None = None
    """for what=choose: time / time of padded Hugging Face in batches of batch_size, as the runs have measured it, at
    most; null: any"""
    push_to_hub: str | None = None
    """for what=choose: id of a model repository of the hub that the export goes to, such as me/sst2-ltp; one that is
    not there is made, and private; null: it stays here"""
    text: str | list[str] | None = None
    """for what=tokens: a sentence, or a list of them"""
    targets: Annotated[tuple[Fraction, ...], Field(min_length=1, examples=[[0.3, 0.5]])] | None = None
    """for what=curve: relative FLOPs to move the model to; null is 0.3, 0.4, 0.5, 0.6, 0.8, and of a model for a range
    of budgets six of them, evenly spaced"""
    budget: Fraction | None = None
    """relative FLOPs of a look at a model for a range of them; null: those that it was saved with (the middle of the
    range, after a training). what=curve has targets instead, also for latency"""
    shifts: Annotated[tuple[Shift, ...], Field(min_length=1, examples=[[-0.5, 0, 0.5]])] | None = None
    """for what=curve, instead of targets: added to the shift that the run was saved with, up keeps more; null is
    targets. The unit is the method's: transkimmer's keep margin (a logit), topk's keep rate, length_drop's mean share
    of tokens that stay, minus tome's share r, and elsewhere minus the logarithm of a factor: on ltp's thresholds, act's
    halting probabilities, early_exit's threshold (entropy) or lambdas (pondernet)"""
    timed: bool = False
    """for what=curve: measure latency at every point too, as the benchmark below says; for what=export: time the file,
    beside the same export of the dense model"""
    split: str | None = None
    """split to evaluate; null is the task's own evaluation split, for what=predict its test split; holdout is the rows
    that task.holdout kept from training"""
    batch_size: Count = 32
    """sequences per batch"""
    max_samples: Count | None = None
    """sequences to evaluate; null is all"""
    execution: Execution = "auto"
    """auto (packed, or narrowed where the family cannot), masked, packed, narrowed"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """numbers that the model infers with: auto (bfloat16 where the device has it and it measures faster, else float32),
    float32, bfloat16, float16; null is the run's precision on a GPU, float32 elsewhere"""


@dataclass(frozen=True, kw_only=True)
class LookHardware(Options):
    """Hardware that a look computes on."""

    accelerator: str = "auto"
    """where to run: auto, cpu, gpu, mps"""
    threads: Count | None = None
    """CPU threads of torch; null leaves torch's choice"""


@dataclass(frozen=True, kw_only=True)
class LookDepth(Options):
    """Options of a look at how many layers tokens go through."""

    samples: Count = 512
    """inputs, and tagged sentences, that are looked at"""


@dataclass(frozen=True, kw_only=True)
class Tagged(Options):
    """Source of sentences with a tag for each word."""

    dataset: str | None = None
    """a hub id or a file (.conllu, or two columns: word and tag, an empty line between sentences); null: no tags"""
    config: str | None = None
    """configuration of the data set; null for one that has only one"""
    split: str = "validation"
    """split of the data set"""
    words: str = "tokens"
    """the data set's column of words"""
    tags: str = "upos"
    """the data set's column of tags"""


Deltas: TypeAlias = Annotated[tuple[NotNegative, ...], Field(min_length=1, examples=[[1, 3]])]
Thresholds: TypeAlias = Annotated[tuple[Between, ...], Field(min_length=1, examples=[[0.3, 0.5]])]


@dataclass(frozen=True, kw_only=True)
class LookRedundancy(Options):
    """Options of a look at which layers and neurons a task does not need."""

    preset: Literal["default", "paper"] = "default"
    """default: ridge probes on standardised neurons, and the medoid of each cluster; paper: the published elastic-net
    probes, ten passes in the order of the rows, correlations in float64, and a random neuron of each cluster"""
    deltas: Deltas = (1.0, 2.0, 3.0)
    """how much of a score fewer layers, and fewer neurons, may lose, in percent of it"""
    thresholds: Thresholds = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """at which clusters of neurons are counted: 1 - |correlation| at which the tree of average linkage is cut"""
    cut: Between | None = 0.3
    """threshold at which one neuron of each cluster is kept before the fewest are looked for, beside the search among
    all; null: that search alone"""
    metric: (
        Literal["accuracy", "f1", "accuracy_and_f1", "matthews", "pearson", "spearman", "pearson_and_spearman"] | None
    ) = None
    """score of the probes: accuracy, f1, accuracy_and_f1 (their mean), matthews, pearson, spearman, or
    pearson_and_spearman (their mean); null is accuracy, and pearson_and_spearman of a regression"""
    pooling: Literal["position", "mean"] = "position"
    """states of a text: position (the token that the head reads, [CLS]) or mean (of all its tokens)"""
    word: Literal["last", "first", "average"] = "last"
    """states of a word that is in several tokens: last, first or average"""
    max_rows: Count | None = None
    """training texts, or words, at most; null is all texts, and 150000 words"""
    dtype: Literal["float32", "float16"] = "float32"
    """numbers of the states on the disk: float32, or float16 at half the size"""
    keep: bool = False
    """keep the states in redundancy/states when the report is written; a look that was interrupted keeps them anyway,
    and the next one goes on from there"""
    seed: Number = 0
    """of whatever is random: initial weights of the paper's probes, random neurons of clusters, batches"""


@dataclass(frozen=True, kw_only=True)
class LookExport(Options):
    """Options of an export to ONNX."""

    file: Folder | None = None
    """file to write, ending in .onnx; null is export/model.onnx in the run's folder"""
    operators: Literal["fused", "standard"] = "fused"
    """fused: for ONNX Runtime, with operators of its own for attention; standard: what OpenVINO and others read"""
    precision: Literal["fp32", "int8"] = "fp32"
    """fp32, or int8: weights quantised, activations on the fly; with fused only"""
    batch: Literal["any", "one"] = "any"
    """any: batches with a mask, narrowed to the longest survivor; one: a sequence at a time, without a mask"""


@dataclass(frozen=True, kw_only=True)
class LookSearch(Options):
    """Options of a search over the lengths of layers."""

    evaluations: Count = 300
    """configurations that are rated; those that an interrupted search has rated are among them and not rated again"""
    by: Literal["agreement", "metric"] = "agreement"
    """by what: agreement: minus the distance (as in distillation) to the model's own answers with all tokens, on
    training rows and without labels, so that evaluation rows are not searched on; metric: the task's, on rows of the
    evaluation split or of split, which then tell no more how good the found ones are"""
    samples: Count = 512
    """rows, at most, on which each is rated"""
    points: Annotated[int, Field(ge=1, le=40)] = 8
    """configurations of the front that are kept, evenly over relative FLOPs; each is evaluated on the whole split"""
    seed: Number = 0
    """of mutations, of crossings, and of the rows that are chosen"""


Shares: TypeAlias = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(examples=[[0.5, 0.3]])]


@dataclass(frozen=True, kw_only=True)
class LookBenchmark(Options):
    """Options of a measurement of time."""

    samples: Count = 256
    """sentences per measured pass"""
    batch_sizes: BatchSizes = (1, 32)
    """for latency: batch sizes to measure at, in sentences"""
    train_batch_size: Count = 32
    """for what=throughput: sentences per training batch"""
    repeats: Count = 7
    """counted passes of each candidate"""
    keep: Shares = ()
    """for what=peers: shares of the tokens that scripted methods keep on the same weights, to see what a method would
    save on these texts before one is trained"""
    dtypes: Annotated[tuple[Literal["fp32", "bf16", "fp16"], ...], Field(min_length=1, examples=[["bf16"]])] = (
        "fp32",
        "bf16",
    )
    """for what=peers: dtypes that skim and Hugging Face run in; peers that are PyTorch run in the first"""
    score: bool = False
    """for what=peers: score what computes coarser than in float32, int8 and bf16, on the whole evaluation split; that
    takes a pass over it for each, and lets a report show them among the methods"""
    clock: Literal["wall", "cpu"] = "wall"
    """for what=peers: wall, or cpu, seconds of CPU of the process, on a machine that is shared"""
