"""The table of backbone families and heads that the laws run over, tiny random models of each, and batches for them."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

PAD, CLS, SEP, VOCAB = 1, 2, 3, 60
LAYERS, WIDTH = 3, 32

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
    "cls_token_id": CLS,
    "sep_token_id": SEP,
}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        config: name of the transformers config class.
        options: options of the tiny config that exercise the family's peculiarities.
        packs: True if it runs packed as well.
        token_types: number of token types it takes; 0 for none.
        left: True if it is padded on the left.
        checkpoints: True if transformers can checkpoint its gradients.
        gain: size of its random weights; smaller for a family without norms, whose states would explode.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    packs: bool = True
    token_types: int = 2
    left: bool = False
    checkpoints: bool = True
    gain: float = 1.2

    @property
    def executions(self) -> tuple[str, ...]:
        """Executions that the family has."""
        return ("masked", "packed", "narrowed") if self.packs else ("masked", "narrowed")


DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": -1,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "share_att_key": True,
}

FAMILIES = {
    "bert": Family("BertConfig"),
    "roberta": Family("RobertaConfig", token_types=1, options={"type_vocab_size": 1}),
    "xlm-roberta": Family("XLMRobertaConfig", token_types=1, options={"type_vocab_size": 1}),
    "camembert": Family("CamembertConfig", token_types=1, options={"type_vocab_size": 1}),
    "data2vec-text": Family("Data2VecTextConfig", token_types=1, options={"type_vocab_size": 1}),
    "ernie": Family("ErnieConfig", options={"use_task_id": True, "task_type_vocab_size": 3}),
    "distilbert": Family("DistilBertConfig", token_types=0),
    "electra": Family("ElectraConfig", options={"embedding_size": 16}),
    "albert": Family(
        "AlbertConfig",
        options={"embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 2, "inner_group_num": 2},
        checkpoints=False,
    ),
    "albert-shared": Family(  # one layer for all, as it is published
        "AlbertConfig",
        options={"embedding_size": 16, "num_hidden_groups": 1, "num_hidden_layers": 5, "inner_group_num": 1},
        checkpoints=False,
    ),
    "mobilebert": Family(
        "MobileBertConfig",
        options={"embedding_size": 16, "intra_bottleneck_size": 24, "num_feedforward_networks": 2},
        gain=0.6,
    ),
    "esm": Family("EsmConfig", options={"mask_token_id": 4, "position_embedding_type": "rotary"}, token_types=0),
    "esm-absolute": Family(
        "EsmConfig", options={"mask_token_id": 4, "token_dropout": True, "emb_layer_norm_before": True}, token_types=0
    ),
    "modernbert": Family(
        "ModernBertConfig",
        options={"local_attention": 4, "global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
        token_types=0,
    ),
    "nomic_bert": Family("NomicBertConfig"),
    "jina_embeddings_v3": Family("JinaEmbeddingsV3Config", token_types=1, options={"type_vocab_size": 1}),
    "eurobert": Family("EuroBertConfig", options={"num_key_value_heads": 2}, token_types=0),
    "mpnet": Family("MPNetConfig", packs=False, token_types=0, checkpoints=False),
    "deberta-v2": Family(
        "DebertaV2Config", options={**DEBERTA, "type_vocab_size": 2, "share_att_key": False}, packs=False
    ),
    "deberta-v3": Family("DebertaV2Config", options={**DEBERTA, "type_vocab_size": 0}, packs=False, token_types=0),
    "xlnet": Family(
        "XLNetConfig",
        options={"d_model": WIDTH, "n_layer": LAYERS, "n_head": 4, "d_inner": 64, "max_position_embeddings": None},
        packs=False,
        left=True,
        checkpoints=False,
    ),
    "megatron-bert": Family("MegatronBertConfig", packs=False),
    "rembert": Family("RemBertConfig", options={"input_embedding_size": 16}, packs=False),
    "roformer": Family("RoFormerConfig", options={"embedding_size": 16, "rotary_value": True}, packs=False),
}

HEADS = {
    "classification": ("AutoModelForSequenceClassification", {"num_labels": 3}),
    "regression": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "tokens": ("AutoModelForTokenClassification", {"num_labels": 5}),
    "answers": ("AutoModelForQuestionAnswering", {}),
    "masked_lm": ("AutoModelForMaskedLM", {}),
}


def config_of(name: str, **options: Any) -> Any:
    """Build the tiny config of a family, without dropout."""
    family = FAMILIES[name]
    sizes = {k: v for k, v in {**SIZES, **family.options, **options}.items() if v is not None}
    config = getattr(transformers, family.config)(**sizes)
    for key in list(config.to_dict()):
        if "drop" in key and isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    return config


@functools.cache
def has(name: str, head: str) -> bool:
    """Tell whether transformers has this head for this family."""
    return type(config_of(name)) in getattr(transformers, HEADS[head][0])._model_mapping


PAIRS = [(name, head) for name in FAMILIES for head in HEADS if has(name, head)]


def plain(name: str, head: str = "classification", seed: int = 0, **options: Any) -> nn.Module:
    """Build a tiny Hugging Face model whose every weight matters, in evaluation mode."""
    auto, sizes = HEADS[head]
    config = config_of(name, **sizes, **options)
    model = getattr(transformers, auto).from_config(config, dtype=torch.float32)
    enliven(model, seed, FAMILIES[name].gain)
    return model.eval()


@torch.no_grad()
def enliven(module: nn.Module, seed: int, gain: float = 1.2) -> None:
    """Draw weights at which attention is not flat, biases and norms away from 0 and 1. Padding rows stay 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() == 1:  # a norm's weight, or a bias
            parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
        elif not name.endswith("embed_positions.weight"):  # RoFormer's are sines
            parameter.copy_(noise * (0.7 if "embed" in name else gain) * min(parameter.shape[-1], WIDTH) ** -0.5)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx] = 0.0


