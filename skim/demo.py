"""The whole of skim in a minute: ``make demo``, or ``python -m skim.demo``.

Trains the dense baseline and Transkimmer on the built-in task with a tiny backbone from random weights, and shows what
came of it: accuracy, keep ratio, relative FLOPs, measured speedup, and a sentence shaded by where its tokens retired.
"""

from __future__ import annotations

from pathlib import Path

from skim.cli import run
from skim.places import CONF

DENSE, SKIMMED = Path("runs") / "demo" / "dense", Path("runs") / "demo" / "transkimmer"
COMMANDS = {
    DENSE: ["experiment=demo", "method=dense", "hardware.threads=1"],
    SKIMMED: [
        "experiment=demo",
        "method=transkimmer",
        "method.target=0.4",
        "method.bottleneck=32",
        "train.method_lr=3e-3",
        f"init_from={DENSE}",
        "hardware.threads=1",
    ],
}


def main() -> None:
    """Two trainings, a table, a sentence."""
    from hydra import compose, initialize_config_dir
    from rich.console import Console

    from skim.lightning.recipe import train
    from skim.report.compared import runs_table
    from skim.report.heatmap import show, write_html

    console = Console()
    runs = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for folder, overrides in COMMANDS.items():
            command = f"python train.py {' '.join(overrides)} hydra.run.dir={folder}"
            console.print(f"\n[bold]$ {command}[/bold]", highlight=False, soft_wrap=True)
            runs.append(train(compose("train", overrides), folder, command))
    console.print()
    console.print(runs_table([run.results.to_dict() for run in runs]))
    console.print()
    show(runs[-1].skimmed[:3], console)
    write_html(SKIMMED / "tokens.html", runs[-1].skimmed)
    console.print(
        f"\nThe same as a page: {SKIMMED / 'tokens.html'}; the whole report: {SKIMMED / 'report.html'}", highlight=False
    )


if __name__ == "__main__":
    run(main, CONF)
