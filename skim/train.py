"""Train a compressed encoder: ``python -m skim.train``, and ``train.py`` in a checkout.

$ python -m skim.train method=transkimmer task=sst2 backbone=minilm method.target=0.5
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from skim.cli import one_job, readable, run, swept
from skim.places import CONF
from skim.signals import heeded
from skim.started import command


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One job. Returns the monitored metric, for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from pytorch_lightning.utilities import rank_zero_only

    from skim.lightning.recipe import train
    from skim.report.table import print_run

    folder = Path(HydraConfig.get().runtime.output_dir)
    with readable(), heeded(), swept(folder), one_job():
        results = train(cfg, folder, command()).results
    if rank_zero_only.rank == 0:
        print_run(results.to_dict(), folder)
    return results.metrics.get(results.monitor)


def start() -> None:
    """The command: options are settled, then Hydra runs one job or a sweep."""
    run(main, CONF, "train")


if __name__ == "__main__":
    start()
