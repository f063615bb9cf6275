"""The model card of a run, in the hub's format: ``README.md`` beside the weights. Every number is from its results."""

from __future__ import annotations

import html
import re
import statistics
from pathlib import Path
from typing import Any

from skim.files import read_json, replacing
from skim.options.words import budgets
from skim.report.runs import Results
from skim.report.table import latency_rows

CARD = "README.md"
TEMPLATE = Path(__file__).parent / "templates" / "card.md"
PIPELINES = {  # the hub's words, by how transformers' classes end
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
}
# from the root, the home or a drive, and neither part of a URL nor of a relative path
PATH = re.compile(r"(?<![\w.:/~<>-])(?:~[\w.-]*/|/(?=[\w.])|[A-Za-z]:[/\\])[^\s'\"`,;\])]*")
OURS = ("text-classification", "token-classification", "question-answering", "fill-mask")  # that skim.pipeline has


def write_card(folder: Path, results: Results, chosen: str | None = None) -> None:
    """Write the card of the model in a folder.

    Args:
        folder: with the model's ``config.json``.
        results: of the run that it is from.
        chosen: how it was chosen among others, in Markdown; ``None``: it was not.
    """
    with replacing(folder / CARD) as part:
        card(folder, results, chosen).save(part)


def card(folder: Path, results: Results, chosen: str | None = None) -> Any:
    """Make the card: metadata that the hub reads, and text; what is not skim's own is escaped."""
    from huggingface_hub import ModelCard

    config = results["config"]
    architecture = str((read_json(folder / "config.json").get("architectures") or ["AutoModel"])[0])
    monitor, measured = results["monitor"], results["metrics"]
    others = ", ".join(f"{escaped(k)} {v:.4f}" for k, v in sorted(measured.items()) if k != monitor)
    kept = results.get("keep_ratio")
    data = metadata(results, architecture)
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=escaped(data.model_name),
        method=escaped(results["method"]),
        backbone=escaped(source(config, "backbone") or results["backbone"]),
        task=escaped(results["task"]),
        skim=escaped(results.get("versions", {}).get("skim", "")),
        split=escaped(split(results)),
        rows=f" ({results['samples']['validation']:,} rows)" if "validation" in results.get("samples", {}) else "",
        seed=results["seed"],
        monitor=escaped(monitor),
        score=f"{measured[monitor]:.4f}" if monitor in measured else "-",
        relative_flops=f"{results['relative_flops']:.3f}",
        gflops=f"{results.get('gflops', 0):.3f}",
        baseline_gflops=f"{results.get('baseline_gflops', 0):.3f}",
        keep_ratio=f"{statistics.fmean(kept):.3f}" if kept else "-",
        others=others,
        chosen=chosen and private(chosen),
        times=latency_rows(results["latency"]) if results.get("latency") else [],
        machine=escaped(", ".join(f"{name} {value}" for name, value in results.get("machine", {}).items())),
        pipeline=data.pipeline_tag if data.pipeline_tag in OURS else None,
        architecture=escaped(architecture),
        data=about_data(results),
        selected="the setting" if chosen else "the checkpoint",
        notes=[escaped(private(note)) for note in results.get("notes", [])],
        command=private(results.get("command", "")).replace("~~~", "'''"),
        versions=escaped(", ".join(f"{name} {value}" for name, value in results.get("versions", {}).items())),
    )


def metadata(results: Results, architecture: str) -> Any:
    """Make what the hub reads of a card: names of data, base model and pipeline, and the evaluation."""
    from huggingface_hub import EvalResult, ModelCardData

    config, monitor = results["config"], results["monitor"]
    pipeline = next((tag for end, tag in PIPELINES.items() if architecture.endswith(end)), "feature-extraction")
    named = source(config, "task")
    evaluated = [
        EvalResult(
            task_type=pipeline,
            dataset_type=named or results["task"],
            dataset_name=results["task"],
            dataset_split=split(results),
            metric_type=monitor,
            metric_value=results["metrics"][monitor],
        )
    ]
    name = f"{results['backbone']}-{results['task']}-{results['method']}"
    target = results.get("target")
    return ModelCardData(
        model_name=name if target is None else f"{name}-{budgets(target)}",
        base_model=source(config, "backbone"),
        datasets=named,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["skim", results["method"]],
        metrics=[monitor],
        eval_results=evaluated if monitor in results["metrics"] else None,
    )


def source(config: dict[str, Any], part: str) -> str | None:
    """Name the hub id of a run's backbone or data; ``None`` of a folder, of own files and of what is built in."""
    found = config.get(part, {}).get("hub_id")
    files = config.get(part, {}).get("files") or {}
    if not found or any(files.values()) or str(found).startswith((".", "~", "/")) or str(found).count("/") > 1:
        return None
    return str(found)


def split(results: Results) -> str:
    """Name the evaluation split."""
    return str(results["config"].get("task", {}).get("eval_split") or "validation")


def about_data(results: Results) -> str:
    """Describe the data: where they are from, rows of each part, texts that were cut."""
    task = results["config"].get("task", {})
    named = source(results["config"], "task")
    where = f"[{escaped(named)}](https://huggingface.co/datasets/{escaped(named)})" if named else "own files"
    if not named and not any((task.get("files") or {}).values()):
        where = "built into skim"
    lines = [f"Task `{escaped(results['task'])}`: {where}."]
    for title, key in (("Rows", "samples"), ("Truncated", "truncated"), ("Bad rows left out", "skipped")):
        if results.get(key):
            counts = ", ".join(f"{count:,} ({escaped(part)})" for part, count in results[key].items())
            lines.append(f"{title}: {counts}.")
    if task.get("max_length"):
        lines.append(f"Texts are cut at {task['max_length']} tokens.")
    return " ".join(lines)


def private(text: str) -> str:
    """Leave only the last name of each absolute path, and ``...`` before it: a card is published, a disk is not."""
    return PATH.sub(lambda found: ".../" + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def escaped(text: object) -> str:
    """Make text that Markdown and HTML show as it is, on one line."""
    shown = html.escape(" ".join(str(text).split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`|[]" else letter for letter in shown)
