"""Eight threads on one pipeline and one model: everybody gets the answers that he would get alone, nothing piles up."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, pipeline

import skim
from skim import SkimError
from skim.lightning.callbacks.memory import pages
from skim.pipelines.batches import Batched
from tests.pipelines.models import model_of, texts_of, tokenizer_of
from tests.pipelines.test_pipelines import near

THREADS = 8
METHODS: dict[str, Callable[[], skim.Method]] = {
    "topk": lambda: skim.TopK(target=0.5, start=1),
    "transkimmer": lambda: skim.Transkimmer(margin=0.0),
    "any budget": lambda: skim.TopK(target=[0.4, 1.0], start=1),
}
# threads that cut at different lengths, and some that do not cut
OPTIONS: list[dict[str, Any]] = [{}, *({"truncation": True, "max_length": n} for n in (6, 12, 24))]
MILLION = "a film " * 500_000


@pytest.fixture(autouse=True)
def _switching_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give others their turn at any time, and surely between a tokenizer's being told where to cut and its cutting."""
    told = PreTrainedTokenizerFast.set_truncation_and_padding

    def and_wait(tokenizer: Any, *args: Any, **options: Any) -> None:
        told(tokenizer, *args, **options)
        time.sleep(2e-4)

    monkeypatch.setattr(PreTrainedTokenizerFast, "set_truncation_and_padding", and_wait)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def served(method: str) -> Batched:
    model = skim.compress(model_of("text-classification"), METHODS[method]())
    return skim.pipeline("text-classification", model, tokenizer_of(), device="cpu", top_k=None)


class Requests:
    """Random requests to one pipeline, and the answers that each gets when nobody else asks.

    Args:
        pipe: with a compressed model.
        count: texts, each with options of its own.
        seed: of the texts and options.
    """

    def __init__(self, pipe: Batched, count: int, seed: int) -> None:
        draw = random.Random(seed)
        self.pipe = pipe
        self.asked = [(text, draw.choice(OPTIONS)) for text in texts_of(count, seed)]
        self.batches = [pipe.tokenizer(text, return_tensors="pt") for text, _ in self.asked]
        self.alone = [pipe(text, **options)[0] for text, options in self.asked]
        with torch.no_grad():
            self.logits = [pipe.model(**batch).logits for batch in self.batches]

    def one(self, draw: random.Random) -> None:
        """Ask something: a text, several that are cut alike, or the model itself."""
        k, kind = draw.randrange(len(self.asked)), draw.random()
        text, options = self.asked[k]
        if kind < 0.5:
            assert self.pipe(text, **options) == [self.alone[k]]
        elif kind < 0.8:
            some = [i for i, (_, others) in enumerate(self.asked) if others == options][:4]
            assert near(self.pipe([self.asked[i][0] for i in some], **options), [self.alone[i] for i in some])
        else:
            with torch.no_grad():
                assert torch.equal(self.pipe.model(**self.batches[k]).logits, self.logits[k])


def ask(requests: Requests, goes_on: Callable[[int], bool], seed: int) -> int:
    """Let eight threads ask; the number of requests, each of which was answered as alone."""

    def one_thread(number: int) -> int:
        draw, count = random.Random(1000 * seed + number), 0
        while goes_on(count):
            requests.one(draw)
            count += 1
        return count

    with ThreadPoolExecutor(THREADS) as threads:
        return sum(threads.map(one_thread, range(THREADS)))


def kept() -> int:
    """Count the tensors that something still holds."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("method", METHODS)
def test_answers_under_eight_threads_are_those_of_one(method: str) -> None:
    """And what was spent is counted to the last token, and no tensor stays behind."""
    pipe = served(method)
    requests = Requests(pipe, count=16, seed=1)
    lengths = {
        (text, str(options)): len(pipe.tokenizer(text, **options)["input_ids"]) for text, options in requests.asked
    }
    pipe.spent.tokens = 0
    whole = [(text, options) for text, options in requests.asked for _ in range(2)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda asked: pipe(asked[0], **asked[1]), whole))
    assert found == [[answer] for answer in requests.alone for _ in range(2)]
    assert pipe.spent.tokens == 2 * sum(lengths[text, str(options)] for text, options in requests.asked)
    before = kept()
    count = ask(requests, lambda count: count < 6, seed=2)
    assert kept() == before
    print(f"{method}: {count + len(whole)} requests of {THREADS} threads, seeds 1 and 2")


def test_a_million_tokens_are_refused_or_cut_and_the_others_are_answered() -> None:
    """Alone, and beside others in a list, of whom none is answered by half."""
    pipe = served("topk")
    requests = Requests(pipe, count=12, seed=3)
    cut = pipe(MILLION[:1000], truncation=True)

    def giant() -> str:
        with pytest.raises(SkimError) as refused:
            pipe(MILLION)
        with pytest.raises(SkimError, match="a text of 102 tokens is longer"):
            pipe([requests.asked[0][0], MILLION[: 7 * 50]])
        assert pipe(MILLION[: 7 * 10_000], truncation=True) == cut
        return str(refused.value)

    with ThreadPoolExecutor(1) as beside:
        said = beside.submit(giant)
        count = ask(requests, lambda count: count < 6, seed=4)
    print(f"{count} requests beside one of a million tokens")
    assert said.result() == (
        "text-classification: a text of 1,000,002 tokens is longer than the model, which takes 64: "
        f"{'a film ' * 8}a....\nCut it: truncation=True, or max_length=."
    )


def test_a_model_of_distances_reads_on_where_it_is_let() -> None:
    model, text = model_of("text-classification", "deberta-v3"), "a film " * 60
    plainly = pipeline("text-classification", model=model, tokenizer=tokenizer_of(), device="cpu", top_k=None)(text)
    pipe = skim.pipeline("text-classification", skim.compress(model, "dense"), tokenizer_of(), device="cpu", top_k=None)
    with pytest.raises(SkimError, match="122 tokens is longer than the model, which takes 64"):
        pipe(text)
    pipe.longest = None
    assert near(pipe([text]), plainly)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ten_minutes_of_eight_threads_leave_memory_as_it_was(method: str, share: float) -> None:
    """After a tenth of the time, in which heaps of threads and caches come to their size; giants among the requests."""
    pipe = served(method)
    requests = Requests(pipe, count=400, seed=5)
    started, seconds = time.monotonic(), 600 * share
    sizes: list[int] = []

    def goes_on(count: int) -> bool:
        if count % 50 == 0:
            sizes.append(pages())
        return time.monotonic() - started < seconds

    def giants() -> int:
        count = 0
        while time.monotonic() - started < seconds:
            with pytest.raises(SkimError, match="longer than the model"):
                pipe(MILLION)
            count += 1
        return count

    with ThreadPoolExecutor(1) as beside:
        refused = beside.submit(giants)
        count = ask(requests, goes_on, seed=6)
    warm, late = max(sizes[: len(sizes) // 5]), max(sizes[-len(sizes) // 5 :])
    asked = f"{count:,} requests of {THREADS} threads and {refused.result()} giants"
    print(f"{method}: {asked} in {seconds:.0f} s, seeds 5 and 6")
    print(f"pages of 4 KiB at most: {warm:,} in the first fifth, {late:,} in the last")
    assert late <= 1.02 * warm
