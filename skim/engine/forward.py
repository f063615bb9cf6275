"""The forward of a whole compressed model: labels are checked, and a method that reads the head says its loss."""

from __future__ import annotations

import inspect
from typing import Any

from skim.engine.inputs import check_labels
from skim.engine.walk import Walk


class HeadForward:
    """The forward of a whole compressed model; deleting it from the instance undoes it.

    It looks at the labels before the head does, and gives a method that reads the head its say in the task's loss.

    Args:
        walk: of the model's encoder.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.__signature__ = inspect.signature(walk.model.forward)  # by it transformers' Trainer chooses columns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        walk = self.walk
        model, method = walk.model, walk.deciding
        arguments = self.__signature__.bind(*args, **kwargs).arguments
        check_labels(arguments, walk.head.per_token)
        labels = arguments.get("labels")
        output = type(model).forward(model, *args, **kwargs)
        if labels is None or not model.training or not method.reads_head:
            return output
        logits = output[1] if isinstance(output, tuple) else output.logits
        logits = logits.view(-1, walk.head.outputs)  # with labels of a regression, DeBERTa's come without a column
        loss = method.task_loss(logits, labels, walk.trace)
        if isinstance(output, tuple):
            return (loss, *output[1:])
        output.loss = loss
        return output
