"""What a form for graphs looks up instead of computing it."""

from __future__ import annotations

import torch

from skim.engine.packed import PackedTokens
from skim.engine.tokens import Sequences
from skim.export.forms import Together


def test_a_share_of_the_tokens_is_looked_up_and_the_same_at_every_length() -> None:
    """A runtime that multiplied in float32 would keep another token where the product ends in one half."""
    lengths = torch.arange(512)
    real = torch.arange(511) < lengths[:, None]
    sequences = Sequences(real, torch.zeros_like(real))
    packed, together = (form.start(torch.zeros(512, 511, 1), sequences).occupancy for form in (PackedTokens, Together))
    differs = 0
    for share in (0.1, 0.3, 0.45, 0.65, 0.825, 1.0):
        rate = torch.tensor(share, dtype=torch.float64)
        found = together.share(rate)
        assert not found.is_floating_point()
        assert torch.equal(found, packed.share(rate).long())
        differs += int((found != (lengths.float() * rate.float()).round()).sum())
    assert differs
