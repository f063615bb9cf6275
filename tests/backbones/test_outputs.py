"""A compressed model gives what transformers gives: the same class, entries, tuple and values."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import skim
from tests.families import FAMILIES, PAIRS, batch_of, config_of, enliven, plain
from tests.ragged import assert_same

WAYS: tuple[dict[str, bool], ...] = tuple(
    {"return_dict": dictionary, "output_hidden_states": states}
    for dictionary in (True, False)
    for states in (True, False)
)


def headless_class(family: str) -> type[nn.Module]:
    return transformers.AutoModel._model_mapping[type(config_of(family))]


def with_and_without_pooler() -> list[tuple[str, dict[str, bool]]]:
    optional = [name for name in FAMILIES if "add_pooling_layer" in inspect.signature(headless_class(name)).parameters]
    return [(name, {}) for name in FAMILIES] + [(name, {"add_pooling_layer": False}) for name in optional]


def assert_alike(found: Any, wanted: Any, mask: torch.Tensor) -> None:
    """Of the same class, with the same entries in the same order, and equal on real tokens."""
    assert type(found) is type(wanted)
    names = range(len(wanted)) if isinstance(wanted, tuple) else list(wanted)
    assert names == (range(len(found)) if isinstance(found, tuple) else list(found))
    for name in names:
        one, other = found[name], wanted[name]
        if isinstance(other, tuple):  # hidden states
            assert_alike(one, other, mask)
        elif other is None:  # a pooler's place in a tuple
            assert one is None
        else:
            assert_same(one, other, mask, what=str(name))


def assert_like_transformers(model: nn.Module, batch: dict[str, Any]) -> None:
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        for way in WAYS:
            assert_alike(compressed(**batch, **way), model(**batch, **way), batch["attention_mask"])


def given(family: str) -> dict[str, Any]:
    """A batch; XLNet is told to return no memory, which a compressed one never has."""
    return batch_of(family) | ({"use_mems": False} if family == "xlnet" else {})


@pytest.mark.parametrize(("family", "options"), with_and_without_pooler())
def test_headless(family: str, options: dict[str, bool]) -> None:
    model = headless_class(family)(config_of(family), **options)
    enliven(model, 0, FAMILIES[family].gain)
    assert_like_transformers(model.eval(), given(family))


@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_heads(family: str, head: str) -> None:
    """Which reach into the tuple by number."""
    assert_like_transformers(plain(family, head), given(family))


@pytest.mark.parametrize("kind", ["FunnelBaseModel", "FunnelModel"])
def test_funnel(kind: str) -> None:
    sizes = {"vocab_size": 60, "block_sizes": [2, 1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
    model = getattr(transformers, kind)(transformers.FunnelConfig(**sizes)).eval()
    compressed = skim.compress(copy.deepcopy(model), "dense")
    with torch.no_grad():
        for way in WAYS:
            batch = batch_of("bert")
            found, wanted = compressed(**batch, **way), model(**batch, **way)
            assert type(found) is type(wanted)
            assert len(found) == len(wanted)
