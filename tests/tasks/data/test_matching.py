"""Training rows drawn by the lengths of the evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from hydra.utils import instantiate

from skim.errors import SkimError
from skim.options.check import typed
from tasks.data.batches import LengthBatches, TokenBatches
from tasks.data.matching import matched
from tests.runs import small

PHRASES = np.random.default_rng(1).geometric(0.12, 600).clip(3, 60) + 2
SENTENCES = np.random.default_rng(2).normal(25, 8, 100).round().clip(5, 50).astype(int)


def epoch(kind: type, size: int, number: int = 0, world: int = 1, resumed: int = 0) -> list[list[list[int]]]:
    """``[rank][step]`` -> rows."""
    ranks = []
    for rank in range(world):
        sampler = kind(PHRASES, size, True, seed=3, rank=rank, world_size=world, like=SENTENCES)
        sampler.set_epoch(number)
        sampler.resumed = (number, resumed) if resumed else None
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) - resumed
    return ranks


def flat(ranks: list[list[list[int]]]) -> np.ndarray:
    return np.array([row for steps in ranks for batch in steps for row in batch])


def test_lengths_by_hand() -> None:
    assert matched(np.array([3, 9, 4, 3]), [4, 8]).tolist() == [4, 4, 9, 9]
    assert matched(np.array([3, 3, 7]), [5, 6, 99]).tolist() == [3, 7, 7]
    assert matched(np.array([5, 6, 7]), [6]).tolist() == [6, 6, 6]


@pytest.mark.parametrize(("kind", "size"), [(LengthBatches, 8), (TokenBatches, 300)])
@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_has_as_many_rows_as_long_as_those_evaluated(kind: type, size: int, world: int) -> None:
    one, other = flat(epoch(kind, size, 0, world)), flat(epoch(kind, size, 1, world))
    assert len(one) == len(other) == len(PHRASES)
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.quantile(PHRASES[one], quantiles) == pytest.approx(np.quantile(SENTENCES, quantiles), abs=1)
    assert np.array_equal(np.sort(PHRASES[one]), np.sort(PHRASES[other]))
    assert not np.array_equal(np.sort(one), np.sort(other)), "other rows of these lengths"
    for length in np.unique(PHRASES[one]):  # none again before all others of its length
        times = [np.count_nonzero(one == row) for row in np.flatnonzero(PHRASES == length)]
        assert max(times) - min(times) <= 1


def test_a_batch_of_tokens_keeps_its_budget_and_an_epoch_goes_on_where_it_was() -> None:
    steps = epoch(TokenBatches, 300, 2)[0]
    assert max(len(batch) * PHRASES[batch].max() for batch in steps) <= 300
    assert epoch(TokenBatches, 300, 2, resumed=5)[0] == steps[5:]


def test_a_task_draws_its_training_rows_and_evaluates_all() -> None:
    def lengths(*overrides: str) -> tuple[list[int], int]:
        task = instantiate(small(*overrides).task, _convert_="all", seed=1)
        task.setup_tokenizer(task.own_tokenizer())
        task.setup("fit")
        trained = [int(n) for batch in task.train_dataloader() for n in batch["attention_mask"].sum(1)]
        return sorted(trained), sum(len(batch["row"]) for batch in task.val_dataloader())

    plain, evaluated = lengths()
    same, still = lengths("task.match_lengths=true")
    assert len(plain) == len(same)
    assert (plain != same, evaluated) == (True, still)


def test_a_stream_has_no_lengths_to_draw_by() -> None:
    cfg = small("task=mlm", "task.streaming=true", "task.match_lengths=true", "task.max_train_samples=null")
    says = r"match_lengths=True needs all training rows at once.*\n.*match_lengths=false"
    with pytest.raises(SkimError, match=says), typed("task"):
        instantiate(cfg.task, _convert_="all", seed=1)
