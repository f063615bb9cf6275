"""Captured steps: work of static shapes is recorded once and then done again by one launch.

A step is a function from trees of tensors to a tree of tensors that looks at the values of none of them. Steps are told
apart by all that the host sees of their arguments; one that comes again is captured, and from then on replayed: its
arguments are copied to where the graph reads them, and its result stands where the graph writes it. A step that follows
another always finds its arguments in place, so a forward of captured steps copies at its beginning only.

Nothing that a graph leaves behind is in the memory that graphs share: inputs and outputs are ordinary tensors, each
graph's own. So graphs may be replayed in any order, and an evicted one takes nothing with it. What shall outlive the
next forward is copied out by :meth:`Graphs.keep`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from skim.engine.recorders import NoReads, Recorder, Uncapturable, Work
from skim.engine.trees import Skeleton, take_apart
from skim.errors import first_line

log = logging.getLogger("skim")
Step: TypeAlias = Callable[..., Any]

AFTER = 2  # times that a step is seen before it is captured: shapes that come once are not worth it
MOST = 512  # graphs at a time
TRIALS = 3  # of a new graph: sums in another order may move a decision, but not every time
MEMORY = 4 * 2**30  # bytes of inputs and outputs at a time
SMALL = 2**14  # numbers of a tensor that is copied out side by side with others: who holds on to one keeps them all
SEEN = 8192  # steps whose coming is counted


@dataclass(eq=False)
class Graph:
    """One captured step.

    Attributes:
        replay: does it again.
        inputs: where it reads.
        result: what it returns, on tensors that it writes.
        own: tensors that it alone owns.
        used: number of the forward that used it last.
    """

    replay: Work
    inputs: list[Tensor]
    result: Any
    own: list[Tensor]
    used: int = 0
    ids: set[int] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """Memory of its own tensors."""
        return sum(x.nbytes for x in self.own)


class Graphs:
    """Captured steps of one model.

    Forwards take turns, from whatever thread: a graph has one set of inputs and outputs, and waiting for a forward
    that is a few launches long is cheaper than running beside it without graphs.

    Args:
        recorder: of the device.
        after: times that a step is seen before it is captured.
        most: graphs at a time; those that were not used for longest go.
        memory: bytes of inputs and outputs at a time; likewise.
        same: compares what a step gave with what its new graph gives.

    Attributes:
        off: why no step is captured any more; ``None``: they are.
        captures: graphs captured so far.
        replays: steps replayed so far.
        copies: tensors copied to where graphs read them so far.
    """

    def __init__(
        self,
        recorder: Recorder,
        after: int = AFTER,
        most: int = MOST,
        memory: int = MEMORY,
        same: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self.recorder, self.after, self.most, self.memory = recorder, after, most, memory
        self.same = same or alike
        self.off: str | None = None
        self.captures = self.replays = self.copies = 0
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose forward runs
        self._mark: Any = None  # behind the last forward
        self._number = 0  # of forwards
        self._grown = False  # since graphs were last held against the bounds
        self._graphs: dict[Hashable, Graph] = {}
        self._seen: dict[Hashable, int] = {}
        self._refused: set[Hashable] = set()
        self.said: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        """Forget what is known of the graphs that there are, to look at those that are left."""
        self._chained: dict[Hashable, Graph] = {}  # by step and arguments, which are results of other graphs
        self._kept: dict[Hashable, _Keeping] = {}
        self._views: dict[Hashable, Any] = {}  # of results, by what was asked and of which
        self._results = {number: graph for graph in self._graphs.values() for number in graph.ids}
        self._storages: dict[int, Graph] = {}  # by where they begin: whose they are
        for graph in self._graphs.values():
            self._own(graph)

    def _own(self, graph: Graph) -> None:
        """Note which memory is a graph's; what it reads of another that there is no longer has become its own."""
        for x in graph.inputs:
            self._storages.setdefault(address(x), graph)
        self._storages |= {address(x): graph for x in graph.own}

    @contextlib.contextmanager
    def forward(self, changed: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """One forward of steps; False where it must do without graphs, being called by another one.

        Args:
            changed: tells, once it is this forward's turn, whether what graphs rely on has changed.
        """
        if self._owner == threading.get_ident():
            yield False
            return
        with self._lock:
            self._owner = threading.get_ident()
            self._number += 1
            try:
                if self._mark is not None:
                    self.recorder.follow(self._mark)
                if changed():
                    self._clear()
                yield self.off is None
            finally:
                if self._graphs:
                    self._mark = self.recorder.mark()
                if self.off is not None:
                    self._drop(list(self._graphs))  # memory may be what was missing
                elif self._grown:
                    self._trim()
                self._owner = None

    def __call__(self, name: Hashable, step: Step, *trees: Any) -> Any:
        """Do a step within :meth:`forward`: by its graph if it has one.

        Args:
            name: which step, and everything that it reads beside its arguments and may change.
            step: a function of ``trees``; it may write to its arguments in place what it would write there again.
            trees: its arguments.

        Returns:
            What ``step`` returns; the next forward overwrites it.
        """
        known = (name, *map(id, trees))
        graph = self._chained.get(known)
        if graph is None:
            leaves, skeleton = take_apart(trees)
            key = (name, skeleton)
            graph = self._graphs.get(key)
            if graph is None and self._worth(key):
                graph = self._try(key, step, leaves, skeleton)
            copied = None if graph is None else self._bring(leaves, graph)
            if graph is None or copied is None:
                return step(*skeleton.build(leaves))  # a tree of its own: what it caches there is of this forward
            if not copied and all(id(tree) in self._results for tree in trees):
                self._chained[known] = graph
        graph.replay()
        graph.used = self._number
        self.replays += 1
        return graph.result

    def _bring(self, leaves: Sequence[Tensor], graph: Graph) -> int | None:
        """Copy arguments to where a graph reads them; returns how many were not there.

        ``None``: it reads where this forward's results are, which somebody may still want.
        """
        places = zip(graph.inputs, leaves, strict=True)
        pairs = [(there, x) for there, x in places if there.data_ptr() != x.data_ptr()]
        owners = (self._storages[address(there)] for there, _ in pairs)
        if any(owner is not graph and owner.used == self._number for owner in owners):
            return None
        if pairs:
            copy([there for there, _ in pairs], [x for _, x in pairs])
            self.copies += len(pairs)
        return len(pairs)

    def _worth(self, key: Hashable) -> bool:
        if self.off is not None or key in self._refused:
            return False
        count = self._seen.pop(key, 0) + 1
        if count >= self.after:
            return True
        self._seen[key] = count
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]
        return False

    def _try(self, key: Hashable, step: Step, leaves: list[Tensor], skeleton: Skeleton) -> Graph | None:
        """Capture a step; ``None``, with the reason in the log, if that cannot be."""
        try:
            # tensors made in inference mode could not be written to outside of it
            with torch.inference_mode(False), torch.no_grad():
                graph = self._capture(step, leaves, skeleton)
        except Uncapturable as error:  # seen before anything was recorded: others can be
            self._refused.add(key)
            self._say(f"{name_of(key)} runs without a graph: {error}")
            return None
        except Exception as error:  # whatever the device objects to, the step itself can do
            self.stop(f"{name_of(key)} could not be captured: {type(error).__name__}: {first_line(error)}")
            return None
        self.captures += 1
        graph.ids = {id(graph.result)}
        if isinstance(graph.result, tuple):
            graph.ids |= {id(part) for part in graph.result}
        self._graphs[key], self._grown = graph, True
        self._results |= dict.fromkeys(graph.ids, graph)
        self._own(graph)
        return graph

    def _capture(self, step: Step, leaves: list[Tensor], skeleton: Skeleton) -> Graph:
        own: dict[int, Tensor] = {}
        inputs = [x if address(x) in self._storages else own.setdefault(k, x.clone()) for k, x in enumerate(leaves)]
        stays = {address(x) for x in inputs}  # what is written there, or never changes, need not be copied
        found: Any = None

        def rehearse() -> None:
            nonlocal found
            with NoReads():
                found = step(*skeleton.build(inputs))

        self.recorder.rehearse(rehearse)
        made, shape = take_apart(found)
        new = [k for k, x in enumerate(made) if address(x) not in stays]
        outputs = list(made)
        for k in new:
            outputs[k] = torch.empty_like(made[k], memory_format=torch.contiguous_format)

        def work() -> None:
            again, _ = take_apart(step(*skeleton.build(inputs)))
            copy([outputs[k] for k in new], [again[k] for k in new])

        self.recorder.rehearse(work)  # with its copies: a kernel that is loaded at its first launch is not capturable
        replay = self.recorder.record(work)
        result = shape.build(outputs)
        for _ in range(TRIALS):
            for k in new:  # so that a graph that writes nothing is seen
                outputs[k].fill_(torch.nan if outputs[k].is_floating_point() else 0)
            replay()
            if self.same(found, shape.build(outputs)):
                return Graph(replay, inputs, result, [*own.values(), *(outputs[k] for k in new)])
            self.recorder.rehearse(rehearse)
        raise Mismatch("its results differ from those without a graph")

    def view(self, name: Hashable, function: Step, tree: Any) -> Any:
        """Apply a function that only slices a tree; of a graph's result it is applied once, and known afterwards."""
        known = ("view", name, id(tree))
        seen = self._views.get(known)
        if seen is None:
            seen = function(tree)
            graph = self._results.get(id(tree))
            if graph is None:
                return seen
            self._views[known] = seen
            self._results[id(seen)] = graph  # and not among its own: forgotten with the view, whose id another may get
        return seen

    def keep(self, *trees: Any) -> Callable[[], Any]:
        """Copy what graphs will overwrite; what that returns puts the trees together on the copies, as one tuple."""
        known = tuple(map(id, trees))
        keeping = self._kept.get(known)
        if keeping is None:
            leaves, skeleton = take_apart(trees)
            keeping = _Keeping(leaves, skeleton, self._storages)
            if all(number in self._results for number in known):
                self._kept[known] = keeping
                if len(self._kept) > self.most:  # there are as many as ways through the graphs
                    del self._kept[next(iter(self._kept))]
        return keeping.copied()

    def stop(self, reason: str) -> None:
        """Capture and replay nothing any more, and say why."""
        self.off = reason
        self._say(f"graphs are off: {reason}")

    def clear(self) -> None:
        """Drop all graphs, because what they have recorded is no longer what would be done."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._drop(list(self._graphs))
        self._seen.clear()
        self._refused.clear()

    def _trim(self) -> None:
        """Drop graphs above the bounds, those first that were not used for longest."""
        self._grown = False
        spent, number, dropped = 0, 0, []
        for key, graph in sorted(self._graphs.items(), key=lambda item: -item[1].used):
            spent, number = spent + graph.bytes, number + 1
            if number > self.most or spent > self.memory:
                dropped.append(key)
                if graph.used == self._number:  # one forward alone is above them: to capture it again would never end
                    self._refused.add(key)
        self._drop(dropped)

    def _drop(self, keys: list[Hashable]) -> None:
        if not keys:
            return
        self.recorder.drain()  # none of them may be running
        for key in keys:
            del self._graphs[key]
        self._forget()

    def _say(self, what: str) -> None:
        if what not in self.said:
            self.said.add(what)
            log.warning("%s", what)

    def buffers(self) -> list[Tensor]:
        """All tensors that graphs own."""
        return [x for graph in self._graphs.values() for x in graph.own]

    def __len__(self) -> int:
        return len(self._graphs)


class Mismatch(Exception):
    """A graph that does not give what its step gives."""


class _Keeping:
    """How to copy some trees out of the graphs' memory, in one launch for each dtype."""

    def __init__(self, leaves: list[Tensor], skeleton: Skeleton, storages: Container[int]) -> None:
        self.leaves, self.skeleton = leaves, skeleton
        moving = [k for k, x in enumerate(leaves) if address(x) in storages]
        self.groups: list[tuple[list[int], list[Tensor], list[int]]] = []
        for dtype in dict.fromkeys(leaves[k].dtype for k in moving):
            some = [k for k in moving if leaves[k].dtype == dtype]
            flat = [leaves[k].reshape(-1) if leaves[k].is_contiguous() else leaves[k] for k in some]
            self.groups.append((some, flat, [x.numel() for x in flat]))

    def copied(self) -> Callable[[], Any]:
        groups = []
        for some, flat, sizes in self.groups:
            small = [size if size <= SMALL else 0 for size in sizes]
            shared = flat[0].new_empty(sum(small)).split(small)
            room = [x if n == size else x.new_empty(size) for x, n, size in zip(shared, small, sizes, strict=True)]
            there = [x.view(y.shape) if y.dim() != 1 else x for x, y in zip(room, flat, strict=True)]
            torch._foreach_copy_(there, flat)
            groups.append((some, there))

        def build() -> Any:
            leaves = list(self.leaves)
            for some, there in groups:
                for k, x in zip(some, there, strict=True):
                    leaves[k] = x.view(leaves[k].shape)
            return self.skeleton.build(leaves)

        return build


def copy(there: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy tensors to their places, in one launch for each dtype."""
    for dtype in dict.fromkeys(x.dtype for x in tensors):
        some = [k for k, x in enumerate(tensors) if x.dtype == dtype]
        torch._foreach_copy_([there[k] for k in some], [tensors[k] for k in some])


def address(tensor: Tensor) -> int:
    """Address at which a tensor's storage begins."""
    return tensor.untyped_storage().data_ptr()


def alike(one: Any, other: Any) -> bool:
    """Tell whether all tensors of two trees are the same, but for the order of sums."""
    pairs = zip(take_apart(one)[0], take_apart(other)[0], strict=True)
    return all(close(a, b) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs)


def close(one: Tensor, other: Tensor) -> bool:
    """Tell whether floating tensors are the same, but for the order of sums."""
    wide = max(torch.finfo(one.dtype).eps * 16, 2e-5)
    return torch.allclose(one.float(), other.float(), rtol=wide, atol=wide, equal_nan=True)


def name_of(key: Any) -> str:
    """A step's name for the log."""
    name = key[0]
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
