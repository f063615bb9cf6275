"""``what=predict``: files of predictions."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.text import Text

from skim.compression import accepted
from skim.lightning.looks.loaded import load, trainer_of


def look(cfg: DictConfig, console: Console) -> None:
    """Predict the test split, or ``split``; writes files beside the run's ``results.json``."""
    loaded = load(cfg)
    task, model = loaded.parts.task, loaded.parts.model
    loader = task.test_dataloader()
    found: dict[int, dict[str, Any]] = {}
    with torch.inference_mode(), trainer_of(loaded, console).precision_plugin.forward_context():
        batches = track(loader, "predict", console=console, disable=not console.is_terminal, transient=True)
        for batch in loaded.seen(batches):
            said = task.predictions(model(**accepted(model, batch)), batch)
            found.update(zip(batch["row"].tolist(), said, strict=True))
    for file in task.write_predictions([found[row] for row in sorted(found)], loaded.folder):
        console.print(Text(str(file)), soft_wrap=True)
