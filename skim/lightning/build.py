"""From a composed config to the parts of a run: task, tokenizer, compressed model. What is wrong is refused here."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from skim import hub
from skim.backbones import families
from skim.compression import compress
from skim.engine.walk import walk_of
from skim.errors import SkimError, unknown
from skim.flops import FORMULAS
from skim.lightning.budget import Batches
from skim.lightning.module import TEACHERS
from skim.lightning.stages import Stage, stages_of
from skim.loading import described, first_line, read_method
from skim.methods import Method
from skim.methods.funnel import Funnel
from skim.methods.ltp import LTP
from skim.methods.options import OptionError, declared, reason
from skim.options.words import shown
from skim.published import ltp as published
from skim.resume import recorded
from tasks.base import Task

NOISE = (
    ".*does not have many workers.*",
    ".*isinstance.treespec.*",
    ".*LeafSpec.*",
    ".*Experiment logs directory.*",  # it holds config.yaml, which the CSV logger leaves alone
    ".*smaller than the logging interval.*",
    ".*your dataloader is not resumable.*",  # the task is told where to go on
    ".*dirpath has changed.*",  # a resumed run has a folder of its own
    r".*self\.log\('(val|test)/.*sync_dist=True.*",  # torchmetrics has synchronised these: all ranks log the same
)

EXPORTS = ("best", "last")  # checkpoints whose weights a run can end with
COMPANION = "companion.safetensors"  # in a run's model/: what was trained beside the backbone
INFINITY = float("inf")
LIMITS: dict[str, tuple[type | tuple[type, ...], float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "train.epochs": (int, 1, INFINITY),
    "train.max_steps": (int, -1, INFINITY),
    "train.lr": ((int, float), 0, INFINITY),
    "train.method_lr": ((int, float), 0, INFINITY),
    "train.weight_decay": ((int, float), 0, INFINITY),
    "train.method_weight_decay": ((int, float), 0, INFINITY),
    "train.warmup": ((int, float), 0, 1),
    "train.clip": ((int, float), 0, INFINITY),
    "train.accumulate": (int, 1, INFINITY),
    "train.method_after": ((int, float), 0, 1),
    "train.distill": ((int, float), 0, 1),
    "train.distill_temperature": ((int, float), 1e-6, INFINITY),
    "train.label_smoothing": ((int, float), 0, 0.99),
    "train.calibrate": (int, 0, INFINITY),
    "train.evals_per_epoch": (int, 1, INFINITY),
    "train.eval_every": (int, 1, INFINITY),
    "task.batch_size": (int, 1, INFINITY),
    "task.eval_batch_size": (int, 1, INFINITY),
    "task.max_length": (int, 3, INFINITY),
    "task.length_min": (int, 1, INFINITY),
    "task.length_max": (int, 1, INFINITY),
    "task.max_train_samples": (int, 1, INFINITY),
    "task.max_eval_samples": (int, 1, INFINITY),
    "hardware.threads": (int, 1, INFINITY),
    "hardware.num_workers": (int, 0, INFINITY),
    "callbacks.log_every": (int, 1, INFINITY),
    "callbacks.patience": (int, 1, INFINITY),
    "callbacks.save_every": (int, 1, INFINITY),
    "benchmark.samples": (int, 1, INFINITY),
    "benchmark.repeats": (int, 1, INFINITY),
    "benchmark.train_batch_size": (int, 1, INFINITY),
}

FLAGS = ("train.gradient_checkpointing", "callbacks.progress", "benchmark.enabled", "timed")
MAY_BE_NULL = (  # of those above: what null stands for is said beside the option
    *("train.clip", "train.method_after", "train.eval_every", "task.length_min", "task.length_max"),
    *("task.max_train_samples", "task.max_eval_samples", "hardware.threads", "callbacks.patience"),
    "callbacks.save_every",
)


def check(cfg: DictConfig) -> None:
    """Refuse values that no run can use, before anything is loaded.

    What a method's options may be stands beside its constructor's arguments (:mod:`skim.methods.options`), and of what
    kinds a task's numbers are beside its fields.
    """
    if cfg.get("method"):
        method_of(cfg)
    for path, limits in LIMITS.items():
        check_limits(path, value_at(cfg, path), *limits)
    for path in FLAGS:
        value = value_at(cfg, path)
        if value is not None and not isinstance(value, bool):
            raise SkimError(f"{path}={value} must be true or false.")
    if cfg.get("task"):
        check_task(cast(dict[str, Any], OmegaConf.to_container(cfg.task)))
    board = OmegaConf.select(cfg, "logger.wandb")
    if board is not None and not isinstance(board, Mapping):
        raise SkimError(f"logger.wandb={board} must be a group of options, as logger=wandb has, or null.")
    export = OmegaConf.select(cfg, "callbacks.export", default=EXPORTS[0])
    if export not in EXPORTS:
        raise unknown("callbacks.export", export, EXPORTS)
    stages = OmegaConf.select(cfg, "method.stages") or {}
    if not isinstance(stages, Mapping):
        raise SkimError(f"method.stages={stages} must be a group of stages, such as method.stages.soft.epochs=2.")
    for name, options in stages.items():
        check_stage(name, options or {})
    formulas = cfg.get("formulas") or []
    if not OmegaConf.is_list(formulas) and formulas != []:
        raise SkimError(f"formulas={formulas} must be a list, such as formulas=[{formulas}].")
    for name in formulas:
        if name not in FORMULAS:
            raise unknown("formula in formulas", name, FORMULAS)
    sizes = OmegaConf.select(cfg, "benchmark.batch_sizes", default=OmegaConf.create([1]))  # older runs have none
    wrong = not OmegaConf.is_list(sizes) or not sizes or any(type(size) is not int or size < 1 for size in sizes)
    if wrong:
        raise SkimError(
            f"benchmark.batch_sizes={sizes} must be a list of whole numbers, each at least 1, such as [1,32]."
        )


def value_at(cfg: DictConfig, path: str) -> Any:
    """Return the value at a path, ``None`` if there is none; a SkimError for a null that has no meaning there."""
    parent = OmegaConf.select(cfg, path.rpartition(".")[0]) if "." in path else cfg
    if not isinstance(parent, Mapping) or path.rpartition(".")[2] not in parent:  # older runs have fewer options
        return None
    value = OmegaConf.select(cfg, path)
    if value is None and path not in MAY_BE_NULL:
        raise SkimError(f"{path}=null says nothing; leave it away for its default.")
    return value


def check_task(options: Mapping[str, Any]) -> None:
    """A task's numbers and flags are of the kinds that its fields declare."""
    try:
        fields = declared(get_class(options["_target_"]).__init__)
    except (ImportError, AttributeError, ValueError, KeyError):  # said when it is made
        return
    for name, adapter in fields.items():
        schema = adapter.json_schema()
        kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
        if name in options and kinds <= {"integer", "number", "boolean", "null"}:
            try:
                adapter.validate_python(options[name])
            except ValidationError:
                said = reason(options[name], adapter, "")
                raise SkimError(f"task.{name}={shown(options[name])} {said}") from None


