"""Inputs of a compressed model: their names and shapes, and the check that what its head reads is there.

Inputs come in the shapes that transformers documents. ``(1, N)`` and ``(B, 1)`` broadcast to ``(B, N)``; any other
shape is refused, because indexing with it would not fail everywhere: it would mix sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from skim.errors import SkimError


@dataclass
class Inputs:
    """The encoder's inputs, under one set of names; each ``(B, N)`` but for the embeddings.

    Attributes:
        input_ids: token ids; ``None`` if the caller passed embeddings.
        attention_mask: 1 on real tokens; ``None``: all are.
        token_type_ids: segments; ``None`` if not given.
        position_ids: positions; ``None`` if not given.
        inputs_embeds: ``(B, N, D)`` in the place of ids.

    Raises:
        SkimError: neither ids nor embeddings or both, what is no tensor, or shapes that do not fit.
    """

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, Tensor):
                raise SkimError(
                    f"{field.name} is a {type(value).__name__}, and the model takes tensors: tokenizer(texts, "
                    "padding=True, return_tensors='pt'), passed as model(**batch)."
                )
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise SkimError("Pass exactly one of input_ids and inputs_embeds.")
        name, given = ("inputs_embeds", self.inputs_embeds) if self.input_ids is None else ("input_ids", self.input_ids)
        assert given is not None
        wanted = "(batch, positions)" if name == "input_ids" else "(batch, positions, width)"
        if given.dim() != (2 if name == "input_ids" else 3) or 0 in given.shape[:2]:
            raise SkimError(f"{name} has shape {tuple(given.shape)}; it takes {wanted}, at least one of each.")
        for other in ("attention_mask", "token_type_ids", "position_ids"):
            value = getattr(self, other)
            if value is not None:
                setattr(self, other, fitted(other, value, name, self.shape))

    @property
    def shape(self) -> tuple[int, int]:
        """B and N."""
        given = self.inputs_embeds if self.input_ids is None else self.input_ids
        assert given is not None
        return given.shape[0], given.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the ids, or of the embeddings."""
        given = self.inputs_embeds if self.input_ids is None else self.input_ids
        assert given is not None
        return given.device

    def real(self, hidden: Tensor) -> Tensor:
        """Mark what is not padding, ``(B, N)`` bool, on the device of ``hidden``."""
        if self.attention_mask is None:
            return torch.ones(self.shape, dtype=torch.bool, device=hidden.device)
        return self.attention_mask.bool()


INPUTS = tuple(field.name for field in fields(Inputs))  # what an encoder takes of a batch: no labels, so no loss


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the encoder's inputs out of a batch."""
    return {name: batch[name] for name in INPUTS if name in batch}


def fitted(name: str, value: Tensor, other: str, shape: tuple[int, int]) -> Tensor:
    """``value`` as ``(B, N)``; a SkimError with both shapes if it does not broadcast to that.

    Args:
        name: of the input, for the error.
        value: ``(B, N)``, ``(1, N)``, ``(B, 1)`` or ``(1, 1)``.
        other: what gave the shape, for the error.
        shape: B and N.
    """
    if value.dim() == 2 and all(size in (1, whole) for size, whole in zip(value.shape, shape, strict=True)):
        return value.expand(shape)
    hint = ""
    if value.dim() > 2:
        hint = "\nWhich token sees which is decided by the method and the backbone; pass 1 on real tokens, else 0."
    raise SkimError(
        f"{name} has {value.dim()} dimensions, {tuple(value.shape)}, and {other} is {shape}; skim needs (batch, "
        f"positions), where either may be 1.{hint}"
    )


def check_labels(arguments: Mapping[str, Any], per_token: bool) -> None:
    """Refuse labels that are of another batch than the inputs; a head's loss would fail on them, or broadcast.

    Args:
        arguments: of the whole model's forward, by name. Inputs are ``(B, N)``, or ``(B, C, N)`` of a multiple choice.
        per_token: whether ``labels`` has a value for each token.

    Raises:
        SkimError: with both shapes.
    """
    given = next((arguments[name] for name in ("input_ids", "inputs_embeds") if arguments.get(name) is not None), None)
    if not isinstance(given, Tensor):
        return
    for name in ("labels", "start_positions", "end_positions"):
        labels = arguments.get(name)
        if not isinstance(labels, Tensor):
            continue
        wanted = given.shape[:2] if per_token and name == "labels" else given.shape[:1]
        if labels.shape[: len(wanted)] != wanted:
            raise SkimError(
                f"{name} has shape {tuple(labels.shape)}, and the inputs are {tuple(given.shape)}: its first "
                f"{'two sizes' if len(wanted) == 2 else 'size'} must be {tuple(wanted)}."
            )


def misread(real: Tensor, place: str) -> Tensor:
    """Sequences ``(B,)`` bool of which padding would be read: by a head that reads ``first``, ``last`` or ``every``.

    One of nothing but padding is none of them: it has no answer anyway.
    """
    read = real.all(1) if place == "every" else real[:, 0 if place == "first" else -1]
    return real.any(1) & ~read


def check_read(real: Tensor, place: str, form: str) -> None:
    """Refuse sequences whose padding stands where the head reads: it would answer from a row that nobody computes.

    Args:
        real: ``(B, N)`` bool.
        place: what the head reads, ``first``, ``last`` or ``every`` of the input's positions.
        form: the execution; where it is ``masked``, padding is computed as in the plain model, for whom reads it all.

    Raises:
        SkimError: with the first such row.
    """
    if place == "every" and form == "masked":
        return
    wrong = misread(real, place)
    if not wrong.any():  # nearly always, and told by one read of the device
        return
    wrong = wrong.nonzero()
    where = f"row {int(wrong[0])} of this batch (of {len(wrong)} such)"
    if place == "every":
        raise SkimError(
            f"This model's head does not leave out what the attention_mask says is padding, as in {where}, and {form} "
            "execution computes no padding.\nLet the head use the mask, or compress with execution='masked'."
        )
    side = "right" if place == "first" else "left"
    raise SkimError(
        f"This model's head reads the {place} position of each sequence, and in {where} the attention_mask says that "
        f"it is padding.\nPad on the {side}: tokenizer.padding_side = '{side}'."
    )
