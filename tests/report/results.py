"""Hand-made ``results.json`` with round numbers, so that what a table must show is known without running anything."""

from __future__ import annotations

from typing import Any


def timing(median: float) -> dict[str, float]:
    return {"median_ms": median, "min_ms": median - 1, "max_ms": median + 1, "runs": 5}


def results(**changes: Any) -> dict[str, Any]:
    """A finished Transkimmer run: at batch 32 twice as fast as packed dense, three times as padded Hugging Face."""
    run = {
        "schema": 1,
        "status": "done",
        "task": "sst2",
        "method": "transkimmer",
        "backbone": "minilm",
        "seed": 1,
        "target": 0.5,
        "metrics": {"loss": 0.25, "accuracy": 0.9},
        "monitor": "accuracy",
        "masked_metrics": {"loss": 0.25, "accuracy": 0.9},
        "relative_flops": 0.48,
        "gflops": 0.2,
        "baseline_gflops": 0.4,
        "keep_ratio": [0.75, 0.5, 0.25],
        "latency": {"32": {"padded_hf": timing(150), "packed_dense": timing(100), "packed": timing(50)}},
        "samples": {"train": 6920, "eval": 872},
        "versions": {"torch": "2.13.0"},
        "git_commit": "0123abc",
        "wall_seconds": 61.0,
        "command": "python train.py method=transkimmer",
        "config": {"seed": 1, "task": {"text": "<script>alert(1)</script>"}},
        "notes": [],
    }
    return {**run, **changes}


def dense(**changes: Any) -> dict[str, Any]:
    """Its dense baseline."""
    latency = {"32": {"padded_hf": timing(150), "packed_dense": timing(100), "packed": timing(100)}}
    plain = {
        "method": "dense",
        "target": None,
        "relative_flops": 1.0,
        "keep_ratio": [1.0, 1.0, 1.0],
        "latency": latency,
    }
    return results(**{**plain, "masked_metrics": None, **changes})