def method_of(cfg: DictConfig) -> Method:
    """The method that a config names, with its options; how it is trained (``stages``) is the recipe's business."""
    options = OmegaConf.masked_copy(cfg.method, [key for key in cfg.method if key != "stages"])
    target = options.get("_target_")
    try:
        with typed():
            # convert: lists as lists, also for a user's own method, whose file may not ask for it
            method = instantiate(options, _convert_="all")
    except InstantiationException as error:
        if "Error locating target" not in str(error):
            raise
        raise SkimError(
            f"method._target_={target} cannot be imported: {first_line(error.__cause__ or error)}.\n"
            "A module of your own is looked for beside train.py and in PYTHONPATH: export PYTHONPATH=<its folder>."
        ) from None
    if not isinstance(method, Method):
        raise SkimError(f"method._target_={target} makes a {type(method).__name__}, which is no skim.Method.")
    return method


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Tell what is wrong with a method's options in the words of the command line: ``method.target=2 must be ...``."""
    try:
        yield
    except (OptionError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, OptionError):
            raise SkimError(cause.typed()) from None
        if isinstance(cause, SkimError):
            raise cause from None
        raise


def check_limits(path: str, value: Any, kind: type | tuple[type, ...], low: float, high: float) -> None:
    """Refuse a value that is no number of this kind or out of bounds; ``None`` passes."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        bounds = f", at least {low:.10g}" if high == INFINITY else f", from {low:.10g} to {high:.10g}"
        raise SkimError(f"{path}={value} must be {what}{bounds if low > -INFINITY else ''}.")


def check_stage(name: str, options: Any) -> None:
    """A stage's options have the limits of the options of ``train`` that they stand in for."""
    if not isinstance(options, Mapping):
        raise SkimError(f"method.stages.{name}={options} must be a group of options, or null to leave the stage out.")
    for option, value in options.items():
        if f"train.{option}" in LIMITS:
            check_limits(f"method.stages.{name}.{option}", value, *LIMITS[f"train.{option}"])


