"""Malformed inputs of every kind: each ends in a right result or in an error of two or three lines and exit code 2.

Never in another exception, in more than a minute, or in more memory than a bound. A few of each kind are drawn in every
run; the slow test draws ten times as many, and prints what became of them.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import json
import math
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import skim
from skim.cli import readable, settled
from skim.lightning.callbacks.resume import check_resumable
from skim.lightning.check import check
from skim.report.found import collect
from skim.resume import recorded
from tasks.builtin import Builtin
from tasks.tagging import Tagging
from tasks.text import Text
from tests.report.results import results
from tests.runs import CONF, small

SECONDS = 60
BYTES = 6 << 30  # of address space beyond what the process has
ODD = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800 alone",
    "\udfff",
    "\u202eright to left\u202c",
    "שלום עולם",
    "👩‍👩‍👧‍👦" * 20,
    "e" + "\u0301" * 500,
    "\x1b[31mred\x1b[0m",
    "\r\n\t\x0b\x0c",
    "\ufeff",
    "\uffff\ufffe",
    "x" * 1_000_000,
    "a " * 100_000,
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "${oc.env:HOME}",
    "!!python/object/apply:os.system ['true']",
    "nan",
    "-1e999",
    "9" * 5000,
    "null",
    "[" * 10_000,
    "{" * 500,
    "'",
    '"',
    "\\",
    "*a",
    "&a [*a]",
]
COUNTS: collections.Counter[str] = collections.Counter()


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """End what takes longer than a minute, and refuse it more memory than a bound."""

    def late(*_: object) -> None:
        raise AssertionError(f"takes longer than {SECONDS} s")

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + BYTES, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def ends_well(kind: str, run: Callable[[], object]) -> None:
    """Run as an entry point does; a refusal has exit code 2."""
    try:
        with bounded(), readable():
            run()
    except SystemExit as left:
        assert left.code == 2  # noqa: PT017
        COUNTS[f"{kind}: refused"] += 1
    else:
        COUNTS[f"{kind}: right"] += 1


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes that are cut, flipped, doubled, put in or taken out, some times over."""
    for _ in range(draw.choice([1, 1, 1, 3])):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 1, 8, 64])
        put = bytes(draw.randrange(256) for _ in range(length))
        data = draw.choice(
            [data[:at], data[:at] + put + data[at + length :], data[:at] + put + data[at:], data[at:], data + data, b""]
        )
    return data


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree of JSON's with one part that is something else, or gone."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice(sorted(tree))
        if draw.random() < 0.15:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: changed(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.7:
        at = draw.randrange(len(tree))
        return [*tree[:at], changed(tree[at], draw), *tree[at + 1 :]]
    return draw.choice([None, True, -1, 0, 1e308, 10**30, [], {}, [[]], {"a": 1}, *ODD[:13], *ODD[16:]])


# ------------------------------------------------------------------------------------------------ what is malformed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of skim's and its tokenizer, a word to a token."""
    tokenizer = Builtin().own_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    folder = tmp_path_factory.mktemp("inputs") / "model"
    skim.save_pretrained(skim.compress(transformers.BertForSequenceClassification(config), "ltp"), folder)
    tokenizer.save_pretrained(folder)
    return folder


def an_override(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    keys = ["train.lr", "seed", "tags", "method.target", "task.files.train", "backbone.overrides.hidden_size", "method"]
    keys += [
        "callbacks",
        "trainer.max_steps",
        "hardware.devices",
        "init_from",
        "resume",
        "experiment",
        "text",
        "+x",
        "~task",
    ]
    typed = f"{draw.choice(keys)}={draw.choice(ODD[:13] + ODD[16:])}"
    typed = draw.choice([typed, typed, damaged(typed.encode("utf-8", "replace"), draw).decode("utf-8", "replace")])

    def run() -> None:
        from hydra import compose, initialize_config_dir

        lines = settled(["task=builtin", "backbone=tiny", typed], CONF, "train")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            check(compose("train", lines))

    return run


def a_config(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    tree = OmegaConf.to_container(small("method=topk"), resolve=False)
    file = folder / "config.yaml"
    if draw.random() < 0.5:
        file.write_bytes(damaged(OmegaConf.to_yaml(OmegaConf.create(tree)).encode(), draw))
    else:
        import yaml

        file.write_text(yaml.safe_dump(changed(tree, draw)), encoding="utf-8", errors="surrogatepass")
    return lambda: recorded(folder)


def a_data_file(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    rows = [{"text": f"the film is {word}", "label": word} for word in ("good", "bad") * 8]
    odd = draw.choice(ODD)
    if draw.random() < 0.6:
        rows[draw.randrange(len(rows))][draw.choice(["text", "label"])] = odd
    kind = draw.choice(["csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "conll"])
    if kind == "conll":
        data = "\n".join(f"{row['text']}\t{row['label']}\n" for row in rows).encode("utf-8", "surrogatepass")
    elif kind == "parquet":
        import pandas

        pandas.DataFrame(
            [{k: v.encode("utf-8", "replace").decode() for k, v in row.items()} for row in rows]
        ).to_parquet(folder / "x.parquet")
        data = (folder / "x.parquet").read_bytes()
    elif "json" in kind:
        lines = [json.dumps(changed(row, draw) if draw.random() < 0.05 else row) for row in rows]
        data = (f"[{','.join(lines)}]" if kind == "json" else "\n".join(lines)).encode()
    else:
        mark = "\t" if kind == "tsv" else ","
        data = "\n".join([f"text{mark}label", *(f"{row['text']}{mark}{row['label']}" for row in rows)]).encode(
            "utf-8", "surrogatepass"
        )
    if kind.endswith(".gz"):
        data = gzip.compress(data)
    if draw.random() < 0.7:
        data = damaged(data, draw)
    file = folder / f"train.{kind}"
    file.write_bytes(data)

    def run() -> None:
        task = (Tagging if kind == "conll" else Text)(files={"train": str(file), "validation": str(file)})
        task.setup_tokenizer(transformers.AutoTokenizer.from_pretrained(model))
        task.setup("fit")
        next(iter(task.train_dataloader()))

    return run


def a_checkpoint(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    state = {"state_dict": {"w": torch.ones(64)}, "optimizer_states": [{}], "global_step": 3, "loops": {}}
    file = folder / "last.ckpt"
    torch.save(changed(state, draw) if draw.random() < 0.3 else state, file)
    file.write_bytes(damaged(file.read_bytes(), draw))
    return lambda: check_resumable(file)


def a_model(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder, dirs_exist_ok=True)
    file = folder / draw.choice(
        ["model.safetensors", "method.safetensors", "config.json", "skim.json", "tokenizer.json"]
    )
    if file.suffix == ".json" and draw.random() < 0.7:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), draw)))
    elif file.suffix == ".safetensors" and draw.random() < 0.5:
        tensors = load_file(file)
        name = draw.choice(sorted(tensors))
        other = [torch.zeros(3, 3), torch.zeros(0), tensors[name].to(torch.int64), tensors[name].unsqueeze(0)]
        tensors = {**tensors, name: draw.choice(other)} if draw.random() < 0.6 else {"x": tensors[name]}
        save_file(tensors, file)
    else:
        file.write_bytes(damaged(file.read_bytes(), draw))
    about = folder / "skim.json"
    if draw.random() < 0.7 and file != about:  # a model of before had no checksums
        told = json.loads(about.read_text())
        about.write_text(json.dumps({key: value for key, value in told.items() if key != "checksums"}))
    return lambda: skim.pipeline("text-classification", folder)("the film is good", truncation=True)


def a_text(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    texts = [*draw.sample([one for one in ODD], 2), "the film is good"]

    def run() -> None:
        pipe = skim.pipeline("text-classification", model)
        answers = pipe(texts, truncation=True)
        assert answers[-1]["label"] == pipe("the film is good", truncation=True)[0]["label"]
        assert all(math.isfinite(one["score"]) for one in answers)

    return run


def some_results(draw: random.Random, folder: Path, model: Path) -> Callable[[], object]:
    (folder / "run").mkdir()
    file = folder / "run" / "results.json"
    file.write_text(json.dumps(changed(changed(results(status="done", schema=1), draw), draw)))
    if draw.random() < 0.4:
        file.write_bytes(damaged(file.read_bytes(), draw))
    return lambda: collect([folder])


KINDS = [an_override, a_config, a_data_file, a_checkpoint, a_model, a_text, some_results]


def drawn(kind: Callable[..., Callable[[], object]], count: int, tmp: Path, model: Path) -> None:
    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False), st.integers(0, 2**32))
    def check_one(draw: random.Random, seed: int) -> None:
        own = random.Random(seed)
        folder = tmp / str(sum(COUNTS.values()))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        ends_well(kind.__name__, kind(own, folder, model))

    check_one()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_malformed_input_ends_in_a_right_result_or_a_refusal(
    kind: Callable[..., Callable[[], object]], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn(kind, 3 if kind is an_override else 6, tmp_path, model)  # composing a config takes a third of a second


@pytest.mark.parametrize(
    "typed", ["resume=" + "a" * 5000, "tags=" + "[" * 10_000, "tags=" + "{" * 500, "resume=a\x00b"]
)
def test_an_option_that_no_file_or_list_can_be(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with bounded(), pytest.raises(SystemExit) as left, readable():
        settled([typed], CONF, "train")
    assert left.value.code == 2
    assert len(capsys.readouterr().err) < 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_malformed_inputs_by_the_hundred(
    kind: Callable[..., Callable[[], object]], tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    COUNTS.clear()
    drawn(kind, 60, tmp_path, model)
    print(f"{sum(COUNTS.values())} malformed inputs of hypothesis's own seed: {dict(COUNTS)}")
