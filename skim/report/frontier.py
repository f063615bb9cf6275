"""The frontier of each task, as parts of a page: a picture, tables and commands, all of it read from runs.

Costs are relative FLOPs and measured time at batch 1 and 32, as a share of the time of padded Hugging Face over the
same batches, which are grouped by length. What a page says about them stands here, so that it is never typed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

from skim.errors import SkimError
from skim.files import write_text
from skim.report.card import escaped
from skim.report.choosing import difference
from skim.report.curve import DROPPED, draw
from skim.report.pareto import Axis, axes, front
from skim.report.picture import write_picture
from skim.report.runs import OPTIONS, SHIFTED, Results, Setting, Spread, aggregate

BASELINE = "padded_hf"
SIZES = (1, 32)  # batches that times are shown of
MARKS = (0.25, 0.33, 0.4, 0.5, 0.6, 0.7, 0.85)  # costs at which methods are compared
NEAR = 0.01  # of the dense cost: what is no further off counts as measured there
TO_BEAT = (DROPPED, "truncate", "random_tokens", "stop_words")  # by anybody who claims to be ahead
OF_THE_PLACE = ("paths.", "callbacks.progress", "print_config", "logger")  # not of what was run


def write_frontiers(runs: Sequence[Results], folder: Path) -> list[Path]:
    """Write ``<task>.md`` and ``<task>.svg`` for each task, for a page that lies beside the folder.

    Returns:
        The files written.

    Raises:
        SkimError: no run has finished.
    """
    settings = [setting for setting in aggregate(runs) if setting.metric is not None]
    if not settings:
        raise SkimError("No run has finished, so there is no frontier.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in dict.fromkeys(setting.task for setting in settings):
        some = [setting for setting in settings if setting.task == task]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", task)
        written += write_picture(draw(some, costs_of(some)), folder, name, ("svg",))
        written.append(folder / f"{name}.md")
        write_text(written[-1], part(some, f"{folder.name}/{name}.svg"))
    return written


def costs_of(settings: Sequence[Setting]) -> list[Axis]:
    """The kinds of cost that a frontier has, of those that were measured."""
    wanted = ["relative_flops", *(f"time_{BASELINE}_{size}" for size in SIZES)]
    return [axis for axis in axes(settings, (BASELINE,)) if axis.name in wanted]


def part(settings: Sequence[Setting], picture: str) -> str:
    """Write the part of a page on one task.

    Args:
        settings: of that task, at least one.
        picture: where it is, from the page.
    """
    costs, monitor = costs_of(settings), settings[0].monitor
    lines = [f"![{escaped(monitor)} on {escaped(settings[0].task)} by cost]({picture})", "", *table(settings, costs)]
    lines += ["", *notes(settings, costs)]
    backbones = dict.fromkeys(s.backbone for s in settings)
    for backbone, cost in product(backbones, costs):  # a share of one backbone's cost is none of another's
        if rows := leads([s for s in settings if s.backbone == backbone], cost):
            of = f", {escaped(backbone)}" if len(backbones) > 1 else ""
            lines += [
                "",
                f"**At the same {cost.title}{of}**, on the straight line between measured settings, differences of "
                "means:",
                "",
                *rows,
            ]
    if rows := lengths(settings):
        lines += ["", "**By length of the input**, in tokens, the mean share of an input that is right:", "", *rows]
    return "\n".join([*lines, "", "```bash", *commands(settings), "```", ""])


# --- the table --------------------------------------------------------------------------------------------------------


def table(settings: Sequence[Setting], costs: Sequence[Axis]) -> list[str]:
    """A line for each setting, by rising relative FLOPs; in bold the costs at which nobody is better."""
    backbones = {s.backbone for s in settings}
    known = {name: reference([s for s in settings if s.backbone == name]) for name in backbones}
    fronts = [front(settings, cost.cost) for cost in costs]
    several = len(backbones) > 1
    heads = ["candidate", *["backbone"] * several, "seeds", escaped(settings[0].monitor)]
    heads += ["points below dense", *(escaped(cost.title) for cost in costs)]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for s in sorted(settings, key=lambda s: (s.relative_flops.mean, s.name)):
        cells = [escaped(s.name), *[escaped(s.backbone)] * several, ", ".join(map(str, s.seeds)), shown(s.metric)]
        dense = known[s.backbone]
        cells.append("" if dense is None or s is dense else below(s, dense))
        for cost, best in zip(costs, fronts, strict=True):
            text = shown(cost.cost(s))
            cells.append(f"**{text}**" if text and any(one is s for one in best) else text)
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def reference(settings: Sequence[Setting]) -> Setting | None:
    """The dense setting that others of a backbone are held against, the best of several; ``None`` without one."""
    scored = [(s.metric.mean, s) for s in settings if s.method == "dense" and s.metric]
    return max(scored, key=lambda one: one[0])[1] if scored else None


def below(setting: Setting, dense: Setting) -> str:
    """Write how far below dense a setting is: points of 0.01, the mean over seeds, and its standard error."""
    drop, error, _ = difference(setting.runs, dense.runs)
    return f"{drop:.2f}" if error is None else f"{drop:.2f} ± {error:.2f}"


def notes(settings: Sequence[Setting], costs: Sequence[Axis]) -> list[str]:
    """Say what the numbers are and of which machine."""
    said = [
        "± behind a number is the standard deviation over its seeds, ± behind points the standard error of their mean. "
        "**Bold**: no other setting is better at no more of this cost."
    ]
    if len(costs) > 1:
        where = sorted({f"{on['machine']}, {on['precision']}" for s in settings for on in timed_on(s)})
        said.append(
            "Times are shares of the median time of padded Hugging Face on the same batches, grouped by length, in "
            f"turns within one process{': ' + '; '.join(map(escaped, where)) if where else ''}."
        )
    precisions = sorted({str(run["machine"]["precision"]) for s in settings for run in s.runs if run.get("machine")})
    if precisions:
        said.append(f"Trained and scored in {', '.join(precisions)}.")
    if any(len({*s.seeds}) < len(s.seeds) for s in settings):
        said.append("A seed that stands twice was run twice, and counts as two runs in means and spread.")
    if mixed := differing(settings):
        said.append(f"**Not all saw the same data**: {'; '.join(map(escaped, mixed))}.")
    return [" ".join(said)]


def differing(settings: Sequence[Setting]) -> list[str]:
    """Options of the task in which settings differ that are held against each other; the dense one has its own."""
    values: dict[str, dict[str, None]] = {}
    for options in (run[OPTIONS] for s in settings if s.method != "dense" for run in s.runs):
        for name, value in options.items():
            if name.startswith("task."):
                values.setdefault(name, {}).setdefault(str(value))
    return [f"{name}={', '.join(some)}" for name, some in values.items() if len(some) > 1]


def timed_on(setting: Setting) -> list[dict[str, str]]:
    """The machines and precisions that its times are of."""
    return [run["timed_on"] for run in setting.runs if run.get("timed_on")]


def shown(spread: Spread | None) -> str:
    """Write ``0.912`` of one value, ``0.912 ± 0.003`` of more; nothing of none."""
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" if spread.std is None else f"{spread.mean:.3f} ± {spread.std:.3f}"


# --- at the same cost -------------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """Settings of one method, from which a line between two of them tells what it would have in between.

    Attributes:
        name: of the method; with the target of the model whose curve it is.
        points: cost and metric of those that no other of them beats, by rising cost.
        most: cost of the dearest, which may be beaten by a cheaper one.
    """

    name: str
    points: list[tuple[float, float]]
    most: float

    def at(self, cost: float) -> float | None:
        """The metric for no more than a cost, on the line between its neighbours; ``None`` outside what was measured.

        Outside it is what is further off than :data:`NEAR`: whoever meets a target misses it by a little.
        """
        if not self.points or not self.points[0][0] - NEAR <= cost <= self.most + NEAR:
            return None
        for (low, one), (high, other) in pairwise(self.points):
            if low <= cost <= high:
                return one + (other - one) * (cost - low) / (high - low)
        return self.points[0][1] if cost < self.points[0][0] else self.points[-1][1]


def families(settings: Sequence[Setting], cost: Axis) -> list[Family]:
    """The methods of settings, each with the best that a user of it can have for a cost."""
    some: dict[str, list[Setting]] = {}
    for setting in settings:  # a model that takes any budget is one by itself, and its curve a line
        shifted = setting.runs[0].get(SHIFTED)
        some.setdefault(setting.method if shifted is None else f"{setting.method} of {shifted}", []).append(setting)
    found = []
    for name, members in some.items():
        best = front(members, cost.cost)
        points = [(spent.mean, s.metric.mean) for s in best if (spent := cost.cost(s)) and s.metric]
        found.append(Family(name, points, max((c.mean for s in members if (c := cost.cost(s))), default=0.0)))
    return found


def leads(settings: Sequence[Setting], cost: Axis) -> list[str]:
    """Write who is best at a cost, and how far ahead of the baselines; no line where none of these was measured."""
    known, dense = families(settings, cost), reference(settings)
    rivals = [one.name for one in known if one.name in TO_BEAT]
    rows = []
    for mark in MARKS:
        there = {one.name: score for one in known if (score := one.at(mark)) is not None}
        others = {name: score for name, score in there.items() if name not in (*TO_BEAT, "dense")}
        if not others or not any(name in TO_BEAT for name in there):
            continue
        best = max(others, key=lambda name: others[name])
        ahead = [f"{100 * (others[best] - there[one]):+.1f}" if one in there else "" for one in rivals]
        far = [f"{100 * (dense.metric.mean - others[best]):.1f}"] if dense is not None and dense.metric else []
        rows.append(f"| {' | '.join([f'{mark:g}', escaped(best), f'{others[best]:.3f}', *far, *ahead])} |")
    if not rows:
        return []
    heads = [escaped(cost.title), "best", escaped(settings[0].monitor), *["points below dense"] * (dense is not None)]
    heads += [f"points ahead of {escaped(one)}" for one in rivals]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows]


# --- by length, and commands ------------------------------------------------------------------------------------------


def lengths(settings: Sequence[Setting]) -> list[str]:
    """A table of the score by length, of settings that were evaluated on the same inputs as most; maybe empty."""
    known = [([(int(one["from"]), int(one["to"])) for one in s.by_length], s) for s in settings if s.by_length]
    if not known:
        return []
    groups = [spans for spans, _ in known]
    common = max(groups, key=groups.count)
    rows = [
        f"| candidate | {' | '.join(f'{low} to {high}' for low, high in common)} |",
        "|---" * (len(common) + 1) + "|",
    ]
    for spans, s in sorted(known, key=lambda one: one[1].relative_flops.mean):
        if spans == common:
            scores = " | ".join(f"{one['score']:.3f}" for one in s.by_length)
            rows.append(f"| {escaped(s.name)} | {scores} |")
    return rows


def commands(settings: Sequence[Setting]) -> list[str]:
    """A command for all settings that a figure joins, and behind it in which options they and their seeds differ."""
    lines: dict[tuple[str, ...], list[Results]] = {}
    for s in sorted(settings, key=lambda s: (s.method != "dense", s.name)):
        lines.setdefault((s.method, s.line, s.backbone), []).extend(s.runs)
    found = [
        summed([portable(run["command"]) for run in sorted(runs, key=lambda r: r["seed"])]) for runs in lines.values()
    ]
    found += [summed([portable(on["command"])]) for s in settings for on in timed_on(s) if "command" in on]
    return list(dict.fromkeys(found))


def portable(command: str) -> list[str]:
    """The words of a command as another machine would run it: paths as ``runs/<name>``, nothing of one place alone."""
    words = []
    for word in shlex.split(command):
        key, equals, value = word.partition("=")
        if equals and key.startswith(OF_THE_PLACE):
            continue
        if key == "ckpt":
            value = "<run>"
        elif value.startswith(("/", "~", "../")):
            value = f"runs/{Path(value).name}"
        words.append(key + equals + value)
    return words


def summed(commands: Sequence[Sequence[str]]) -> str:
    """Write the first of several commands, and in a comment what the others have in place of its options."""
    values: dict[str, dict[str, None]] = {}
    for words in commands:
        for word in words:
            key, equals, value = word.partition("=")
            if equals and key not in ("init_from", "hydra.run.dir"):
                values.setdefault(key, {}).setdefault(value)
    differ = [f"{key}={', '.join(some)}" for key, some in values.items() if len(some) > 1]
    written = " ".join(word if "<" in word else shlex.quote(word) for word in commands[0])
    return written + (f"  # {'; '.join(differ)}" if differ else "")
