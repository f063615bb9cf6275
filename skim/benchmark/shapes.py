"""Shapes with random weights, and what is timed on them."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from skim.benchmark.rows import DTYPES, Row, Settings, measure
from skim.benchmark.scripted import HaltShare, KeepShare
from skim.compression import compress
from skim.errors import SkimError
from skim.methods import Method, method_class


def layered(family: str, width: int, layers: int, heads: int) -> dict[str, Any]:
    """A shape of BERT's kind, as ``AutoConfig.for_model`` takes it."""
    return {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def pooling(width: int, heads: int, blocks: list[int]) -> dict[str, Any]:
    """A Funnel-Transformer's shape."""
    sizes = {"d_model": width, "n_head": heads, "d_head": width // heads, "d_inner": 4 * width}
    return {"model_type": "funnel", "block_sizes": blocks, **sizes}


SHAPES = {
    "minilm": layered("bert", 384, 6, 12),
    "bert-base": layered("bert", 768, 12, 12),
    "bert-large": layered("bert", 1024, 24, 16),
    "albert-base": layered("albert", 768, 12, 12),
    "funnel-mini": pooling(384, 6, [2, 2, 2]),
    "funnel-small": pooling(768, 12, [4, 4, 4]),
}


def shape_rows(options: argparse.Namespace, batch: int, length: int) -> tuple[list[Row], list[str]]:
    """Time one shape: padded Hugging Face, packed dense, every scripted method, and peers, all side by side."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = dict(SHAPES[options.backbone])
    if shape["model_type"] != "funnel":  # which has no table of positions
        shape["max_position_embeddings"] = max(512, length)
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_config(config).to(options.device, DTYPES[options.dtype[0]])
    lengths = torch.full((batch,), length)
    if options.ragged:  # the first stays whole, so that the padded shape is as named
        lengths[1:] = torch.randint(max(length // 4, 1), length + 1, (batch - 1,))
    mask = torch.arange(length)[None] < lengths[:, None]
    ids = torch.randint(1000, config.vocab_size, (batch, length)) * mask
    inputs = {"input_ids": ids, "attention_mask": mask.long()}

    methods: dict[str, Method] = {f"packed, keep {keep:g}": KeepShare(keep) for keep in options.keep}
    for keep in options.halt:
        methods[f"masked, halt {keep:g}"] = HaltShare(keep, masked=True)
        methods[f"packed, halt {keep:g}"] = HaltShare(keep)
    funnel: Any = method_class("funnel")
    for blocks in options.funnel:
        sizes = sizes_of(blocks)
        methods[f"funnel {blocks} (q)"] = funnel(blocks=sizes)
        methods[f"funnel {blocks} (all)"] = funnel(blocks=sizes, pool_q_only=False)
    settings = Settings(options.dtype, options.peers, options.repeats, options.warmup, options.clock)
    return measure(compress(model, "dense").eval(), [inputs], methods, settings, title=f"{batch} x {length}")


def sizes_of(blocks: str) -> tuple[int, ...]:
    """Layers per block as the command takes them: ``2,2,2``."""
    try:
        return tuple(int(size) for size in blocks.split(","))
    except ValueError:
        raise SkimError(f"--funnel {blocks} must be layers per block, such as 2,2,2.") from None
