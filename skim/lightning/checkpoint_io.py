"""Writing checkpoints so that a kill, or a full disk, in the middle of it costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from skim.files import replacing, seal
from skim.resume import LAST, PREVIOUS


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint with its checksum; what is overwritten of ``last.ckpt`` lives on as ``previous.ckpt``.

    Raises:
        SkimError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    with replacing(path, before=path.with_name(PREVIOUS.name) if path.name == LAST.name else None) as part:
        with part.open("wb") as file:  # of a file of Python's, torch hands on what the system says
            torch.save(checkpoint, file)
        seal(part)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's files of checkpoints, of which nobody sees half, by :func:`write_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):  # not on a disk
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, path)
