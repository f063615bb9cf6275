"""Loggers whose server is gone in the middle of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest

from skim.lightning.loggers import lasting
from skim.lightning.recipe import train
from tests.runs import small


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_server_that_is_gone_ends_nothing_and_is_warned_of_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(name)
    calls: list[str] = []
    if name == "mlflow":
        from mlflow.tracking import MlflowClient as Client

        whole = Client.log_batch
    else:
        from wandb.sdk.wandb_run import Run as Client  # type: ignore[assignment]

        whole = Client.log

    def unreachable(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (kwargs.get("metrics") or name == "wandb"):
            return whole(self, *args, **kwargs)
        calls.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Client, "log_batch" if name == "mlflow" else "log", unreachable)
    run = small(
        *(f"logger={name}", "method=dense", "train.max_steps=4", "callbacks.log_every=1", "task.max_train_samples=96"),
        *(f"paths.runs={tmp_path}", "callbacks.sentences=0"),
    )
    assert train(run, tmp_path / "run", "").results.status == "done"
    assert capfd.readouterr().err.count("does not answer: no route to host.\nThe run goes on without") == 1
    assert len(calls) <= 2, "it is left alone for some minutes, and asked once more at the end"
    assert pandas.read_csv(tmp_path / "run" / "metrics.csv")["train/loss"].count() == 4


def test_it_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server(lasting.Lasting):
        name = version = "x"

    now, sent = [0.0], []
    monkeypatch.setattr(lasting.time, "monotonic", lambda: now[0])

    def fails() -> None:
        sent.append(now[0])
        raise OSError("gone")

    server = Server()
    for now[0] in (0.0, 10.0, lasting.PAUSE, lasting.PAUSE + 1):
        server.sent(fails)
    assert sent == [0.0, lasting.PAUSE]
    assert server.lost == 4
