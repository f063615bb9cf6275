"""Laws of static rows and of graphs, in short, on the device at hand; the long form is in the project's tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from skim.benchmark.comparison import plain_twin
from skim.benchmark.gpu.rows import Row
from skim.benchmark.scripted import HaltShare, KeepShare
from skim.compression import compress, walk_of
from skim.methods import method_class

LAYERS, LENGTH, BATCH = 4, 96, 6
TIGHT, LOOSE = 2e-4, 6e-2  # float32 and bfloat16, absolute, on logits of size 1
Batch = dict[str, Tensor]


def methods() -> dict[str, Any]:
    """Methods of every kind, with options by which random weights let tokens go."""
    make: Any = {name: method_class(name) for name in "transkimmer topk ltp act funnel early_exit layer_drop".split()}
    return {
        "dense": "dense",
        "half kept": KeepShare(0.5),
        "half halted": HaltShare(0.5),
        "transkimmer": make["transkimmer"](margin=0.0),
        "topk": make["topk"](start=1, token_keep_rate=0.2),
        "ltp": make["ltp"](),
        "act": make["act"](mix="act", bias_init=-1.0),
        "funnel": make["funnel"](),
        "early_exit": make["early_exit"](),
        "layer_drop, transkimmer": [make["layer_drop"](), make["transkimmer"](margin=0.0)],
    }


def small(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A BERT with random weights, small but with heads of a width that fused kernels take."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 256}
    config = AutoConfig.for_model("bert", vocab_size=64, max_position_embeddings=256, num_labels=3, **sizes)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).to(device, dtype).eval()


def batch(device: torch.device, seed: int, size: int = BATCH, length: int = LENGTH, whole: bool = False) -> Batch:
    """A batch with lengths between 3 and all, or of nothing but real tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (size, 1), generator=draw)
    mask = (torch.arange(length)[None] < (length if whole else lengths)).long()
    ids = torch.randint(1, 64, (size, length), generator=draw) * mask
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def batches(device: torch.device) -> list[Batch]:
    """Ragged, whole, at a rung of the ladder of capacities and one over it, and each again: for graphs to be used."""
    some = [batch(device, 0), batch(device, 1), batch(device, 2, whole=True)]
    some += [batch(device, 3, 4, 16, whole=True), batch(device, 4, 5, 13, whole=True)]  # 64 and 65 tokens
    return some * 3


@torch.inference_mode()
def answers(model: nn.Module, given: list[Batch], static: bool, graphs: bool, poison: bool = False) -> list[Any]:
    """Logits and who was alive, of each batch."""
    walk = walk_of(model)
    walk.static, walk.graphs = static, graphs
    told = []
    for one in given:
        logits = model(**one).logits.clone()
        told.append((logits, model.trace.alive(), model.trace.counts()))  # type: ignore[union-attr, operator]
        if poison and walk.graphed.graphs is not None:
            for tensor in walk.graphed.graphs.buffers():
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return told


def differ(one: list[Any], other: list[Any], bound: float) -> str:
    """Name how two lists of :func:`answers` differ; empty if they do not."""
    for k, (a, b) in enumerate(zip(one, other, strict=True)):
        if not torch.equal(a[2], b[2]) or not torch.equal(a[1], b[1]):
            return f"batch {k}: other tokens are alive"
        worst = (a[0].float() - b[0].float()).abs().max().item()
        if not worst <= bound:
            return f"batch {k}: logits differ by {worst:.1e}"
    return ""


def about(model: nn.Module) -> str:
    """Name what kept graphs from being used; empty if they were."""
    graphs = walk_of(model).graphed.graphs
    if graphs is None or not graphs.replays:
        return "no graph was used"
    return "; ".join(filter(None, (graphs.off, *sorted(graphs.said))))