@dataclass
class Parts:
    """What a config builds."""

    task: Task
    tokenizer: Any
    model: nn.Module
    stages: list[Stage]
    teacher: nn.Module | None = None
    companion: nn.Module | None = None  # what the task trains beside the model

    def sampled(self, batch_size: int, samples: int) -> Batches:
        """Batches of validation rows as the model sees them, for measurements."""
        batches = self.task.sample_batches(batch_size, samples)
        return batches if self.companion is None else Handed(batches, self.task, self.companion)


class Handed(Sequence[Any]):
    """Batches as a companion hands them on: it does so anew each time, for it learns in the meantime.

    Args:
        batches: of the task.
        task: whose the companion is.
        companion: see :meth:`tasks.base.Task.companion`.
    """

    def __init__(self, batches: Batches, task: Task, companion: nn.Module) -> None:
        self.batches, self.task, self.companion = batches, task, companion

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Handed(self.batches[place], self.task, self.companion)
        device, training = next(self.companion.parameters()).device, self.companion.training
        self.companion.eval()
        try:
            with torch.no_grad():
                batch = {name: tensor.to(device) for name, tensor in self.batches[place].items()}
                return self.task.corrupt(batch, self.companion)[0]
        finally:
            self.companion.train(training)


def build(cfg: DictConfig, purpose: str = "fit") -> Parts:
    """The task with its data loaded, the tokenizer, and the compressed model (and its teacher, if one is asked for).

    Args:
        cfg: composed from ``conf/train.yaml``.
        purpose: what for, in Lightning's words: ``fit``, ``validate`` or ``predict``.
    """
    quiet()
    check(cfg)
    method = method_of(cfg)
    stages = stages_of(cfg, method.stages)
    task: Task = instantiate(cfg.task, seed=cfg.seed, num_workers=cfg.hardware.num_workers)
    start = dense_folder(cfg) if cfg.init_from else None
    source = start or (
        hub.model_path(cfg.backbone.hub_id, f"backbone={cfg.backbone.name}") if cfg.backbone.hub_id else None
    )
    if source is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, config=published.model_config(source))
    else:
        tokenizer = task.own_tokenizer()
    if tokenizer is None:
        raise SkimError(
            f"backbone={cfg.backbone.name} has no tokenizer of its own, and task={task.name} brings none.\n"
            "Use a pretrained backbone (backbone=minilm), or task=builtin."
        )
    config = backbone_config(cfg, tokenizer, source)
    family = families().get(config.model_type)
    longest = family.longest_input(config) if family is not None else None
    if longest is not None:  # some tokenizers say 1e30; what is longer than this is truncated and counted by the task
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    task.setup_tokenizer(tokenizer)
    task.setup(purpose)
    for name, value in task.model_kwargs().items():
        setattr(config, name, value)
    plain = load_backbone(task, config, source)
    task.check_model(plain)
    teacher = None
    check_teacher(cfg, method)
    if cfg.train.distill > 0 and cfg.train.distill_from == "init":
        if start is None:
            raise SkimError(
                "train.distill needs a teacher: set init_from=<folder of a dense run>, train.distill_from=self, or "
                "train.distill=0."
            )
        if (start.parent / "config.yaml").is_file() and recorded(start.parent).task.name != cfg.task.name:
            raise SkimError(
                f"train.distill: the teacher, init_from={cfg.init_from}, was trained on "
                f"task={recorded(start.parent).task.name}, this run is on task={cfg.task.name}."
            )
        teacher = compress(copy.deepcopy(plain), "dense").eval()
    with typed():
        model = compress(plain, method, cfg.execution)
    # a head that reads the first position must find a token there, whatever the tokenizer's config says
    tokenizer.padding_side = "left" if walk_of(model).head.place == "last" else "right"
    if purpose == "fit" and isinstance(method, Funnel) and not method.merged_before:
        raise SkimError("method=funnel with one block of layers merges nothing; use more blocks, or method=dense.")
    continued = purpose == "fit" and start is not None and continue_method(method, start)
    if purpose == "fit" and method.stages and stages[0].name != method.stages[0] and not (continued or cfg.resume):
        raise SkimError(
            f"Stage {stages[0].name} of method={method.name} starts from what stage {method.stages[0]} has learned.\n"
            f"Set init_from=<a run of method={method.name}>, or train both stages: method={method.name}."
        )
    companion = task.companion(model)
    if companion is not None and start is not None and (start / COMPANION).is_file():
        companion.load_state_dict(load_file(start / COMPANION))
    return Parts(task, tokenizer, model, stages, teacher, companion)


