"""Sentences with each token shaded by the layers that computed it: on a terminal and as HTML.

A :class:`SkimmedText` records one forward of one text; :func:`read` makes them from a compressed model, and every
picture is a pure function of them. SVG, for pages that take no styles of their own, is in :mod:`skim.report.svg`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.style import Style
from rich.text import Text

from skim.errors import SkimError
from skim.files import write_text
from skim.report.document import render
from skim.report.shades import colors, step

if TYPE_CHECKING:
    from torch import nn

TEXTS = "examples.json"  # texts of the evaluation data, beside the run's results.json
MARKS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class SkimmedText:
    """Record of one text in a compressed model.

    Attributes:
        tokens: as BERT writes them, whatever the tokenizer: ``##`` joins a piece to the one before it.
        survived: layers each token took part in, by itself or in a row that it was merged into, 0 to ``layers``.
        rows: rows that entered each layer's attention, L numbers: where tokens are merged, fewer than tokens.
        prediction: the label, or the number of a regression; ``None`` if the head gives no single answer.
        truncated: whether the text was longer than the model takes, and these are only its first tokens.
    """

    tokens: list[str]
    survived: list[int]
    rows: list[int]
    prediction: str | None = None
    truncated: bool = False

    def __post_init__(self) -> None:
        if not self.rows or len(self.tokens) != len(self.survived):
            raise ValueError("a text has a number of layers for each token, and of rows for each layer")

    @property
    def layers(self) -> int:
        """Number of layers of the model, L."""
        return len(self.rows)

    def size(self) -> str:
        """Count the tokens, in words that also say whether the text was cut."""
        return f"{'cut at ' if self.truncated else ''}{len(self.tokens)} tokens"

    def words(self) -> list[list[tuple[str, int]]]:
        """List the pieces of each word with the layers they took part in; characters that do not print are dots."""
        words: list[list[tuple[str, int]]] = []
        for token, survived in zip(self.tokens, self.survived, strict=True):
            joined = token.startswith("##") and len(token) > 2 and bool(words)
            piece = "".join(c if c.isprintable() else "·" for c in (token[2:] if joined else token)) or "·"
            if joined:
                words[-1].append((piece, survived))
            else:
                words.append([(piece, survived)])
        return words

    def fate(self, survived: int) -> str:
        """Describe a token's computation, in words that are true of retired, halted, merged and exited ones."""
        return f"computed in {survived} of {self.layers} layers"