def laws(device: torch.device, quick: bool) -> Iterator[Row]:
    """Every law, a row each."""
    given = batches(device)[: 3 if quick else None]
    plain = small(device)
    for name, method in methods().items():
        model = compress(plain_twin(compress(small(device), "dense")), method).eval()
        exact = answers(model, given, static=False, graphs=False)
        if name == "dense":
            with torch.inference_mode():
                padded = [(plain(**one).logits, a, c) for one, (_, a, c) in zip(given, exact, strict=True)]
            yield law("dense = padded Hugging Face", lambda p=padded, e=exact: differ(p, e, TIGHT))
        yield law(f"{name}: static = exact", lambda m=model, e=exact: differ(answers(m, given, True, False), e, TIGHT))
        again = given * 2 if quick else given
        twice = exact * 2 if quick else exact
        yield law(
            f"{name}: graphs = exact",
            lambda m=model, a=again, e=twice: differ(answers(m, a, True, True, poison=True), e, TIGHT) or about(m),
            model,
        )
    for name, method in (("dense", "dense"), ("half kept", KeepShare(0.5)), ("half halted", HaltShare(0.5))):
        yield law(f"{name}: bf16, graphs = fp32", lambda m=method: half(device, given, m))
    model = compress(small(device), KeepShare(0.5)).eval()
    yield law("weights changed in place", lambda: changed(model, given, lambda p: p.mul_(1.1)))
    yield law("weights replaced", lambda: changed(model, given, lambda p: setattr(p, "data", p.data * 0.9)))
    yield law("two threads", lambda: threads(model, given))
    yield law("filler is read by nobody", lambda: poisoned(model, given))
    yield law("a hook turns graphs off, and back on", lambda: hooked(model, given))


def law(name: str, check: Callable[[], str], model: nn.Module | None = None) -> Row:
    """The row of a check, which returns what is wrong."""
    try:
        wrong = check()
    except Exception as error:
        wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    graphs = None if model is None else walk_of(model).graphed.graphs
    return Row("laws", name, wrong[:150] or "passed", graphs=-1 if graphs is None else graphs.captures)


def half(device: torch.device, given: list[Batch], method: Any) -> str:
    """Half precision against single, by a method whose decisions do not depend on states."""
    wide = answers(compress(small(device), method).eval(), given, False, False)
    again = method if isinstance(method, str) else type(method)(0.5)
    narrow = compress(small(device, torch.bfloat16), again).eval()
    return differ(answers(narrow, given, True, True), wide, LOOSE) or about(narrow)


def changed(model: nn.Module, given: list[Batch], change: Callable[[Tensor], object]) -> str:
    """Change weights under graphs, which have to notice or to read the new ones."""
    answers(model, given, True, True)
    with torch.no_grad():
        for parameter in model.base_model.encoder.layer[1].parameters():  # type: ignore[union-attr, operator, index]
            change(parameter)
    return differ(answers(model, given, True, True), answers(model, given, True, False), TIGHT) or about(model)


def threads(model: nn.Module, given: list[Batch]) -> str:
    """Two threads at a time on one model."""
    alone = answers(model, given, True, True)
    wrong: list[str] = []

    def ask() -> None:
        try:
            wrong.append(differ(answers(model, given, True, True), alone, TIGHT))
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    both = [threading.Thread(target=ask) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    return "; ".join(filter(None, wrong))


def poisoned(model: nn.Module, given: list[Batch]) -> str:
    """Give filler rows contexts that are not numbers."""
    from skim.engine.kernels import static

    clean = answers(model, given, True, False)
    before, static.FILLER = static.FILLER, torch.nan
    try:
        return differ(answers(model, given, True, False), clean, TIGHT)
    finally:
        static.FILLER = before


def hooked(model: nn.Module, given: list[Batch]) -> str:
    """Watch a layer's output, which a replayed graph would not show."""
    clean, seen = answers(model, given, True, True), []
    handle = model.base_model.encoder.layer[0].output.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr, operator, index]
    try:
        wrong = differ(answers(model, given, True, True), clean, TIGHT)
    finally:
        handle.remove()
    return wrong or ("" if len(seen) == len(given) else "the hook was skipped")


def recovery(device: torch.device, quick: bool) -> Iterator[Row]:
    """A capture that fails must leave the process as it was; last, because it might not."""

    class Waits(KeepShare):
        name = "waits"

        def before_layer(self, i: int, tokens: Any) -> Any:
            if i == 1 and device.type == "cuda":
                torch.cuda.synchronize()  # which no capture survives
            return super().before_layer(i, tokens)

    model = compress(small(device), Waits(0.5)).eval()
    given = batches(device)
    exact = answers(compress(small(device), KeepShare(0.5)).eval(), given, False, False)

    def check() -> str:
        wrong = differ(answers(model, given, True, True), exact, TIGHT)
        torch.nn.functional.dropout(torch.ones(64, device=device), training=True).sum().item()
        graphs = walk_of(model).graphed.graphs
        on = graphs is None or graphs.off is None
        return wrong or ("it was captured all the same" if on and device.type == "cuda" else "")

    yield law("a failed capture falls back", check)
    after = compress(small(device), KeepShare(0.5)).eval()
    yield law(
        "others capture after it", lambda: differ(answers(after, given, True, True), exact, TIGHT) or about(after)
    )
