"""Runs side by side: a line per setting, mean and spread over seeds. Every number is read from a ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skim.report.fitted import Column, Fitted, Naming, letters
from skim.report.runs import BASELINES, Results, Setting, Spread, aggregate


def runs_table(results: Sequence[Results]) -> Fitted:
    """Make a table of one line per setting, mean ± standard deviation where it has several seeds.

    Speedup is measured: the median time of the packed dense model, or of padded Hugging Face, over the median time of
    the model, at a batch size. Where names leave no room for numbers, the differences of settings stand in a key below.
    """
    settings = aggregate(results)
    numbers = [Column(title, [cell(setting) for setting in settings]) for title, cell in _numbers(settings).items()]
    dim = [setting.method == "dense" for setting in settings]
    notes = _notes(settings, failed=sum(run["status"] != "done" for run in results))
    return Fitted(_namings(settings), numbers, dim, notes)


def _namings(settings: list[Setting]) -> list[Naming]:
    """List ways to name the rows: by name; by method, with the differences in a key; by letters alone."""
    seeds = {setting.seeds for setting in settings}
    differ = {
        name: [getattr(setting, name) for setting in settings]
        for name in ("task", "backbone")
        if len({getattr(setting, name) for setting in settings}) > 1
    }
    before = [Column(name, values) for name, values in differ.items()]
    after = [Column("seeds", [",".join(map(str, s.seeds)) for s in settings])] if len(seeds) > 1 else []
    whole = Column("method", [setting.name for setting in settings])
    short = Column("method", [setting.asked for setting in settings])

    variants = list(dict.fromkeys(setting.variant for setting in settings if setting.variant))
    letter = dict(zip(variants, letters(len(variants)), strict=True))
    named = [letter.get(setting.variant, "") for setting in settings]
    key = {short: variant for variant, short in letter.items()}
    rows = letters(len(settings))
    facts = [[*(values[row] for values in differ.values()), s.name] for row, s in enumerate(settings)]
    if after:
        for fact, seeds_of in zip(facts, after[0].cells, strict=True):
            fact.append(f"seeds {seeds_of}")
    return [
        Naming([*before, whole, *after], {}),
        *([Naming([*before, short, Column("", named), *after], key)] if key else []),
        Naming([Column("", rows)], {short: ", ".join(fact) for short, fact in zip(rows, facts, strict=True)}),
    ]


def _numbers(settings: list[Setting]) -> dict[str, Callable[[Setting], str]]:
    """Make the columns of measurements: titles, and functions from a setting to its cell."""
    columns: dict[str, Callable[[Setting], str]] = {}
    monitors = {setting.monitor for setting in settings}
    if len(monitors) == 1:
        columns[monitors.pop()] = lambda s: _text(s.metric, 4)
    else:
        columns["metric"] = lambda s: f"{s.monitor} {_text(s.metric, 4)}"
    columns["keep\nratio"] = lambda s: "-" if s.keep_ratio is None else f"{s.keep_ratio.mean:.3f}"
    columns["relative\nFLOPs"] = lambda s: _text(s.relative_flops)
    for size, baseline in sorted({key for setting in settings for key in setting.speedups}):
        key = (size, baseline)
        cell = lambda s, key=key: f"{s.speedups[key].mean:.2f}" if key in s.speedups else "-"  # noqa: E731
        columns[f"b{size} vs\n{BASELINES[baseline]}"] = cell
    return columns


def _notes(settings: list[Setting], failed: int) -> list[str]:
    """Notes for a reader of the columns."""
    notes = []
    seeds = {setting.seeds for setting in settings}
    if len(seeds) == 1 and len(settings[0].seeds) > 1:
        notes.append(f"mean ± standard deviation over seeds {', '.join(map(str, settings[0].seeds))}")
    if any(setting.speedups for setting in settings):
        notes.append("b1 vs dense: measured speedup at batch 1 over packed dense; padded: Hugging Face")
    if failed:
        notes.append(f"runs that failed, left out: {failed}")
    return notes


def _text(spread: Spread | None, digits: int = 3) -> str:
    return "-" if spread is None else spread.text(digits)
