"""Heads and masks: a head that reads all positions takes pads anywhere, one that reads a position needs a token there.

What a head reads at a pad comes from a row that nobody computes, so that is refused, in every execution.
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import skim
from tests.families import FAMILIES, PAIRS, batch_of, config_of, enliven, plain
from tests.ragged import assert_same

everywhere = pytest.mark.parametrize(("family", "head"), PAIRS)


def flipped(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pad a batch on the other side."""
    return {name: value.flip(1) for name, value in batch.items()}


def averages(family: str, head: str) -> bool:
    """Tell whether the head averages over the tokens, as its config here says."""
    return family in ("modernbert", "eurobert") and head in ("classification", "regression")


@everywhere
def test_heads_are_known_by_what_they_read(family: str, head: str) -> None:
    """One position for a class of the sequence, unless the head averages; every position for tokens and answers.

    A batch without a token at that position is refused, in every execution.
    """
    compressed = skim.compress(plain(family, head), "dense")
    one = head in ("classification", "regression") and not averages(family, head)
    assert compressed.skim_walk.head.reads == (("last" if family == "xlnet" else "first") if one else None)
    for execution in FAMILIES[family].executions if one else ():
        with skim.execution(compressed, execution), pytest.raises(skim.SkimError, match="padding_side"):
            compressed(**flipped(batch_of(family)))


@pytest.mark.parametrize(("family", "alone"), [("modernbert", "cls"), ("eurobert", "bos")])
@pytest.mark.parametrize("head", ["classification", "regression"])
def test_a_head_may_average_or_read_one_position(family: str, alone: str, head: str) -> None:
    model = skim.compress(plain(family, head, classifier_pooling=alone), "dense")
    assert model.skim_walk.head.reads == "first"


@pytest.mark.parametrize("family", ["bert", "deberta-v3", "xlnet"])
def test_a_masked_first_position_is_refused_by_row(family: str) -> None:
    """Also with the pooler of a model without a head; which one without a pooler, or with one for tokens, is not."""
    batch = batch_of(family)
    place = -1 if FAMILIES[family].left else 0
    batch["attention_mask"][2, place] = 0
    side = "left" if FAMILIES[family].left else "right"
    with pytest.raises(skim.SkimError, match=rf"row 2 (.|\n)*padding_side = '{side}'"):
        skim.compress(plain(family), "dense")(**batch)
    skim.compress(plain(family, "tokens"), "dense")(**batch)
    if family == "bert":
        with pytest.raises(skim.SkimError, match="row 2"):
            skim.compress(transformers.BertModel(config_of("bert")), "dense")(**batch)
        model = transformers.BertModel(config_of("bert"), add_pooling_layer=False).eval()
        wanted = model(**batch).last_hidden_state
        assert_same(skim.compress(model, "dense")(**batch).last_hidden_state, wanted, batch["attention_mask"])


class OwnHead(transformers.BertPreTrainedModel):
    """A head of a user's own, which reads states in the way that its config says."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Tensor) -> SequenceClassifierOutput:
        states = self.bert(input_ids, attention_mask=attention_mask, **kwargs)[0]
        real = attention_mask[..., None].to(states)
        mean = (states * real).sum(1) / real.sum(1).clamp_min(1)
        read = {
            "mean of real": lambda: mean,
            "mean of all": lambda: states.mean(1),
            "largest of all": lambda: states.amax(1),
            "first and mean": lambda: states[:, 0] + mean,
            "second": lambda: states[:, 1],
        }[self.config.reading]()
        return SequenceClassifierOutput(logits=self.classifier(read))


@pytest.mark.parametrize(
    ("reading", "known"),
    [
        ("mean of real", None),
        ("mean of all", "every"),
        ("largest of all", "every"),
        ("first and mean", "first"),
        ("second", "every"),
    ],
)
def test_a_head_of_ones_own_that_reads_padding_is_refused_where_padding_has_no_state(
    reading: str, known: str | None
) -> None:
    """And says what it says in transformers everywhere else."""
    model = OwnHead(config_of("bert", reading=reading)).eval()
    enliven(model, 0)
    compressed = skim.compress(copy.deepcopy(model).train(), "dense").eval()  # dropout must not be taken for a reading
    assert compressed.skim_walk.head.reads == known
    kept = [value.clone() for value in compressed.state_dict().values()]
    for batch in (batch_of("bert"), flipped(batch_of("bert")), batch_of("bert", (9, 9))):
        refused = {
            None: False,
            "first": not batch["attention_mask"][:, 0].all(),
            "every": not batch["attention_mask"].all(),
        }[known]
        for execution in ("masked", "packed", "narrowed"):
            with skim.execution(compressed, execution), torch.no_grad():
                if refused and not (known == "every" and execution == "masked"):
                    says = "row 1" if known == "every" and batch["attention_mask"][0].all() else "row"
                    with pytest.raises(skim.SkimError, match=rf"head (reads|does not leave out) (.|\n)*{says}"):
                        compressed(**batch)
                else:
                    assert_same(compressed(**batch).logits, model(**batch).logits, what=f"{reading} {execution}")
    assert all(torch.equal(a, b) for a, b in zip(kept, compressed.state_dict().values(), strict=True))
