"""Tiny models and a tokenizer of word pieces to try pipelines on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from tests.families import plain

SPECIALS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")  # 1, 2 and 3 are those of tests.families
WORDS = "the a was not dull film book waiter opened window we walked good , . ?".split()
PIECES = ("##s", "##er", "##ly", "##ed")
HEADS = {
    "text-classification": "classification",
    "token-classification": "tokens",
    "question-answering": "answers",
    "fill-mask": "masked_lm",
    "feature-extraction": "classification",
}


def tokenizer_of(longest: int = 48, left: bool = False) -> Any:
    """Build a tokenizer of word pieces that cuts at ``longest`` tokens if it is asked to cut."""
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *WORDS, *PIECES))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    single, pair = (
        ("$A [SEP] [CLS]", "$A [SEP] $B:1 [SEP]:1 [CLS]:1")
        if left
        else ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    )
    made.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    side = "left" if left else "right"
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, padding_side=side, **names)


def model_of(task: str, family: str = "bert") -> nn.Module:
    """Build a tiny model with the head of a task, and names for its labels."""
    options = {}
    if task == "token-classification":
        options = {"id2label": dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))}
    model = plain(family, HEADS[task])
    for name, value in options.items():
        setattr(model.config, name, value)
    return model


def texts_of(count: int, seed: int = 0, longest: int = 24) -> list[str]:
    """Write texts of any length, in no order, with words of several pieces in them."""
    draw = random.Random(seed)
    endings = ("", "", "s", "er", "ly")
    return [
        " ".join(draw.choice(WORDS) + draw.choice(endings) for _ in range(draw.randint(1, longest)))
        for _ in range(count)
    ]


def inputs_of(task: str, count: int = 12, seed: int = 0) -> list[Any]:
    """Write what a task's pipeline takes, in no order of length."""
    texts = texts_of(count, seed)
    if task == "fill-mask":
        return [f"{text} [MASK] film" + (" [MASK]" if number % 4 == 0 else "") for number, text in enumerate(texts)]
    if task == "question-answering":
        longer = texts_of(count, seed + 1, longest=60)
        return [
            {"question": f"was the {text.split()[0]} good ?", "context": more}
            for text, more in zip(texts, longer, strict=True)
        ]
    return texts


def saved(task: str, folder: Path) -> Path:
    """Save a plain model of transformers with its tokenizer."""
    model_of(task).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder
