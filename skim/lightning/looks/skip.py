"""``what=skip``: layers left out of a dense model, without training again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from skim.compression import standing_in, walk_of
from skim.errors import SkimError
from skim.files import write_json
from skim.lightning.callbacks.progress import counted
from skim.lightning.landing import evaluated
from skim.lightning.looks.loaded import Loaded, finished, load, trainer_of
from skim.lightning.module import SkimModule
from skim.methods.layer_drop import LayerDrop
from skim.report.skip import skip_table, write_skip

Case = tuple[str, tuple[int, ...]]  # what is left out, and the layers that run


def look(cfg: DictConfig, console: Console) -> None:
    """Layers left out, to see what breaks: each alone, all behind the first k, all before the last k.

    Writes into ``results.json``, and a picture, ``skip.png`` and ``skip.svg``.

    Raises:
        SkimError: the run's model is not dense, or has no layer that could go.
    """
    loaded = load(cfg)
    results = finished(loaded.folder)
    walk = walk_of(loaded.parts.model)
    if walk.method.name != "dense":
        raise SkimError(
            f"what=skip leaves layers out of a dense model, and this run has method={walk.method.name}.\n"
            "Name a dense run: ckpt=<the run that this one started from>."
        )
    if walk.backbone.shortens or len(walk.costs) == 1:
        why = "shortens its sequences between them" if walk.backbone.shortens else "has one layer"
        raise SkimError(f"what=skip cannot leave layers of {type(walk.base).__name__} out: it {why}.")
    results["skip"] = skipped(loaded, console)
    write_json(loaded.folder / "results.json", results)
    console.print(skip_table(results["skip"]))
    for file in (loaded.folder / "results.json", *write_skip(results["skip"], loaded.folder)):
        console.print(Text(str(file)), soft_wrap=True)


def cases(layers: int) -> Iterator[Case]:
    """Name the sets of layers that are looked at; some come by two names."""
    everyone = tuple(range(layers))
    yield "all", everyone
    for i in everyone:
        yield f"without {i}", (*everyone[:i], *everyone[i + 1 :])
    for k in range(1, layers):
        yield f"first {k}", everyone[:k]
    for k in range(1, layers):
        yield f"last {k}", everyone[-k:]


def skipped(loaded: Loaded, console: Console) -> dict[str, Any]:
    """The task's metrics and relative FLOPs of every case; each set of layers is evaluated once."""
    model, task = loaded.parts.model, loaded.parts.task
    walk, device = walk_of(model), next(model.parameters()).device
    looked_at = list(cases(len(walk.costs)))
    trainer = trainer_of(loaded, console, bar=False)
    module = SkimModule(model, task, companion=loaded.parts.companion)
    scores: dict[tuple[int, ...], dict[str, float]] = {}
    spec = walk.method.spec
    with counted(console, "layers left out", len({kept for _, kept in looked_at})) as count:
        for kept in dict.fromkeys(kept for _, kept in looked_at):
            method = LayerDrop(kept)
            method.build_for(spec)
            with standing_in(model, method):
                values = evaluated(trainer, module, datamodule=task)
            model.to(device)  # Lightning takes it off the device after each of its loops
            scores[kept] = {"score": values[f"val/{task.monitor}"], "relative_flops": values["val/relative_flops"]}
            count()
    found = [{"case": name, "layers": list(kept), **scores[kept]} for name, kept in looked_at]
    return {"metric": task.monitor, "layers": len(walk.costs), "cases": found}
