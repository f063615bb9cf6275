"""Look at a finished run again: deterministic, packed.

$ python evaluate.py ckpt=runs/sst2/transkimmer/minilm/<stamp> what=metrics
$ python evaluate.py ckpt=... what=predict
$ python evaluate.py ckpt=... what=tokens text="a gripping , funny film"
$ python evaluate.py ckpt=... what=latency
$ python evaluate.py ckpt=... what=throughput
$ python evaluate.py ckpt=... what=curve targets=[0.3,0.5,0.7]
$ python evaluate.py ckpt=... what=curve shifts=[-0.7,0,0.7] timed=true
$ python evaluate.py ckpt=... what=depth
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from skim.cli import readable, run


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One look, of the kind that ``what`` names."""
    from skim.lightning.looks import evaluate

    with readable():
        evaluate(cfg)


if __name__ == "__main__":
    run(main, Path(__file__).parent / "conf", "evaluate")