def batch_of(name: str, lengths: tuple[int, ...] = (13, 9, 6, 11), width: int | None = None, seed: int = 0) -> dict:
    """Draw inputs ``(B, N)`` with the family's padding; sequence b depends on ``seed`` and its own length only."""
    family = FAMILIES[name]
    width = max(lengths) if width is None else width
    ids = torch.full((len(lengths), width), PAD)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(1000 * seed + length)
        here = slice(width - length, width) if family.left else slice(0, length)
        words = torch.randint(4, VOCAB, (length,), generator=generator)  # 4 is ESM's mask
        if length:
            words[0], words[-1] = (SEP, CLS) if family.left else (CLS, SEP)
        ids[row, here], mask[row, here] = words, 1
        if family.token_types > 1:
            types[row, here] = (torch.arange(length) >= length // 2).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | ({"token_type_ids": types} if family.token_types else {})


def any_mask(name: str, seed: int, reads: str | None = None, rows: int = 4) -> dict[str, Tensor]:
    """Draw a batch ``(B, N)`` whose mask is of every kind: pads on both sides, holes, and a row of nothing.

    Args:
        name: the family.
        seed: of lengths, pads, holes and the place of the empty row.
        reads: the position that the head reads, ``first`` or ``last``: a token stands there in each row that has any.
            ``None`` or ``every``: pads may stand there.
        rows: rows that have a token, 6 to 13 of them and never as many; at most 4, and B is one more.
    """
    draw = random.Random(seed)
    lengths = [6 + 2 * step + draw.randint(0, 1) for step in draw.sample(range(4), rows)]
    lengths.insert(draw.randrange(rows + 1), 0)
    full = batch_of(name, tuple(lengths), seed=seed)
    width = max(lengths) + 3
    pads = {"input_ids": PAD}
    batch = {key: torch.full((len(lengths), width), pads.get(key, 0)) for key in full}
    for row, length in enumerate(lengths):
        first = {"first": 0, "last": width - length}.get(reads or "", draw.randint(0, width - length))
        for key, value in full.items():
            batch[key][row, first : first + length] = value[row][full["attention_mask"][row].bool()]
        for hole in range(first + 1, first + length - 1):  # the ends stay, where heads read
            if length > 7 and draw.random() < 0.2:
                batch["attention_mask"][row, hole] = 0
    return batch


def rows_of(name: str, batch: dict[str, Tensor], rows: list[int], pads: int | None = None) -> dict[str, Tensor]:
    """Take some rows of a batch, in this order, with so many pads more on the family's side; ``None``: none at all.

    Positions do not change, if the family has any: pads in front of its tokens stay, where it is padded behind.
    """
    some = {key: value[rows] for key, value in batch.items()}
    there = some["attention_mask"].any(0).nonzero().flatten()
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 1)
    left = FAMILIES[name].left
    for key, value in some.items():
        if pads is None:
            some[key] = value[:, first:] if left else value[:, :last]
        else:
            more = value.new_full((len(value), pads), PAD if key == "input_ids" else 0)
            some[key] = torch.cat([more, value] if left else [value, more], 1)
    return some


def labels_of(head: str, batch: dict) -> dict[str, Tensor]:
    """Make targets for a head's own loss."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows = len(ids)
    if head == "classification":
        return {"labels": torch.arange(rows) % 3}
    if head == "regression":
        return {"labels": torch.linspace(-1, 1, rows)}
    if head == "answers":
        return {"start_positions": mask.argmax(1) + 1, "end_positions": mask.argmax(1) + 3}
    labels = ids % 5 if head == "tokens" else ids
    return {"labels": labels.masked_fill(mask == 0, -100)}