def check_teacher(cfg: DictConfig, method: Method) -> None:
    """Refuse a teacher that is none of those there are, and one that would teach itself."""
    teacher = cfg.train.get("distill_from", "init")  # older runs have no choice
    if teacher not in TEACHERS:
        raise unknown("train.distill_from", teacher, TEACHERS)
    if cfg.train.distill > 0 and teacher == "self" and method.name == "dense":
        raise SkimError(
            "train.distill_from=self: the dense model is its own uncompressed self, and learns nothing from it.\n"
            "Set init_from=<folder of another dense run> and train.distill_from=init, or train.distill=0."
        )


def continue_method(method: Method, folder: Path) -> bool:
    """Take over what the same method has learned in the run that ``init_from`` names; False if it was another method.

    Not its steering: a budget is steered anew. LTP also goes on from what its published code saved.
    """
    if not (folder / "skim.json").is_file():
        return isinstance(method, LTP) and published.take_thresholds(method, folder)
    if described(folder)["method"] != method.name or not any(True for _ in method.parameters()):  # nothing was learned
        return False
    before, state = read_method(folder, type(method))
    for option in method.means:
        was, now = getattr(before, option, None), getattr(method, option, None)
        if was != now:
            raise SkimError(
                f"init_from={folder.parent} was trained with method.{option}={was}, this run has {now}: what it "
                f"learned means something else.\nUse method.{option}={was}, or another init_from."
            )
    state = {name: tensor for name, tensor in state.items() if not name.startswith("steering.")}
    try:
        report = method.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SkimError(
            f"init_from={folder.parent} was trained with other options of method={method.name}, such that its "
            f"parameters do not fit:\n{str(error).splitlines()[1].strip()[:200]}"
        ) from None
    if report.unexpected_keys or any(not name.startswith("steering.") for name in report.missing_keys):
        raise SkimError(
            f"init_from={folder.parent} was trained with other options of method={method.name}: "
            f"{(report.unexpected_keys + report.missing_keys)[0]} is in one and not in the other."
        )
    return True


def quiet() -> None:
    """Silence what is neither a result nor an error; warnings that a user can act on stay."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)


def backbone_config(cfg: DictConfig, tokenizer: Any, source: str | Path | None) -> Any:
    """The model's config: the checkpoint's or one from scratch, with the user's changes and the tokenizer's ids."""
    overrides = OmegaConf.to_container(cfg.backbone.overrides, resolve=True) or {}
    assert isinstance(overrides, dict)
    if source is None:
        config = transformers.AutoConfig.for_model(overrides.pop("model_type"), vocab_size=len(tokenizer))
    else:
        config = published.model_config(source)
    # set one by one: as keywords, what a family's config does not name would go to the model's constructor
    specials = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    for name, value in {**overrides, **specials}.items():
        setattr(config, name, value)
    return config


def load_backbone(task: Task, config: Any, source: str | Path | None) -> nn.Module:
    """The Hugging Face model with the task's head, in float32."""
    kinds = task.auto_class()._model_mapping
    if type(config) not in kinds:
        raise SkimError(
            f"transformers has no {task.auto_class().__name__} for {config.model_type}, as task={task.name} needs."
        )
    if source is None:
        return task.auto_class().from_config(config)
    state = published.weights(source) or None
    # with weights instead of a folder only the class itself can be loaded
    kind = task.auto_class() if state is None else kinds[type(config)]
    try:
        # dtype: transformers takes the file's by default, and training in half precision is not what anyone asked for
        model, found = kind.from_pretrained(
            None if state else source, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise SkimError(
            f"{source} cannot be loaded as {task.auto_class().__name__} for task={task.name}:\n{error}"
        ) from error
    # a head may be new, and a pooler; an encoder that is not in the file would be trained from noise, silently
    missing = [
        name
        for name in sorted(found["missing_keys"])
        if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name
    ]
    if missing:
        raise SkimError(
            f"{source} lacks {len(missing)} weights of the encoder, such as {missing[0]}.\n"
            "It is a checkpoint of another architecture, or backbone.overrides do not fit it."
        )
    return model


def dense_folder(cfg: DictConfig) -> Path:
    """The exported model that ``init_from`` names; a SkimError if it is of another backbone or not there."""
    folder = Path(str(cfg.init_from))
    if (folder / "model" / "config.json").is_file():
        before = recorded(folder)
        if before.backbone.name != cfg.backbone.name:
            raise SkimError(
                f"init_from={folder} was trained with backbone={before.backbone.name}, this run has "
                f"backbone={cfg.backbone.name}.\nUse backbone={before.backbone.name}, or another init_from."
            )
        return folder / "model"
    if (folder / "config.json").is_file():
        return folder
    raise SkimError(
        f"init_from={folder} holds no trained model (neither model/config.json nor config.json).\n"
        "Name the folder of a finished run, such as runs/sst2/dense/minilm/<stamp>."
    )