def read(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str | tuple[str, str]],
    label_names: Sequence[str] | None = None,
    whole: bool = True,
) -> list[SkimmedText]:
    """Run a compressed model on texts, in evaluation mode, and note which layers computed each token.

    Args:
        model: a compressed model.
        tokenizer: its tokenizer of transformers.
        texts: texts, or all of them pairs of texts.
        label_names: names by label id; ``None`` or empty takes the model's own (``config.id2label``).
        whole: run the model with its head; without, nothing is predicted: for heads that take no single text.
    """
    import torch

    from skim.compression import walk_of

    if not texts:
        return []
    walk = walk_of(model)
    longest = walk.backbone.longest_input(walk.base.config)
    limit = min(tokenizer.model_max_length, longest or 512)  # no position ends a text, but a picture must end
    columns = [list(column) for column in zip(*texts, strict=True)] if not isinstance(texts[0], str) else [list(texts)]
    full = tokenizer(*columns, verbose=False)["input_ids"]
    encoded = tokenizer(*columns, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            inputs = {name: value.to(device) for name, value in encoded.items() if name in walk.names}
            output = (model if whole else walk.base)(**inputs)
    finally:
        model.train(training)
    trace = walk.trace
    survived, real, rows = trace.layers_survived().cpu(), trace.sequences.real.cpu(), trace.counts().cpu()
    config = walk.base.config
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    predictions = _predictions(output, label_names or getattr(config, "id2label", {}), several) if whole else None
    return [
        SkimmedText(
            tokens=_pieces(tokenizer, encoded["input_ids"][i][real[i]].tolist()),
            survived=survived[i][real[i]].tolist(),
            rows=[round(count) for count in rows[:, i].tolist()],
            prediction=predictions[i] if predictions else None,
            truncated=len(full[i]) > limit,
        )
        for i in range(len(texts))
    ]


def _predictions(output: Any, names: Any, several: bool) -> list[str] | None:
    """Read one answer per sequence from logits ``(B, C)``, or ``several`` labels; ``None`` for any other output."""
    logits = getattr(output, "logits", None)
    if logits is None or logits.dim() != 2 or getattr(output, "start_logits", None) is not None:
        return None
    if logits.shape[1] == 1:
        return [f"{value:.3f}" for value in logits[:, 0].tolist()]
    if several:
        found = [[str(names[i]) for i, yes in enumerate(row) if yes] for row in (logits > 0).tolist()]
        return [", ".join(labels) or "none of the labels" for labels in found]
    return [str(names[label]) for label in logits.argmax(1).tolist()]


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Write tokens in BERT's notation, be it continued words (``##``) that are marked or begun ones (``Ġ``, ``▁``)."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    vocabulary = tokenizer.get_vocab()
    mark = next((mark for mark in ("Ġ", "▁") if mark in vocabulary), None)
    if mark is None:
        return tokens
    pieces: list[str] = []
    begins = True  # a special token ends a word
    for token in tokens:
        special = token in tokenizer.all_special_tokens
        begins = begins or special or token.startswith(mark)
        # only the tokenizer itself knows the bytes of non-ASCII letters
        plain = token if special else tokenizer.convert_tokens_to_string([token]).strip() if mark == "Ġ" else token
        pieces.append(("" if begins else "##") + plain.removeprefix(mark))
        begins = special
    return pieces


def write_texts(folder: Path, texts: Sequence[SkimmedText]) -> None:
    """Write a run's texts as ``examples.json``, so that runs can be compared without loading their models."""
    write_text(folder / TEXTS, json.dumps([asdict(text) for text in texts]) + "\n")


def load_texts(folder: Path) -> list[SkimmedText]:
    """Load what :func:`write_texts` wrote; nothing where there is no such file.

    Raises:
        SkimError: a file that holds something else.
    """
    path = folder / TEXTS
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[SkimmedText]).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))
        raise SkimError(
            f"{path} does not hold the texts of a run: {f'{place}: ' if place else ''}{wrong['msg']}."
        ) from None


def terminal(text: SkimmedText, marks: bool = False) -> Text:
    """Shade one text for a terminal.

    Args:
        text: to be shown.
        marks: write the layers a token took part in behind it, for terminals without colour.
    """
    line = Text()
    for word in text.words():
        for piece, survived in word:
            background, ink = colors(step(survived, text.layers))
            line.append(piece, Style(color=ink, bgcolor=background))
            if marks and survived < text.layers:
                line.append(str(survived).translate(MARKS))
        line.append(" ")
    return line


def show(texts: Sequence[SkimmedText], console: Console) -> None:
    """Print texts with a legend, their predictions, and how many rows each layer computed."""
    marks = console.color_system in (None, "standard")  # 16 colours cannot hold the ramp
    for layers in sorted({text.layers for text in texts}):
        legend = Text.assemble(("layers computed ", "dim"))
        for survived in range(layers + 1):
            background, ink = colors(step(survived, layers))
            legend.append(f" {survived} ", Style(color=ink, bgcolor=background))
        legend.append(
            "  raised: layers computed; unmarked: computed to the end" if marks else "  computed to the end",
            style="dim",
        )
        console.print(legend)
    for text in texts:
        console.print()
        console.print(terminal(text, marks))
        counts = " ".join(map(str, text.rows))
        prediction = "" if text.prediction is None else f"{text.prediction} · "
        console.print(Text(f"{prediction}{text.size()}, rows by layer: {counts}", style="dim"))


def page(texts: Sequence[SkimmedText], title: str = "Skimmed text") -> str:
    """Make a page of texts that needs nothing beside itself, readable in light and dark mode."""
    return render("texts.html", title=title, texts=texts)


def write_html(path: Path, texts: Sequence[SkimmedText], title: str = "Skimmed text") -> None:
    """Write :func:`page` to a file."""
    write_text(path, page(texts, title))
