"""``what=choose``: the cheapest setting of many runs that is good enough, exported with its card."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from skim.checkpoint import DESCRIBED
from skim.errors import SkimError
from skim.files import accepted
from skim.hub.push import check_repository, push
from skim.lightning.build import COMPANION
from skim.loading import from_pretrained
from skim.report.card import escaped, write_card
from skim.report.choosing import Bounds, Candidate, asked, choose, compared, table, warnings_of
from skim.report.found import collect
from skim.report.runs import FOLDER, Results, Setting, aggregate

COMMAND = "python evaluate.py what=choose"
EXPORT = "chosen"  # folder in that of the runs


def look(cfg: DictConfig, console: Console) -> None:
    """Choose among runs, print the candidates, and export the best seed; with ``push_to_hub``, to the hub as well.

    Raises:
        SkimError: no bound, no runs, nobody within the bounds, or a folder that holds something else.
    """
    folders = [Path(str(folder)) for folder in ([cfg.runs] if isinstance(cfg.runs, str | int) else cfg.runs)]
    bounds = Bounds(cfg.max_drop, cfg.max_flops, cfg.max_time, cfg.batch_size)
    if bounds.drop is None and bounds.flops is None and bounds.time is None:
        raise SkimError("what=choose needs a bound: max_drop=1.0 (points below dense), max_flops=0.5 or max_time=0.5.")
    if cfg.push_to_hub is not None:
        check_repository(cfg.push_to_hub)
    target = (
        Path(str(cfg.folder)) if cfg.folder is not None else (folders[0] if folders[0].is_dir() else Path()) / EXPORT
    )
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / DESCRIBED).is_file())):
        raise SkimError(f"folder={target} holds something else than a model of skim; name another one.")
    if target.name == "model" and (target.parent / "results.json").is_file():
        raise SkimError(f"folder={target} is the model of a run; name another one.")
    if (target / DESCRIBED).is_file() and not chosen_before(target):
        raise SkimError(
            f"folder={target} holds a model that what=choose has not put there, and does not replace.\n"
            "Name another folder, or move that one away."
        )
    dense, candidates = among(folders, cfg, bounds, console)
    chosen: Candidate | None = None
    try:
        chosen = choose(candidates, bounds)
    finally:
        console.print(table(dense, candidates, chosen, bounds))
    said = [f"{chosen.setting.name}: {chosen.about(bounds)}", *warnings_of(chosen, dense, bounds)]
    typed = f"{COMMAND} runs=[{','.join(map(str, folders))}] {asked(bounds)}".replace("~~~", "")
    run = exported(chosen, target, reason(chosen, dense, len(candidates), bounds, [*said[1:]], typed))
    said.append(f"seed {run['seed']}, the best of {len(chosen.setting.runs)}, from {run[FOLDER]}")
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    console.print(Text(str(target)), soft_wrap=True)
    if cfg.push_to_hub is not None:
        console.print(Text(push(target, cfg.push_to_hub)), soft_wrap=True)


def chosen_before(folder: Path) -> bool:
    """Tell whether a model is an earlier choice, whose card says so: the next one takes its place."""
    card = folder / "README.md"
    return card.is_file() and COMMAND in card.read_text(encoding="utf-8", errors="replace")


def among(folders: list[Path], cfg: DictConfig, bounds: Bounds, console: Console) -> tuple[Setting, list[Candidate]]:
    """Compare the runs in folders that are of the task and the backbone that are named; says what is left out."""
    found = collect(folders)
    left_out = dict(found.left_out)
    for run in found.runs:
        if run["status"] != "done":
            left_out[Path(run[FOLDER])] = f"its status is {run['status']}"
        elif not math.isfinite(run["metrics"].get(run["monitor"], math.nan)):  # it would be within any bound
            left_out[Path(run[FOLDER])] = f"it has no {run['monitor']} that is a number"
    for path, why in left_out.items():
        console.print(f"left out: {path}: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    settings = [
        setting
        for setting in aggregate([run for run in found.runs if Path(run[FOLDER]) not in left_out])
        if all(cfg.get(part) is None or getattr(setting, part) == cfg[part].name for part in ("task", "backbone"))
    ]
    if not settings:
        raise SkimError(f"No finished run in {', '.join(map(str, folders))} that what=choose could look at.")
    return compared(settings, bounds)


def exported(chosen: Candidate, target: Path, why: str) -> Results:
    """Copy the model of the best seed that still has one, with a card; at once or not at all.

    Raises:
        SkimError: no run of the setting has a model, or it cannot be loaded.
    """
    runs = [run for run in chosen.setting.runs if (Path(run[FOLDER]) / "model" / DESCRIBED).is_file()]
    if not runs:
        folders = ", ".join(run[FOLDER] for run in chosen.setting.runs)
        raise SkimError(f"{chosen.setting.name} was chosen, and none of its runs has a model/ any more: {folders}.")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with accepted(target):
            shutil.copytree(Path(runs[0][FOLDER]) / "model", part, ignore=shutil.ignore_patterns(COMPANION))
            write_card(part, runs[0], why)
        from_pretrained(part)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return runs[0]


def reason(chosen: Candidate, dense: Setting, count: int, bounds: Bounds, warnings: list[str], command: str) -> str:
    """Write for the card how the model was chosen."""
    score = chosen.setting.metric
    of_dense = dense.metric
    assert score is not None
    assert of_dense is not None
    lines = [
        f"Of {count} settings, by {asked(bounds)}: `{escaped(chosen.setting.name)}`, {chosen.about(bounds)}.",
        f"{escaped(dense.monitor)} {score.text(4)} over seeds {', '.join(map(str, chosen.setting.seeds))}; dense "
        f"{of_dense.text(4)} over seeds {', '.join(map(str, dense.seeds))}. This is the best seed's model.",
        *(f"Note: {warning}." for warning in warnings),
        f"\n~~~~bash\n{command}\n~~~~",
    ]
    return "\n".join(lines)
