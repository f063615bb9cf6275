"""Time one shape with random weights: padded, packed dense, and every scripted method, side by side."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from skim.benchmark.comparison import plain_twin, running
from skim.benchmark.scripted import HaltShare, KeepShare
from skim.benchmark.timing import Timing, time_side_by_side
from skim.compression import compress, walk_of
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
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One line of the command's table."""

    batch: int
    length: int
    candidate: str
    keep_ratio: float
    relative_flops: float
    timing: Timing


def shape_rows(options: argparse.Namespace, batch: int, length: int) -> list[Row]:
    """Time one shape: padded Hugging Face, packed dense, and every scripted method, all side by side."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = dict(SHAPES[options.backbone])
    if shape["model_type"] != "funnel":  # which has no table of positions
        shape["max_position_embeddings"] = max(512, length)
    config = AutoConfig.for_model(**shape)
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_config(config).to(options.device, DTYPES[options.dtype])
    lengths = torch.full((batch,), length)
    if options.ragged:  # the first stays whole, so that the padded shape is as named
        lengths[1:] = torch.randint(max(length // 4, 1), length + 1, (batch - 1,))
    mask = torch.arange(length)[None] < lengths[:, None]
    ids = torch.randint(1000, config.vocab_size, (batch, length)) * mask
    inputs = {"input_ids": ids.to(options.device), "attention_mask": mask.long().to(options.device)}

    dense = compress(model, "dense").eval()
    methods: dict[str, Method] = {f"packed, keep {keep:g}": KeepShare(keep) for keep in options.keep}
    for keep in options.halt:
        methods[f"masked, halt {keep:g}"] = HaltShare(keep, masked=True)
        methods[f"packed, halt {keep:g}"] = HaltShare(keep)
    funnel: Any = method_class("funnel")
    for blocks in options.funnel:
        sizes = sizes_of(blocks)
        methods[f"funnel {blocks} (q)"] = funnel(blocks=sizes)
        methods[f"funnel {blocks} (all)"] = funnel(blocks=sizes, pool_q_only=False)
    models = {name: compress(plain_twin(dense), method).eval() for name, method in methods.items()}
    own = f"{walk_of(dense).form()} dense"
    models = {"padded HF": plain_twin(dense), own: dense, **models}
    candidates = {name: running(one, [inputs]) for name, one in models.items()}
    timings = time_side_by_side(candidates, options.repeats, options.warmup, title=f"{batch} x {length}")
    rows = []
    for name, timing in timings.items():
        trace = getattr(models[name], "trace", None)
        kept = 1.0 if trace is None else float(trace.keep_ratio().mean())
        flops = 1.0 if trace is None else float(trace.relative_flops())
        rows.append(Row(batch, length, name, kept, flops, timing))
    return rows


def sizes_of(blocks: str) -> tuple[int, ...]:
    """Layers per block as the command takes them: ``2,2,2``."""
    try:
        return tuple(int(size) for size in blocks.split(","))
    except ValueError:
        raise SkimError(f"--funnel {blocks} must be layers per block, such as 2,2,2.") from None


def shape_table(rows: list[Row], title: str) -> Table:
    """Relative FLOPs beside relative time, one line per candidate; fits 80 columns."""
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption = "times are compared by their medians, measured in turns"
    table.add_column("candidate", no_wrap=True)
    for column in ("keep\nratio", "relative\nFLOPs", "time /\ndense", "time /\npadded", "median\nms", "min - max\nms"):
        table.add_column(column, justify="right", no_wrap=True)
    padded, dense = rows[0].timing.median_ms, rows[1].timing.median_ms
    for row in rows:
        ms = row.timing
        ratios = (row.keep_ratio, row.relative_flops, ms.median_ms / dense, ms.median_ms / padded)
        spread = f"{ms.min_ms:.1f} - {ms.max_ms:.1f}"
        table.add_row(row.candidate, *(f"{ratio:.3f}" for ratio in ratios), f"{ms.median_ms:.1f}", spread)
    return table
