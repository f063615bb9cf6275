"""Distillation: the loss of a student that imitates a teacher's logits, and its hidden states, beside the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from skim.compression import keeping_states, uncompressed
from skim.engine.inputs import inputs_of
from skim.engine.ranks import share, weighed
from skim.engine.trace import Trace
from skim.engine.walk import walk_of
from skim.errors import SkimError
from skim.methods import METHODS, Method
from skim.resume import recorded
from tasks.base import Task

USUAL = {"distill": 0.5, "distill_hidden": 1.0}  # weights where there is a teacher and train has null


def teaches(train: DictConfig) -> bool:
    """Tell whether the options of ``train`` ask for a teacher."""
    return any((train.get(name) or 0.0) > 0 for name in USUAL)


def weights_of(cfg: DictConfig, method: Method) -> dict[str, float]:
    """The weights of ``train`` that are null, by name: the usual ones where there is a teacher, 0 where there is none.

    A teacher is there where ``init_from`` names a run of the dense model on the same task, or where the model is to
    teach itself. A dense model has none: it is what teaches. Rows that merge tokens have no states to imitate.

    Args:
        cfg: of the run.
        method: that it names.
    """
    there = method.name != "dense" and (cfg.train.distill_from == "self" or starts_dense(cfg))
    usual = USUAL if "merges" not in method.does else USUAL | {"distill_hidden": 0.0}
    return {name: usual[name] if there else 0.0 for name in USUAL if cfg.train.get(name) is None}


def starts_dense(cfg: DictConfig) -> bool:
    """Tell whether a run starts from one of the dense model on its own task."""
    if cfg.init_from is None or not (Path(str(cfg.init_from)) / "config.yaml").is_file():
        return False
    before = recorded(Path(str(cfg.init_from)))
    return before.method._target_ == METHODS["dense"] and before.task.name == cfg.task.name


@dataclass(frozen=True)
class Lesson:
    """All that a teacher says of a batch.

    Attributes:
        output: of the model.
        states: behind each layer, ``(B, N, D)`` at input positions; none if nobody learns from them.
    """

    output: Any
    states: Sequence[Tensor] = ()


class Distiller:
    """Mix the distances to a teacher's logits and hidden states into a loss.

    Args:
        weight: of the distance of logits, in [0, 1]; the task's loss weighs the rest.
        temperature: softens both distributions, above 0.
        teacher: the dense model to learn from; ``None``: the student's own weights, run uncompressed.
        hidden: weight of the distance of hidden states, see :func:`states_distance`, beside the rest.
    """

    def __init__(
        self, weight: float, temperature: float = 2.0, teacher: nn.Module | None = None, hidden: float = 0.0
    ) -> None:
        self.weight, self.temperature, self.hidden = weight, temperature, hidden
        self.teacher = teacher

    def to(self, device: torch.device) -> None:
        """Move the teacher, which Lightning neither moves nor saves nor trains."""
        if self.teacher is not None:
            self.teacher.to(device)

    @torch.no_grad()
    def teach(self, student: nn.Module, batch: dict[str, Tensor], begun: bool) -> Lesson | None:
        """Run the teacher in evaluation mode, before the student, whose trace is the one to be kept.

        Args:
            student: the compressed model.
            batch: as the student will see it.
            begun: False while the student runs uncompressed too, when its own self has nothing to teach it.

        Returns:
            What it says; ``None`` if there is nothing to learn.
        """
        if self.teacher is not None:
            return self._ask(self.teacher, batch)
        if not begun:
            return None
        student.eval()
        try:
            with uncompressed(student):
                return self._ask(student, batch)
        finally:
            student.train()
            torch.clear_autocast_cache()  # torch < 2.11 would hand the student weights without a gradient

    def _ask(self, teacher: nn.Module, batch: dict[str, Tensor]) -> Lesson:
        with keeping_states(teacher, self.hidden > 0):
            output = teacher(**inputs_of(batch))
        return Lesson(output, [tokens.restore() for tokens in walk_of(teacher).trace.states])

    def mix(
        self, loss: Tensor, task: Task, output: Any, trace: Trace, lesson: Lesson, batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss and the distances to the teacher, each with its weight.

        Args:
            loss: the task's, a scalar.
            task: knows the distance of two outputs.
            output: the student's.
            trace: the student's; the states in it are gone afterwards.
            lesson: the teacher's.
            batch: that both have seen.

        Returns:
            The sum, and the distances by their names, for a log.
        """
        distances = {}
        if self.weight > 0:
            distance = task.distance(output, lesson.output, batch, self.temperature)
            distances["distill"] = weighed(distance, lambda: task.labelled(batch))
            loss = (1 - self.weight) * loss + self.weight * distances["distill"]
        if self.hidden > 0:
            distances["distill_hidden"] = states_distance(trace, lesson.states)
            loss = loss + self.hidden * distances["distill_hidden"]
            trace.states.clear()  # as large as all activations, and a trace lives until the next forward
        return loss, {name: distance.detach() for name, distance in distances.items()}


def states_distance(trace: Trace, taught: Sequence[Tensor]) -> Tensor:
    r"""Distance of a student's hidden states to a teacher's: of the tokens that the student still computes, a scalar.

    .. math:: \frac{1}{|I|} \sum_{i \in I} \frac{\sum_t k_{it} (1 - \cos(s_{it}, h_{it}))}{\sum_t k_{it}}

    over the layers i behind which the student's next layer reads, and the last; with the student's states s, the
    teacher's h, and k, how far a token is still alive. So each layer that runs imitates what in the teacher enters the
    layer that runs next, or the head: where all run, the layer of the same number; behind the last one that runs, the
    teacher's last. Cosines (DistilBERT, Sanh et al., 2019; layer by layer in TinyBERT, Jiao et al., 2020) are the same
    scale for every width and family. No gradient reaches k: to retire a token that is hard to imitate helps nobody.

    Args:
        trace: of the student, with its states.
        taught: the teacher's, behind each layer, ``(B, N, D)``.
    """
    ran = [layer.ran for layer in trace.layers]
    read = [i for i in range(len(ran)) if any(ran[: i + 1]) and (i + 1 == len(ran) or ran[i + 1])]
    sums, counts = [], []
    for i in read:
        tokens = trace.states[i]
        alive = tokens.occupancy.weights.detach().float()
        cosine = F.cosine_similarity(tokens.hidden.float(), tokens.occupancy.rows(taught[i]).float(), dim=-1)
        sums.append(((1 - cosine) * alive).sum())
        counts.append(alive.sum())
    # where nobody is left, nothing differs
    return share(torch.stack(sums), torch.stack(counts).clamp_min(1e-9)).mean()


def check_states(model: nn.Module, method: Method) -> None:
    """Refuse to learn from hidden states where the student's rows are not the teacher's tokens.

    Raises:
        SkimError: which of family and method it is.
    """
    merging = "merges" in method.does
    if merging or walk_of(model).backbone.shortens:
        who = f"method={method.name}" if merging else type(model).__name__
        raise SkimError(
            f"train.distill_hidden compares states token by token, and {who} merges tokens on the way.\n"
            "Set train.distill_hidden=0; train.distill learns from the teacher's logits."
        )
