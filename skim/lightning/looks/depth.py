"""``what=depth``: layers that tokens of each kind go through."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from skim.analysis.depth import Depths, by_corruption, by_tag, by_token, tagged
from skim.compression import walk_of
from skim.lightning.looks.loaded import finished, for_report, load, trainer_of
from skim.report.depth import depth_table, write_depth


def look(cfg: DictConfig, console: Console) -> None:
    """How many layers tokens of each kind go through; writes into ``results.json``, ``depth.png`` and ``depth.svg``."""
    options = cfg.depth
    sentences = None
    if options.tagged.dataset is not None:  # before anything heavy: it may not be there
        source = options.tagged
        sentences = tagged(source.dataset, source.config, source.split, source.words, source.tags)[: options.samples]
    loaded = load(cfg)
    results = finished(loaded.folder)
    model, task, tokenizer = loaded.parts.model, loaded.parts.task, loaded.parts.tokenizer
    batches = loaded.parts.sampled(cfg.batch_size, options.samples)
    depths = Depths(len(walk_of(model).costs))
    with console.status("depth of tokens"), trainer_of(loaded, console).precision_plugin.forward_context():
        by_token(model, tokenizer, batches, depths)
        by_corruption(model, tokenizer, batches, depths, seed=int(loaded.cfg.seed))
        if sentences is not None:
            by_tag(model, tokenizer, sentences, depths, cfg.batch_size, task.max_length)
    results["depth"] = depths.to_dict()
    for_report(loaded, results)
    console.print(depth_table(results["depth"]))
    files = [loaded.folder / name for name in ("results.json", "report.html")]
    for file in (*files, *write_depth(results["depth"], loaded.folder)):
        console.print(Text(str(file)), soft_wrap=True)
