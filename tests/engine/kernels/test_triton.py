"""Triton's kernels on a CPU: run by its interpreter, in a process of its own, and compiled for a GPU that is not there.

The interpreter is chosen by an environment variable before Triton is imported, for good; no other test may see that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with torch for CUDA, and with the extra dev on Linux")

HERE = Path(__file__).parent
KERNELS = (
    "attention._context",
    "attention._received",
    "difference._difference",
    "rank._rank",
    "rows._count",
    "rows._move",
)


def test_by_the_interpreter() -> None:
    """The cases in interpreted.py, each against plain operations."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(HERE / "interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2], check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
    assert "skipped" not in ran.stdout


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", [KERNELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in KERNELS[1:])])
def test_compiles_for_a_gpu(name: str) -> None:
    """For an H100, in bfloat16, as BERT is: what the interpreter runs, a compiler may still refuse."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from skim.engine.kernels.triton import attention

    module, function = name.split(".")
    kernel = getattr(import_module(f"skim.engine.kernels.triton.{module}"), function)
    blocks = attention.blocks(512, 64, torch.bfloat16)
    chosen = {"SIZE": 64, "WIDTH": 64, "WINDOWED": True, "FACTOR": tl.bfloat16, "BLOCK": 128, "STEP": blocks["STEP"]}
    chosen |= {"STAY": True, "RESCUE": True, "LEFT": True, "BATCH": 32, "SLICE": 128}
    whole = {"bounds": "*i32", "looked_bounds": "*i32", "index": "*i64", "looked_index": "*i64", "keep": "*u8"}
    whole |= {"stay": "*u8", "counts": "*i32", "here": "*i64", "ends": "*i32", "source": "*i64"}
    types = {**dict.fromkeys(("query", "key", "value", "context", "hidden", "left", "moved"), "*bf16"), **whole}
    types |= dict.fromkeys(("states", "scale", "offset", "weight", "bias"), "*bf16")
    types |= {
        "values": "*fp32",
        "places": "*i64",
        "found": "*fp32",
        "epsilon": "fp32",
        "lse": "*fp32",
        "received": "*fp32",
        "scaling": "fp32",
    }
    names = kernel.arg_names
    signature = {arg: "constexpr" if arg in chosen else types.get(arg, "i32") for arg in names}
    source = ASTSource(kernel, signature, constexprs={arg: chosen[arg] for arg in names if arg in chosen})
    options = {"num_warps": blocks["num_warps"], "num_stages": blocks["num_stages"]}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert found.metadata.shared <= 100 * 1024  # what every GPU since Ampere has for a block
