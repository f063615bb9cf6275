"""``what=tokens``: sentences, each token shaded by the layer at which it retired."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from skim.errors import SkimError
from skim.lightning.looks.loaded import load
from skim.report.heatmap import read, show, write_html
from skim.report.svg import sentence, write_svg


def look(cfg: DictConfig, console: Console) -> None:
    """Print sentences, each token shaded by the layer at which it retired; writes ``tokens.html``, ``tokens.svg``."""
    if cfg.text is None:
        raise SkimError('what=tokens needs a sentence: text="a gripping , funny film" (quote it for the shell).')
    texts = [str(cfg.text)] if not OmegaConf.is_list(cfg.text) else [str(text) for text in cfg.text]
    loaded = load(cfg)
    task = loaded.parts.task
    skimmed = read(loaded.parts.model, loaded.parts.tokenizer, texts, task.label_names, task.single_texts)
    show(skimmed, console)
    write_html(loaded.folder / "tokens.html", skimmed)
    write_svg(loaded.folder / "tokens.svg", sentence(skimmed[0]))
    console.print(f"\n{loaded.folder / 'tokens.html'}, and the first text as tokens.svg", highlight=False)
