"""Recorders of a graph's work: CUDA, and a tape that stands in for it where there is no GPU.

Both take work on tensors that stay where they are, and give back a function that does it again, on whatever these
tensors hold then, with every decision that the host took while it was recorded. Neither can record work that reads the
device, so :class:`NoReads` looks for that first: an invalidated capture is no state to leave a process in.
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from skim.engine.reads import read_of

Work: TypeAlias = Callable[[], None]


class Uncapturable(Exception):
    """Work that cannot be recorded, and why."""


class NoReads(TorchDispatchMode):
    """Raises :class:`Uncapturable` where work reads the device, copies between it and the host, or draws numbers."""

    _should_skip_dynamo = staticmethod(lambda: False)  # else torch's compiler is imported, for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # composed operations, which come whole in inference mode, hide the reads among their parts
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func._schema.name.partition("::")[2]
        kind, _ = read_of(name, args, kwargs)
        if kind is not None:
            raise Uncapturable(f"{kind} ({name}) at {place()}")
        # fused attention has the tag for a dropout that evaluation has not
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name:
            raise Uncapturable(f"{name} draws random numbers at {place()}")
        return func(*args, **kwargs)


def place() -> str:
    """File and line of the innermost call outside torch, for the log."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and not frame.filename.endswith("recorders.py"):
            return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"
    return "an unknown place"


class Recorder(Protocol):
    """All that :class:`~skim.engine.graphs.Graphs` needs of a device."""

    def rehearse(self, work: Work) -> None:
        """Run work as it will be recorded, so that nothing in it happens for the first time then."""

    def record(self, work: Work) -> Work:
        """Record work and return what does it again; an exception leaves the device usable."""

    def mark(self) -> Any:
        """A mark behind all work given to the device so far."""

    def follow(self, mark: Any) -> None:
        """Let the calling thread's next work come after a mark."""

    def drain(self) -> None:
        """Wait until all work is done."""


class Tape:
    """Recorder of a device without graphs: what was dispatched is dispatched again, with the same host values."""

    def rehearse(self, work: Work) -> None:
        work()

    def record(self, work: Work) -> Work:
        with _Recording() as recording:
            work()
        return recording.replay

    def mark(self) -> Any:
        return None

    def follow(self, mark: Any) -> None:
        pass

    def drain(self) -> None:
        pass


class _Recording(TorchDispatchMode):
    """Every operation with its arguments; their tensors are found again by identity, and so are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[int]]] = []
        self.kept: list[Any] = []

    _should_skip_dynamo = staticmethod(lambda: False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "prim":
            self.steps.append((func, args, kwargs, [id(x) for x in tree_leaves(result)]))
            self.kept.append(result)
        return result

    def replay(self) -> None:
        made: dict[int, Tensor] = {}

        def now(tensor: Tensor) -> Tensor:
            return made.get(id(tensor), tensor)

        for func, args, kwargs, numbers in self.steps:
            args, kwargs = tree_map_only(Tensor, now, (args, kwargs))
            result = func(*args, **kwargs)
            for number, tensor in zip(numbers, tree_leaves(result), strict=True):
                if isinstance(tensor, Tensor):
                    made[number] = tensor


class CudaGraphs:
    """Recorder that captures CUDA graphs: one side stream and one pool of memory for all of them.

    Graphs that share a pool may overwrite each other's memory, so nothing that a graph leaves behind may live in it;
    :class:`~skim.engine.graphs.Graphs` keeps inputs and outputs outside.

    Args:
        device: of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()
            self.pool = torch.cuda.graph_pool_handle()
        self.living: weakref.WeakSet[Any] = weakref.WeakSet()  # graphs in the pool

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the side stream, after all that the current one has to do, which then waits for it."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    yield
            finally:
                current.wait_stream(self.stream)

    def rehearse(self, work: Work) -> None:
        """Kernels are compiled and loaded, libraries take their workspaces: on the stream of the capture."""
        with self._aside():
            work()

    def record(self, work: Work) -> Work:
        self.drain()
        if not self.living:  # torch refuses a pool whose last graph is gone
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                self._abandon(graph)
                raise
            try:
                graph.capture_end()
            except BaseException:
                self._recover()
                raise
        self.living.add(graph)
        return graph.replay

    def _abandon(self, graph: Any) -> None:
        """End a capture whose work has failed."""
        with contextlib.suppress(Exception):
            graph.capture_end()
            return
        self._recover()

    def _recover(self) -> None:
        """Undo what a capture leaves behind that could not be ended: its pool, and a generator that waits for its end.

        torch ends neither then, so a later dropout would be refused; a capture of next to nothing, ended well, does it.
        """
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(self.device.index or 0, self.pool)
        self.living.clear()  # those that there are keep theirs
        with contextlib.suppress(Exception):
            torch.cuda.synchronize()
        with contextlib.suppress(Exception), torch.cuda.stream(torch.cuda.Stream()):
            number = torch.zeros(1, device=self.device)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            number.add_(1)
            graph.capture_end()

    def mark(self) -> Any:
        event = torch.cuda.Event()
        event.record()
        return event

    def follow(self, mark: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def drain(self) -> None:
        torch.cuda.synchronize(self.device)


def recorder_for(device: torch.device) -> Recorder:
    """The recorder of a device."""
    return CudaGraphs(device) if device.type == "cuda" else Tape()
