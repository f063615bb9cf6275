"""Loggers that outlive their server: a run does not end because nobody takes down its numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger

from skim.errors import SkimError, first_line

PAUSE = 300.0  # seconds until a server that did not answer is asked again


class Lasting(Logger):
    """Base of a logger whose server may be gone in the middle of a training: it warns once, and the run goes on.

    What the server does not take is lost there, and stands in ``metrics.csv`` all the same. One that cannot be used
    when the run begins is an error of its own, see ``experiment``.
    """

    lost = 0  # calls that the server did not take
    until = 0.0  # when it is asked again, by time.monotonic

    def sent(self, send: Callable[[], object]) -> None:
        """Call a function that speaks with the server, if that has not failed just now.

        Raises:
            SkimError: what a user can mend.
        """
        if self.lost and time.monotonic() < self.until:
            self.lost += 1
            return
        try:
            send()
        except SkimError:
            raise
        except Exception as error:
            if not self.lost:
                print(
                    f"{type(self).__name__} does not answer: {first_line(error)}.\nThe run goes on without; it is "
                    f"asked again every {PAUSE / 60:g} minutes, and metrics.csv has all numbers.",
                    file=sys.stderr,
                )
            self.lost += 1
            self.until = time.monotonic() + PAUSE

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.sent(lambda: super(Lasting, self).log_metrics(metrics, step))  # type: ignore[safe-super,arg-type]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.sent(lambda: super(Lasting, self).log_hyperparams(params, *args, **kwargs))  # type: ignore[safe-super]

    def finalize(self, status: str) -> None:
        self.sent(lambda: super(Lasting, self).finalize(status))
