"""Runs that have finished, found in folders: ``results.json``, and ``curve.json`` of one model at several budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skim.errors import SkimError
from skim.options.words import budgets
from skim.report.runs import FOLDER, SHIFTED, Results
from skim.results import SCHEMA

PEERS = "peers.json"  # what else could be run in a run's place: evaluate.py what=peers benchmark.score=true
MODEL = "this model, "  # before the execution, in the names of candidates there
CURVE = "curve.json"  # one trained model at several budgets: evaluate.py what=curve
NAMED = (  # in every results.json
    *("task", "method", "backbone", "seed", "target", "config", "command", "status"),
    *("metrics", "monitor", "relative_flops", "keep_ratio", "latency"),
)


class Found(NamedTuple):
    """Runs that were found, and the files that were left out: reasons by path."""

    runs: list[Results]
    left_out: dict[Path, str]


def collect(folders: Sequence[Path], curves: bool = False, peers: bool = False) -> Found:
    """Load every ``results.json`` in or under the folders, and with ``curves`` the points of every ``curve.json`` too.

    With ``peers``, what was timed and scored beside a run (int8, bf16) is a run of its own, as :func:`load_peers` says.
    A file that cannot be read, such as a half-written one or one of another version, is left out, and the others stay.

    Raises:
        SkimError: a folder that is not there, no file found, or none that can be read.
    """
    paths: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise SkimError(f"There is no folder {folder}.")
        found = [folder] if folder.is_file() else sorted(folder.rglob("results.json"))
        if curves and not folder.is_file():
            found += sorted(folder.rglob(CURVE))
        paths.update(dict.fromkeys(path.resolve() for path in found))
    where = ", ".join(map(str, folders))
    if not paths:
        raise SkimError(f"No results.json under {where}: no run has finished there.\nTrain one: python train.py")
    if curves and not any(path.name == CURVE for path in paths):
        raise SkimError(f"No {CURVE} under {where}.\nMake one: python evaluate.py ckpt=<run> what=curve")
    collected = Found([], {})
    for path in paths:
        try:
            collected.runs.extend(load_curve(path) if path.name == CURVE else [load(path)])
        except SkimError as error:
            collected.left_out[path] = str(error)
    for run in list(collected.runs) if peers else ():
        path = Path(run[FOLDER]) / PEERS
        if path.is_file() and SHIFTED not in run and run["status"] == "done":
            try:
                collected.runs.extend(load_peers(path, run))
            except SkimError as error:
                collected.left_out[path] = str(error)
    if not collected.runs:
        several = "" if len(paths) == 1 else f"\nNor can {len(paths) - 1} more under {where}."
        raise SkimError(next(iter(collected.left_out.values())) + several)
    return collected


def load(path: Path) -> Results:
    """Load one ``results.json``; a SkimError for another file, or a schema that this version does not read."""
    return _checked(_json(path), path)


def load_curve(path: Path) -> list[Results]:
    """Load the points of one ``curve.json``, marked with the target that their model was trained for."""
    points = _json(path)
    if not isinstance(points, list):
        raise SkimError(f"{path} is not a list of results.")
    marked = []
    for point in points:
        run = _checked(point, path)
        trained = run["config"].get("method", {}).get("target")
        marked.append({**run, SHIFTED: "no target" if trained is None else budgets(trained)})
    return marked


def load_peers(path: Path, run: Results) -> list[Results]:
    """Load what was timed and scored in a run's place, such as ``ONNX Runtime int8``: as runs that differ in that.

    Their FLOPs are the run's, by arithmetic of another kind; theirs are the score and the times. Beside a run that is
    not dense, only its own model in another arithmetic: the others have its weights, and none of its method.

    Args:
        path: of a ``peers.json``.
        run: beside which it lies.

    Raises:
        SkimError: the file is another one, or its scores are of other rows than the run's.
    """
    found = _json(path)
    try:
        sizes = {size: {row["candidate"]: row for row in one["rows"]} for size, one in found["batch_sizes"].items()}
        scores = {name: row["score"] for rows in sizes.values() for name, row in rows.items() if row.get("score")}
        if not scores:
            return []
        of = (run.get("samples") or {}).get("validation")
        if of is not None and found["scored"] != of:
            raise SkimError(f"{path} has scores of {found['scored']} rows, and its run of {of}.")
        padded = {size: next(iter(rows.values()))["timing"] for size, rows in sizes.items()}
        made = []
        for name, score in scores.items():
            own = name.startswith(MODEL)
            if not own and run["method"] != "dense":
                continue
            latency = {
                size: {"padded_hf": padded[size], "packed": rows[name]["timing"]}
                for size, rows in sizes.items()
                if name in rows
            }
            kind = f"{run['method']}, {name.removeprefix(MODEL).partition(', ')[2]}" if own else name
            spent = next(rows[name].get("relative_flops") for rows in sizes.values() if name in rows)
            alone = {
                "relative_flops": 1.0 if spent is None else spent,  # None: a runtime, which retires nothing
                "target": None,
                "config": {"task": run["config"].get("task")},
            }
            share = {} if own else alone
            told = {"timed_on": {"machine": found["machine"], "precision": name, "command": found["command"]}}
            nothing: Results = {"by_length": [], "keep_ratio": [], "parameters": None, "classes": None}
            made.append(
                {
                    **run,
                    **nothing,
                    **share,
                    **told,
                    "method": kind,
                    "metrics": {run["monitor"]: score},
                    "latency": latency,
                }
            )
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise SkimError(f"{path} is damaged, or from another version: {error!r}.") from None
    return made


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SkimError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SkimError(f"{path} cannot be read as JSON, it may be half-written: {error}.") from None


def _checked(run: Any, path: Path) -> Results:
    schema = run.get("schema") if isinstance(run, dict) else None
    if schema != SCHEMA:
        raise SkimError(f"{path} has schema {schema}; this version of skim reads {SCHEMA}.")
    missing = [name for name in NAMED if name not in run]
    if missing:
        raise SkimError(f"{path} is not a whole results.json: it has no {', no '.join(missing)}.")
    return {**run, FOLDER: str(path.parent)}
