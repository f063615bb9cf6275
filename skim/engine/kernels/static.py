"""Static rows: the operations whose shapes do not depend on how many rows are alive.

Each is one operation to the dispatcher, ``skim::retire``, ``skim::rank`` and ``skim::attend``, so that a device may
have one kernel for it. What stands here is the reference that runs everywhere, in plain torch, and waits for no device;
where gradients are wanted it is called itself. On a GPU they are kernels, where those run
(:mod:`skim.engine.kernels.fused`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.kernels.cuda import fused_attention
from skim.engine.kernels.fused import fused
from skim.engine.kernels.padded import added, attention_with_sums
from skim.engine.mask import AttentionMask, near
from skim.engine.packed import PackedOccupancy

FILLER = 0.0  # the context of filler rows; tests set what is not a number, to see that nobody reads it


def compact(keep: Tensor, index: Tensor, bounds: Tensor, trash: int) -> tuple[Tensor, Tensor, Tensor]:
    """Move the rows that stay to the front; nothing is asked of the device.

    Args:
        keep: ``(1, C)`` bool, False on filler.
        index: ``(C,)`` flat input position of each row, ``trash`` on filler.
        bounds: ``(B + 1,)`` int where each sequence's rows begin and end.
        trash: the index of filler.

    Returns:
        For each row where it came from ``(C,)``, 0 of filler; its index ``(C,)``; and the new bounds ``(B + 1,)``.
    """
    ends = F.pad(keep.cumsum(0), (1, 0))
    slots = ends[1:].where(keep, 0)  # place 0 takes all who leave, and is cut off
    lines = torch.arange(len(index), device=index.device)
    rows = index.new_zeros(len(index) + 1).scatter_(0, slots, lines)[1:]
    here = index.new_full((len(index) + 1,), trash).scatter_(0, slots, index)[1:]
    return rows, here, ends[bounds].to(bounds.dtype)


def retire_rows(
    hidden: Tensor,
    keep: Tensor,
    stay: Tensor | None,
    index: Tensor,
    bounds: Tensor,
    left: Tensor | None,
    trash: int,
    covered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Let rows leave, and the others close up; the reference of ``skim::retire``.

    Args:
        hidden: ``(1, C, D)``.
        keep: ``(C,)`` bool, or numbers of which those above one half stay; anything on filler.
        stay: ``(B * N + 1,)`` bool at input positions, who stays in any case, the last place False; ``None``: nobody
            does, and a sequence may lose all its rows.
        index: ``(C,)`` flat input position of each row, ``trash`` on filler.
        bounds: ``(B + 1,)`` int.
        left: ``(B * N + 1, D)``, to which the present states are written, at least of those that leave; what is written
            to the last place is no matter. ``None``: they are not.
        trash: the index of filler, ``B * N``.
        covered: no sequence can lose its last row; if not, its first one stays, where ``stay`` is given.

    Returns:
        New states ``(1, C, D)``, index, bounds, and from where each row came ``(C,)``; filler repeats the first row.
    """
    there = torch.arange(len(index), device=index.device) < bounds[-1]
    keep = keep.view(-1) if keep.dtype == torch.bool else keep.view(-1) > 0.5
    if stay is not None:
        keep = keep | stay.index_select(0, index)
        if not covered:
            survivors = F.pad((keep & there).cumsum(0), (1, 0))[bounds].diff()
            firsts = bounds[:-1].where((survivors == 0) & (bounds.diff() > 0), len(index)).long()
            keep = F.pad(keep, (0, 1)).index_fill(0, firsts, True)[:-1]
    if left is not None:
        left.index_copy_(0, index, hidden[0].to(left.dtype))
    rows, here, bounds = compact(keep & there, index, bounds, trash)
    return hidden.index_select(1, rows), here, bounds, rows


