"""The two operations of static rows by the device's kernels, held against the plain ones and timed beside them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from skim.benchmark.gpu.laws import law
from skim.benchmark.gpu.rows import Row
from skim.benchmark.timing import synchronize
from skim.engine.kernels.static import attend_rows, retire_rows
from skim.engine.static import capacity

NEAR = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}  # of the largest value; TF32 in a kernel's dot


def kernels(device: torch.device, quick: bool) -> Iterator[Row]:
    """A row for each operation and dtype."""
    shape = (4, 32, 2, 16) if quick else (32, 128, 12, 64)
    for dtype in (torch.float32,) if quick else (torch.bfloat16, torch.float32):
        rows = Rows(device, dtype, *shape)
        for sums in (False, True):
            name = f"attend{' with sums' if sums else ''}, {str(dtype)[6:]}"
            yield from pair(name, lambda r=rows, s=sums: r.attend(s), quick)
        yield from pair(f"retire, {str(dtype)[6:]}", rows.retire, quick)


class Rows:
    """Ragged static rows with random states.

    Args:
        device: theirs.
        dtype: of states.
        batch: B.
        length: N.
        heads: H.
        size: d.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, batch: int, length: int, heads: int, size: int
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, length + 1, (batch,), generator=draw)
        self.alive, self.length, self.trash = int(lengths.sum()), length, batch * length
        self.rows = capacity(self.alive)
        index = torch.cat([torch.arange(n) + length * b for b, n in enumerate(lengths.tolist())])
        filler = torch.full((self.rows - self.alive,), self.trash)
        self.index = torch.cat([index, filler]).to(device)
        self.bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
        shape = (1, heads, self.rows, size)
        self.states = [torch.randn(shape, generator=draw).to(device, dtype) for _ in range(3)]
        self.hidden = torch.randn((1, self.rows, heads * size), generator=draw).to(device, dtype)
        self.keep = (torch.rand(self.rows, generator=draw) < 0.5).to(device)
        self.stay = torch.zeros(self.trash + 1, dtype=torch.bool, device=device)

    def attend(self, sums: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Plain and the device's; of the rows alive."""
        asked = self.length, None, None, sums, None
        given: tuple[Any, ...] = (*self.states, self.index, self.bounds, None, None, *asked)

        def cut(context: Any, received: Any) -> list[Any]:
            return [context[:, :, : self.alive], received[:, : self.alive]] if sums else [context[:, :, : self.alive]]

        return lambda: cut(*attend_rows(*given)), lambda: cut(*torch.ops.skim.attend(*given))

    def retire(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Likewise, with the buffer of last states."""
        lefts = [self.hidden.new_zeros(self.trash + 1, self.hidden.shape[-1]) for _ in range(2)]

        def by(operation: Any, left: Any) -> list[Any]:
            given = (self.hidden, self.keep, self.stay, self.index, self.bounds, left, self.trash, False)
            hidden, index, bounds, rows = operation(*given)
            return [hidden, index, bounds, rows, left[:-1]]

        return lambda: by(retire_rows, lefts[0]), lambda: by(torch.ops.skim.retire, lefts[1])


def pair(name: str, both: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]], quick: bool) -> Iterator[Row]:
    """One operation: a row that says whether the results agree, with both times."""
    with torch.inference_mode():
        try:
            plain, own = both()
            verdict = law(name, lambda: apart(own(), plain())).verdict
            times = [median(one, 3 if quick else 20) for one in (plain, own)]
            note = f"plain {times[0]:.3f} ms"
            yield Row("kernels", name, verdict, ms=times[1], bound=note)
        except Exception as error:
            yield Row("kernels", name, f"{type(error).__name__}: {error}"[:150])


def apart(found: list[Any], wanted: list[Any]) -> str:
    """Name what differs; empty if nothing does."""
    for k, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if not other.is_floating_point():
            if not torch.equal(one, other):
                return f"result {k} differs"
            continue
        worst = (one.float() - other.float()).abs().max() / other.float().abs().max()
        if not worst <= NEAR[other.dtype if k == 0 else torch.bfloat16]:
            return f"result {k} differs by {worst:.1e} of the largest"
    return ""


def median(work: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of a call, with the wait for it."""
    spent = []
    for _ in range(repeats + 3):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        spent.append(time.perf_counter() - started)
    return 1000 * statistics.median(spent[3:])
