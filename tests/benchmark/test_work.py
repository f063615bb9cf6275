"""Guards: what a forward asks of a CPU beside padded Hugging Face, on texts of one length. Work, and never seconds.

Law 10 has the limits of the static form, by which an accelerator runs.
"""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import skim
from skim.benchmark import KeepShare, counting, plain_twin
from skim.methods import Method

LAYERS = 6
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(8 * 48).reshape(8, 48) % 40 + 5

# at one text, and at eight: operations / padded Hugging Face's, and host reads; relative FLOPs
LIMITS: dict[str, tuple[tuple[float, int], tuple[float, int], float]] = {
    "dense": ((1.2, 3), (1.2, 3), 1.0),
    "keep": ((2.0, 14), (4.0, 27), 0.46),
    "topk": ((2.5, 9), (3.3, 13), 0.84),
    "ltp": ((2.2, 10), (2.4, 10), 0.98),
    "act": ((2.7, 9), (2.7, 9), 1.01),
    "transkimmer": ((1.95, 10), (1.95, 10), 1.09),
}


def made(name: str) -> Method | str:
    return KeepShare(0.5) if name == "keep" else name


@pytest.fixture(scope="module")
def dense() -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(**SMALL, num_hidden_layers=LAYERS, max_position_embeddings=64)
    return skim.compress(BertForSequenceClassification(config), "dense").eval()


def worked(model: torch.nn.Module, ids: torch.Tensor) -> tuple[int, int]:
    """Operations and host reads of a second forward: the first may set things up."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        model(**inputs)
        with counting() as work:
            model(**inputs)
    return work.operations.total(), work.reads.total()


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("name", LIMITS)
def test_a_forward_asks_no_more_of_the_machine_than_it_did(dense, name, sequences):
    one, eight, flops = LIMITS[name]
    ratio, reads = one if sequences == 1 else eight
    ids = IDS[:sequences]
    model = skim.compress(plain_twin(dense), made(name)).eval()
    padded, _ = worked(plain_twin(dense).eval(), ids)
    operations, read = worked(model, ids)
    assert operations <= ratio * padded
    assert read <= reads
    assert float(model.trace.relative_flops()) <= flops
