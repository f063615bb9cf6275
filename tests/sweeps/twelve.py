"""A command whose jobs compute nothing and write results: for tests of what is around jobs.

$ PYTHONPATH=. python tests/sweeps/twelve.py <folder with what jobs wait for> -m ...
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from skim import cli, signals
from skim.errors import SkimError
from skim.places import CONF
from skim.started import command
from tests.report.results import results

STATE = Path(sys.argv[1])


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    name = f"{HydraConfig.get().runtime.choices.method} {cfg.method.target} {cfg.seed}"
    print(f"computing {name}")
    if name == "topk 0.4 1" and not (STATE / "mended").exists():
        raise SkimError("out of luck\nTry again.")
    while name == "ltp 0.5 2" and not (STATE / "go").exists():  # until the process is killed
        with signals.heeded():
            heard = signals.HEARD  # of this process: joblib copies what stands here in the main module
            heard.waits = True  # as in a step of training
            (STATE / "trains").touch()
            while heard.number is None and not (STATE / "go").exists():
                time.sleep(0.05)
            (STATE / "saved").write_text(signal.Signals(heard.number).name if heard.number else "")
            heard.answer()
    run = results(
        task="builtin",
        backbone="tiny",
        method=HydraConfig.get().runtime.choices.method,
        seed=cfg.seed,
        target=cfg.method.target,
        relative_flops=cfg.method.target,
        command=command(),
        config=OmegaConf.to_container(cfg, resolve=True),
    )
    with (STATE / "computed.txt").open("a") as file:
        file.write(f"{name}\n")
    (folder / "results.json").write_text(json.dumps(run))


if __name__ == "__main__":
    del sys.argv[1]
    cli.check_jobs = lambda *_: None  # imports torch
    cli.run(main, CONF, "train")