def rank_rows(values: Tensor, index: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Each row's place in its sequence by falling value, ties by position; the reference of ``skim::rank``.

    Args:
        values: ``(1, C)``, numbers except on filler.
        index: ``(C,)`` flat input position of each row, ``B * N`` on filler.
        bounds: ``(B + 1,)`` int32 where each sequence's rows begin and end.
        longest: N.

    Returns:
        ``(1, C)`` int64, 0 for the largest; anything on filler.
    """
    sequence = index // longest
    falling = values[0].argsort(descending=True, stable=True)
    order = falling[sequence[falling].argsort(stable=True)]  # sequence by sequence, falling in each
    place = torch.arange(len(index), device=index.device) - bounds[sequence]
    return torch.empty_like(order).scatter_(0, order, place)[None]


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    bounds: Tensor,
    looked_index: Tensor | None,
    looked_bounds: Tensor | None,
    longest: int,
    window: int | None,
    scaling: float | None,
    sums: bool,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence to itself only, by way of a rectangle; the reference of ``skim::attend``.

    Args:
        query: ``(1, H, C, d)``.
        key: ``(1, H, C', d)``, of the rows that are looked at.
        value: as ``key``.
        index: ``(C,)`` flat input position of each row, ``B * N`` on filler.
        bounds: ``(B + 1,)`` int where each sequence's rows begin and end.
        looked_index: as ``index``, of the rows that are looked at; ``None``: they are the rows that look.
        looked_bounds: as ``bounds``, likewise.
        longest: N, positions of the input: no sequence has more rows.
        window: input positions to either side that are looked at; ``None`` for all.
        scaling: factor on the scores; ``None`` is ``d ** -0.5``.
        sums: tell what each row received; only where rows look at themselves.
        bias: ``(1, C')`` added to the scores of each row that is looked at; ``None``: nothing.
        dropout: attention dropout.

    Returns:
        The context ``(1, H, C, d)`` and what each row received ``(1, C)`` float32, empty without ``sums``.
    """
    batch, (heads, size) = len(bounds) - 1, query.shape[1::2]

    def slots(index: Tensor, bounds: Tensor) -> Tensor:
        sequence = index // longest
        places = torch.arange(len(index), device=index.device) - bounds[sequence]
        return (sequence * longest + places).clamp_max(batch * longest)

    def spread(rows: Tensor, slots: Tensor) -> Tensor:
        places = rows.new_zeros(batch * longest + 1, heads, size).index_copy(0, slots, rows[0].transpose(0, 1))
        return places[:-1].view(batch, longest, heads, size).transpose(1, 2)

    def lined(values: Tensor, slots: Tensor) -> Tensor:
        places = values.new_zeros(batch * longest + 1).index_copy(0, slots, values)
        return places[:-1].view(batch, longest)

    apart = looked_index is not None and looked_bounds is not None
    own = slots(index, bounds)
    others = slots(looked_index, looked_bounds) if apart else own  # type: ignore[arg-type]
    line = torch.arange(longest, device=index.device)
    seen = (line < (looked_bounds if apart else bounds).diff()[:, None])[:, None, None, :]  # type: ignore[union-attr]
    taken = line < bounds.diff()[:, None]
    if window is not None:
        place = lined(index % longest, own)
        other = lined(looked_index % longest, others) if looked_index is not None and apart else place
        seen = seen & near(place, window, other)[:, None]
    seen = seen | ~seen.any(-1, keepdim=True)  # who sees nobody is filler: a softmax over nothing is NaN
    rectangle = spread(query, own), spread(key, others), spread(value, others)
    received = query.new_empty(0, dtype=torch.float32)
    bias = None if bias is None else lined(bias[0], others)
    if sums and not torch.is_grad_enabled():
        context, received = attention_with_sums(*rectangle, scaling, seen, taken.float(), bias)
        assert context is not None
    else:
        if sums:
            with torch.no_grad():
                _, received = attention_with_sums(*rectangle[:2], None, scaling, seen, taken.float(), bias)
        looks = added(seen, bias, query.dtype)
        context = F.scaled_dot_product_attention(*rectangle, attn_mask=looks, dropout_p=dropout, scale=scaling)
    if sums:
        received = F.pad(received.flatten(), (0, 1))[own][None]
    context = context.transpose(1, 2).reshape(batch * longest, heads, size)
    context = F.pad(context, (0, 0, 0, 0, 0, 1), value=FILLER)[own]
    return context.transpose(0, 1)[None], received


def retire_on_device(hidden: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`retire_rows`, in two launches; of the present states, only those that leave are written to ``left``."""
    return fused("retire", hidden, *given) or retire_rows(hidden, *given)


def rank_on_device(values: Tensor, index: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """As :func:`rank_rows`, by comparing each row with those of its sequence; 0 on filler."""
    found = fused("rank", values, bounds, longest)
    return rank_rows(values, index, bounds, longest) if found is None else found


def attend_on_device(query: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """As :func:`attend_rows`, by one kernel where there is one; the context of filler may be anything."""
    *rest, bias = given
    found = fused_attention(query, *rest) if bias is None else None  # no fused kernel adds to a key's scores
    if found is None:
        return attend_rows(query, *given)
    context, received = found
    return context, query.new_empty(0, dtype=torch.float32) if received is None else received


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself only; arguments and results are those of the CPU's."""
    rows, looked_at = mask.occupancy, mask.memory
    assert isinstance(rows, PackedOccupancy)
    assert looked_at is None or isinstance(looked_at, PackedOccupancy)
    others = (None, None) if looked_at is None else (looked_at.index, looked_at.cumulative)
    longest = rows.sequences.real.shape[1]
    asked = longest, mask.window, scaling, mask.wants_received, mask.bias
    given = query, key, value, rows.index, rows.cumulative, *others, *asked
    if torch.is_grad_enabled():
        context, received = attend_rows(*given, dropout=dropout)
    else:
        context, received = torch.ops.skim.attend(*given)
    return context, received if mask.wants_received else None


LIBRARY = torch.library.Library("skim", "DEF")
LIBRARY.define(
    "retire(Tensor hidden, Tensor keep, Tensor? stay, Tensor index, Tensor bounds, Tensor(a!)? left, int trash,"
    " bool covered) -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "attend(Tensor query, Tensor key, Tensor value, Tensor index, Tensor bounds, Tensor? looked_index,"
    " Tensor? looked_bounds, int longest, int? window, float? scaling, bool sums, Tensor? bias)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define("rank(Tensor values, Tensor index, Tensor bounds, int longest) -> Tensor")
for name, reference, on_device in (
    ("retire", retire_rows, retire_on_device),
    ("rank", rank_rows, rank_on_device),
    ("attend", attend_rows, attend_on_device),
):
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    LIBRARY.impl(name, on_device, "CUDA")
