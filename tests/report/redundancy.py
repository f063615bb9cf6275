"""Hand-made section ``redundancy`` of a network of 3 layers of 4 neurons, of which a constant layer 0."""

from __future__ import annotations

from typing import Any


def section(**changes: Any) -> dict[str, Any]:
    """At 1 %, layers 0 to 2 of 2 and 3 of 12 neurons; at 5 %, layers 0 and 1, and 2 of 12."""
    scores = [(0.5, 0.5), (0.8, 0.79), (0.9, 0.88)]
    alone = [{"number": number, "dev": dev, "test": test} for number, (dev, test) in enumerate(scores)]
    up_to = [
        {"number": number, "dev": dev, "test": test}
        for number, (dev, test) in enumerate([(0.5, 0.5), (0.86, 0.85), (0.9, 0.89)])
    ]
    found = {
        "version": 1,
        "task": "sst2",
        "metric": "accuracy",
        "dev_seen": False,
        "rows": {"train": 6000, "dev": 667, "test": 872},
        "layers": {
            "numbers": [0, 1, 2],
            "names": ["embeddings", "layer 1", "layer 2"],
            "width": 4,
            "total": 2,
            "not_run": [],
            "computed": [1.0, 1.0, 1.0],
            "oracle": {"train": 0.95, "dev": 0.9, "test": 0.89},
            "single": alone,
            "up_to": up_to,
            "selected": [
                {"delta": 1.0, "layers": 2, "up_to": 2, "single": 2, "dev": 0.9, "test": 0.89},
                {"delta": 5.0, "layers": 1, "up_to": 1, "single": None, "dev": 0.86, "test": 0.85},
            ],
        },
        "constant": {"neurons": [0, 1, 2, 3], "by_layer": [4, 0, 0]},
        "similarity": {
            "linear": [[None, None, None], [None, 1.0, 0.25], [None, 0.25, 1.0]],
            "debiased": [[None, None, None], [None, 1.0, -0.01], [None, -0.01, 1.0]],
            "degenerate": [0],
        },
        "clustering": {
            "thresholds": [0.3, 0.7],
            "network": [
                {"threshold": 0.3, "clusters": 10, "redundant": 1 / 6, "widths": {"1": 9, "2": 1}},
                {"threshold": 0.7, "clusters": 6, "redundant": 0.5, "widths": {"1": 5, "3": 1}},
            ],
            "layers": [{"number": number, "redundant": [0.0, 0.25 * number]} for number in range(3)],
        },
        "neurons": [
            kept(1.0, None, [5, 8, 9, 11], [0, 1, 3]),
            kept(1.0, 0.3, [9, 5, 11], [0, 1, 2]),
            kept(5.0, None, [6, 5], [0, 2, 0]),
        ],
        "chance": {"dev": 0.5, "test": 0.5},
        "control": None,
        "transfer": None,
        "sentence": "At 1 %, 3 of 12 neurons suffice; a head needs <every> layer.",
    }
    return {**found, **changes}


def kept(delta: float, threshold: float | None, neurons: list[int], by_layer: list[int]) -> dict[str, Any]:
    scores = {"dev": 0.89, "test": 0.88}
    about = {"delta": delta, "threshold": threshold, "suffices": True}
    return {**about, "neurons": neurons, "by_layer": by_layer, "base": scores, **scores}
