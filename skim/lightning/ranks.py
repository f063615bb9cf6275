"""Processes of one run on several devices: when one of them ends, the others do not wait for it for ever.

Lightning's launcher starts the other ranks of a machine as processes of its own and kills everything, without a word,
when one of them ends. Here the run first gets the time to fail by itself, which is written down like any other failure;
and a rank whose launcher is gone ends as well. Processes that torchrun or SLURM has started are looked after by those.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning.strategies.launchers.subprocess_script as launcher
from torch.distributed import DistError

from skim.errors import SkimError
from skim.signals import rank as own_rank

LOOK = 1.0  # seconds between two looks
GRACE = 20.0  # seconds in which a run whose rank has ended may fail by itself; who hangs in a collective does not


class Watch(threading.Thread):
    """Looks after the ranks that this process has started.

    Args:
        processes: those of rank 1, 2, ...
        conclude: told what has happened before everything is ended by force.
        end: ends this process by force, with an exit code.
    """

    def __init__(
        self,
        processes: Sequence[subprocess.Popen[Any]],
        conclude: Callable[[str], object],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(daemon=True, name="ranks")
        self.processes, self.conclude, self.end = processes, conclude, end
        self.over = threading.Event()  # the run has ended by itself

    def run(self) -> None:
        while not self.over.wait(LOOK):
            said = self.dead()
            if said and not self.over.wait(GRACE):
                self.conclude(said)
                print(f"error: {said}", file=sys.stderr, flush=True)
                self.stop()
                self.end(1)
                return

    def dead(self, patience: float = 0.0) -> str | None:
        """Say which rank has ended before the run has, and how; ``None`` if none has within some seconds."""
        until = time.monotonic() + patience
        while (said := self._dead()) is None and time.monotonic() < until:
            self.over.wait(LOOK)
        return said

    def _dead(self) -> str | None:
        for rank, process in enumerate(self.processes, 1):
            if code := process.poll():
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                return f"rank {rank} has ended {how}, and the run with it. Its own error, if it had one, stands above."
        return None

    def stop(self) -> None:
        """End all ranks that are left."""
        self.over.set()
        for process in self.processes:
            process.kill()


@contextmanager
def watched(conclude: Callable[[str], object]) -> Iterator[Callable[[str], None]]:
    """Watch over the ranks of a run, from both sides; yields what gives the run up, for a rank that hangs.

    Args:
        conclude: told what has happened, if the run has to be ended by force.

    Raises:
        SkimError: a rank has ended, in place of what came of that here.
    """
    watches: list[Watch] = []

    def watch(child_processes: list[subprocess.Popen[Any]]) -> None:
        watches.append(Watch(child_processes, conclude))
        watches[-1].start()

    def give_up(said: str) -> None:
        if not (number := own_rank()):
            conclude(said)
        print(f"error{f' on rank {number}' if number else ''}: {said}", file=sys.stderr, flush=True)
        for one in watches:
            one.stop()
        os._exit(1)

    before, launcher._launch_process_observer = launcher._launch_process_observer, watch
    over = threading.Event()
    if int(os.environ.get("LOCAL_RANK", 0)):
        threading.Thread(target=orphaned, args=(os.getppid(), over), daemon=True).start()
    try:
        yield give_up
    except Exception as error:
        # who hangs up has not ended yet
        said = next(filter(None, (one.dead(GRACE) for one in watches)), None) if hung_up(error) else None
        if said is None:
            raise
        raise SkimError(said) from error
    finally:
        launcher._launch_process_observer = before
        over.set()
        failed = sys.exc_info()[0] is not None
        for one in watches:
            one.over.set()
            if failed:  # in a sweep this process goes on
                one.stop()


def hung_up(error: Exception) -> bool:
    """Tell whether an error is of a connection to another rank."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def orphaned(parent: int, over: threading.Event, end: Callable[[int], object] = os._exit) -> None:
    """End this process if the one that has started it is gone before the run is over.

    Args:
        parent: its id.
        over: set when the run is.
        end: ends the process by force, with an exit code.
    """
    while not over.wait(LOOK):
        if os.getppid() != parent:
            print(f"error on rank {os.environ.get('LOCAL_RANK')}: rank 0 is gone", file=sys.stderr, flush=True)
            end(1)
            return
