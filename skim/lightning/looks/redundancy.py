"""``what=redundancy``: layers and neurons that the task does not need, of a run or of a pretrained model."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from skim.analysis.redundancy.analysis import Section, Settings, analyse
from skim.analysis.redundancy.extraction import Extraction, Reading
from skim.analysis.redundancy.metrics import metric
from skim.analysis.redundancy.splits import Split, splits_of
from skim.analysis.redundancy.states import Splits
from skim.files import write_json
from skim.lightning.callbacks.progress import counted
from skim.lightning.looks.loaded import Loaded, finished, for_report, is_run, load, pretrained, trainer_of
from skim.methods import method_name
from skim.report.page import write_page
from skim.report.redundancy import redundancy_table, write_redundancy
from skim.results import Results


def look(cfg: DictConfig, console: Console) -> None:
    """Extract states, analyse them, and write ``redundancy/`` and the section of ``results.json`` and ``report.html``.

    Without a run the folder is made, and these are all that is in it.
    """
    of_run = is_run(cfg)
    loaded = load(cfg) if of_run else pretrained(cfg)
    results = finished(loaded.folder) if of_run else Results.of(loaded.cfg, loaded.parts.task.name, "").to_dict()
    folder = loaded.folder / "redundancy"
    section = section_of(loaded, cfg, folder, console)
    files = [path.name for path in write_redundancy(section, folder)]
    section["files"] = [*files, "redundancy.json"]
    write_json(folder / "redundancy.json", section)
    results["redundancy"] = section
    if of_run:
        for_report(loaded, results)
    else:
        results |= {"command": command_of(loaded), "status": "done"}
        write_json(loaded.folder / "results.json", results)
        write_page(loaded.folder / "report.html", results)
    if not cfg.redundancy.keep:
        shutil.rmtree(folder / "states")
    console.print(redundancy_table(section))
    console.print(Text(f"\n{section['sentence']}"), soft_wrap=True)
    for path in (*(loaded.folder / name for name in ("results.json", "report.html")), folder):
        console.print(Text(str(path)), soft_wrap=True)


def section_of(loaded: Loaded, cfg: DictConfig, folder: Path, console: Console) -> Section:
    """Extract and analyse; the section with what it is of."""
    options, task = cfg.redundancy, loaded.parts.task
    splits = splits_of(task, options.max_rows)
    if options.metric is not None:  # refused before the extraction, which may take long
        metric(options.metric, 1 if np.issubdtype(splits[0].labels.dtype, np.floating) else 2)
    reading = Reading(options.pooling, options.word, options.dtype)
    extraction = Extraction(loaded.parts.model, task, reading, cfg.batch_size)
    started = time.perf_counter()
    states = extracted(extraction, splits, folder / "states", loaded, console)
    seconds = time.perf_counter() - started
    chosen = cast(dict[str, Any], OmegaConf.to_container(options))
    settings = Settings(**{name: chosen[name] for name in Settings.__dataclass_fields__})
    batches = loaded.parts.sampled(cfg.batch_size, cfg.benchmark.samples)
    with console.status("redundancy") as status:
        section = analyse(
            states,
            extraction.layers,
            settings,
            stage=lambda name: status.update(f"redundancy: {name}"),
            clock=lambda number: extraction.seconds(number, batches),
            dev_seen=is_run(cfg) and any(split.name == "dev" and split.part == "train" for split in splits),
        )
    of_words = splits[0].words is not None
    pooling = options.word if of_words else extraction.walk.head.place if options.pooling == "position" else "mean"
    about = {
        "task": task.name,
        "backbone": loaded.cfg.backbone.name,
        "method": method_name(loaded.cfg.method._target_),
        "weights": str(cfg.ckpt) if is_run(cfg) else "pretrained",
        "pooling": pooling,
        "options": chosen,
    }
    return {**about, **section, "seconds": {"extraction": seconds, **section["seconds"]}}


def extracted(extraction: Extraction, splits: list[Split], folder: Path, loaded: Loaded, console: Console) -> Splits:
    """Extract all splits under a progress bar; says before how large they are, and what an earlier look has left."""
    layers = f"{len(extraction.numbers)} layers x {extraction.width}"
    rows = ", ".join(f"{split.rows:,} {split.name}" for split in splits)
    size = extraction.size(splits) / 2**20
    console.print(
        f"states: {rows} rows x {layers}, {extraction.reading.dtype}, {size:,.1f} MiB in {folder}", soft_wrap=True
    )
    found = {}
    forward = trainer_of(loaded, console).precision_plugin.forward_context()
    with forward, torch.inference_mode():
        for split in splits:
            with counted(console, f"states, {split.name}", len(split.examples)) as advance:
                states, changed = extraction.run(split, folder / split.name, advance)
            if changed:
                console.print(f"{split.name}: states of other {' and '.join(changed)} lay there; extracted anew")
            found[split.name] = states
    return Splits(**found, label_names=loaded.parts.task.label_names or [])


def command_of(loaded: Loaded) -> str:
    """Write the command that looks at a pretrained model."""
    method = method_name(loaded.cfg.method._target_)
    said = f"python evaluate.py what=redundancy backbone={loaded.cfg.backbone.name} task={loaded.cfg.task.name}"
    return said if method == "dense" else f"{said} method={method}"
