"""Look at a finished run: ``python -m skim.evaluate``, and ``evaluate.py`` in a checkout.

$ python -m skim.evaluate ckpt=runs/sst2/transkimmer/minilm/<stamp> what=metrics
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from skim.cli import readable, run
from skim.places import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """One look, of the kind that ``what`` names."""
    from skim.lightning.looks import evaluate

    with readable():
        evaluate(cfg)


def start() -> None:
    """The command: options are settled, then Hydra runs one look or several."""
    run(main, CONF, "evaluate")


if __name__ == "__main__":
    start()
