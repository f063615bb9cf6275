"""Train a compressed encoder.

$ python train.py method=transkimmer task=sst2 backbone=minilm method.target=0.5
$ python train.py -m method=dense,transkimmer seed=1,2,3          # a sweep
$ python train.py --help                                          # groups and options
"""

from __future__ import annotations

import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

from skim.cli import command, one_job, readable, run, swept

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One job. Returns the monitored metric, for sweepers."""
    from hydra.core.hydra_config import HydraConfig

    from skim.lightning.recipe import train
    from skim.report.table import print_run

    folder = Path(HydraConfig.get().runtime.output_dir)
    with readable(), swept(folder), one_job(Path(__file__).resolve()):
        results = train(cfg, folder, command()).results
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print_run(results.to_dict(), folder)
    return results.metrics.get(results.monitor)


if __name__ == "__main__":
    run(main, CONF, "train")
