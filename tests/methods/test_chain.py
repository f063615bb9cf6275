"""Chains: whose hook runs on what, who pays, who adapts, and which pairs are refused. The laws run over chains too."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import skim
from skim.calibration import check_target, spend
from skim.engine.masked import MaskedOccupancy
from skim.engine.tokens import Sequences, TokenBatch
from skim.errors import SkimError
from skim.methods import Method
from skim.methods.chain import CLASHES
from skim.options.check import typed
from tests.families import batch_of, labels_of, plain
from tests.laws.cases import Case, usual
from tests.methods.table import METHODS
from tests.ragged import Scripted, assert_same

BATCH = batch_of("bert")


def chained(*methods, family: str = "bert", **options) -> torch.nn.Module:
    return skim.compress(copy.deepcopy(plain(family)), list(methods), **options).eval()


def run(model: torch.nn.Module, execution: str = "auto") -> Tensor:
    with torch.no_grad(), skim.execution(model, execution):
        return model(**BATCH).logits


class Noting(skim.Method):
    """Notes what its hooks are given; its luggage is the layers it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[Tensor, TokenBatch]] = []
        self.seen: list[int] = []

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        self.seen.append(i)
        return tokens.carrying((*(tokens.carry or ()), i))

    def wants_received(self, i: int) -> bool:
        return True

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        assert received is not None
        self.received.append((received, tokens))
        return tokens


class Idle(skim.Method):
    """Does nothing, and protects nobody."""

    does = frozenset()

    def __init__(self) -> None:
        super().__init__(())


# pairs that cannot be

REFUSED = {
    "act and funnel": lambda: [skim.ACT(), skim.Funnel()],
    "funnel and act": lambda: [skim.Funnel(residual=True), skim.ACT()],
    "funnel and funnel": lambda: [skim.Funnel(), skim.Funnel(pooling="max")],
    "act and act": lambda: [skim.ACT(), skim.ACT(mix="act")],
    "early_exit and early_exit": lambda: [skim.EarlyExit(), skim.EarlyExit(halting="entropy")],
    "act and topk": lambda: [skim.ACT(), skim.TopK(start=1)],
    "ltp and act": lambda: [skim.LTP(), skim.ACT()],
    "funnel and transkimmer": lambda: [skim.Funnel(decoder_layers=1), skim.Transkimmer()],
    "early_exit and funnel": lambda: [skim.EarlyExit(), skim.Funnel(decoder_layers=1)],
}


@pytest.mark.parametrize("pair", REFUSED)
def test_pairs_that_cannot_be_are_refused_by_name(pair: str) -> None:
    model = copy.deepcopy(plain("bert"))
    with pytest.raises(SkimError, match=f"^{pair} cannot be in one chain: "):
        skim.compress(model, REFUSED[pair]())
    assert not hasattr(model, "skim_walk")
    skim.compress(model, "dense")  # nothing of the chain is left on the model


def test_every_clash_has_a_pair_that_shows_it() -> None:
    shown = set()
    for make in REFUSED.values():
        one, other = make()
        shown |= {
            clash
            for clash in CLASHES
            for a, b in ((one, other), (other, one))
            if {clash[0]} <= a.does and {clash[1]} <= b.does
        }
    assert shown == set(CLASHES)


@pytest.mark.parametrize("paper", [skim.Transkimmer, skim.LTP, skim.Funnel])
def test_published_quirks_are_refused(paper: type) -> None:
    with pytest.raises(SkimError, match="with preset=paper"):
        chained(skim.LayerDrop(2), paper(preset="paper"))


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ([skim.Transkimmer, "ltp"], "A chain takes methods, and got"),
        (["transkimmer", 3], "A chain takes methods, and got 3"),
        ([{"name": "ltp"}, "dense"], "A chain takes methods, and got {'name': 'ltp'}"),
        ([{"method": "ltp", 3: 4}, "dense"], "A chain takes methods, and got"),
        ([Method(), "dense"], "Method is what methods derive from"),
        ([skim.Dense()] * 2, "stands in this chain twice"),
        ([{"method": "ltp", "targt": 0.5}, "dense"], "targt.*is not an option of LTP"),
        (["transkimer", "dense"], "transkimmer"),
        (["dense"], "must be a list of 2 or more values"),
        ([], "must be a list of 2 or more values"),
    ],
)
def test_what_is_no_chain_is_refused(methods: list, words: str) -> None:
    with pytest.raises(SkimError, match=f"(?s){words}"):
        skim.Chain(methods)


def test_a_chain_has_one_budget() -> None:
    with pytest.raises(SkimError, match="transkimmer and ltp of this chain both have a target"):
        skim.Chain([skim.Transkimmer(target=0.5), skim.LTP(target=0.4)])
    with pytest.raises(SkimError, match="transkimmer and transkimmer_2"):
        skim.Chain([skim.Transkimmer(target=0.5), skim.Transkimmer(target=0.4)])


def test_a_chain_is_no_member() -> None:
    with pytest.raises(SkimError, match="A chain cannot be in a chain"):
        skim.Chain([skim.Chain(), "dense"])


def test_a_method_in_use_is_no_member_and_one_that_does_nothing_does_not_fit() -> None:
    used = skim.Transkimmer()
    skim.compress(copy.deepcopy(plain("bert")), used)
    with pytest.raises(SkimError, match="serves another model already"):
        skim.Chain([used, "dense"])
    with pytest.raises(SkimError, match="merges nothing"):
        chained("dense", skim.Funnel(blocks=[3])).method.check_fit()


def test_a_member_serves_the_model_of_its_chain() -> None:
    member = skim.Transkimmer()
    model, other = chained(member, "dense"), copy.deepcopy(plain("bert"))
    for taken in (lambda: skim.compress(other, member), lambda: skim.Chain([member, "dense"])):
        with pytest.raises(SkimError, match="serves another model already"):
            taken()
    skim.decompress(model)
    skim.compress(other, member)


def test_what_a_member_has_learned_stays() -> None:
    alone = skim.compress(copy.deepcopy(plain("bert")), skim.Transkimmer())
    learned = alone.method
    torch.nn.init.normal_(learned.predictors["0"][4].weight, std=2.0)
    wanted = run(alone)
    skim.decompress(alone)
    model = chained(learned, "dense")
    assert_same(run(model), wanted)
    skim.decompress(model)
    with pytest.raises(SkimError, match=r"built for another backbone \(layers was 3 and is 2\)"):
        chained(skim.LayerDrop(2), learned)


def test_layers_that_nobody_lets_run_are_refused() -> None:
    with pytest.raises(SkimError, match="leave no layer that runs"):
        chained(skim.LayerDrop((0,)), skim.LayerDrop((1, 2)))


# whose hook runs on what


@pytest.mark.parametrize("name", [name for name in METHODS if "+" not in name])
def test_a_method_beside_one_that_does_nothing_is_that_method(name: str) -> None:
    """Its hooks, what it hands on and what it puts back are its own, wherever it stands."""
    row = METHODS[name]
    case = Case(name, "bert", usual("bert", row.reads_head))
    alone, batch = case.compressed(), case.batch()
    for place, pair in enumerate([[row.make(), Idle()], [Idle(), row.make()]]):
        model = skim.compress(skim.decompress(copy.deepcopy(alone)), pair).eval()
        model.method.members[place].load_state_dict(alone.method.state_dict())
        for execution in case.executions:
            found = []
            for one in (alone, model):
                with torch.no_grad(), skim.execution(one, execution):
                    found.append(one(**batch).logits.nan_to_num())
            assert torch.equal(*found)
            assert torch.equal(model.trace.flops(), alone.trace.flops())
            assert torch.equal(model.trace.alive(), alone.trace.alive())


def test_states_are_put_back_by_the_member_that_merges() -> None:
    """Funnel adds its residual to what the head reads, beside others as alone."""
    alone = skim.compress(copy.deepcopy(plain("bert")), skim.Funnel(residual=True)).eval()
    chain, without = chained(Idle(), skim.Funnel(residual=True), Idle()), chained(Idle(), skim.Funnel())
    for execution in ("masked", "packed", "narrowed"):
        wanted = run(alone, execution)
        assert torch.equal(run(chain, execution), wanted)
        assert not torch.allclose(run(without, execution), wanted, atol=1e-3)


def test_received_attention_follows_the_rows() -> None:
    """The second method gets what the first one got, of the rows that the first one left."""
    keep = torch.zeros(3, *BATCH["input_ids"].shape)
    keep[:, :, ::3] = 1  # of every three tokens one stays
    for execution in ("masked", "packed", "narrowed"):
        first, second = Noting(), Noting()
        model = chained(first, Scripted(keep, between=True, protect=("cls",)), second)
        run(model, execution)
        assert len(first.received) == len(second.received) == 3
        for (whole, before), (rest, after) in zip(first.received, second.received, strict=True):
            assert rest.shape == after.hidden.shape[:-1]
            blank = torch.zeros(BATCH["input_ids"].shape)
            one, other = before.occupancy.put(whole, blank), after.occupancy.put(rest, blank)
            there = after.occupancy.alive()
            assert there.sum() < BATCH["attention_mask"].sum() / 2
            assert torch.equal(one[there], other[there])


def test_each_member_carries_its_own() -> None:
    one, other = Noting(), Noting()
    model = chained(one, "dense", other)
    run(model)
    assert model.trace.carry == ((0, 1, 2), None, (0, 1, 2))


def test_members_count_the_layers_that_run() -> None:
    one = Noting()
    model = chained(skim.LayerDrop((0, 2)), one)
    run(model)
    assert one.seen == [0, 1]
    assert one.spec.layers == 2
    assert [layer.ran for layer in model.trace.layers] == [True, False, True]


def test_a_cost_is_charged_on_the_rows_that_paid_it() -> None:
    """The second Transkimmer's predictors run over what the first one has left."""
    model = chained(skim.Transkimmer(), skim.Transkimmer())
    for predictor in model.method.members[0].predictors.values():
        torch.nn.init.normal_(predictor[4].weight, std=2.0)
    run(model)
    for layer in model.trace.layers:
        first, second = (int(charge.occupancy.counts().sum()) for charge in layer.charges)
        assert second == int(model.trace.layers[0].charges[1].occupancy.counts().sum()) or second < first
    assert model.trace.layers[0].charges[1].occupancy.counts().sum() < model.trace.lengths.sum()


def test_what_was_charged_stays_charged_when_rows_are_unmerged() -> None:
    """Each pays as it comes to the layer: before it is merged, and merged before all tokens are rows again."""

    class Paying(Idle):
        def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
            return tokens.charge(per_row=7.0)

    for execution in ("masked", "packed", "narrowed"):
        model = chained(Paying(), skim.Funnel(decoder_layers=1))
        run(model, execution)
        trace, counts = model.trace, model.trace.counts()
        assert (counts[2] > counts[1]).all()
        paid = torch.stack([sum(charge.flops() for charge in layer.charges) for layer in trace.layers])
        assert torch.equal(paid, 7.0 * counts[[0, 0, 1]].double())


def test_what_any_member_protects_stays() -> None:
    keep = torch.zeros(3, *BATCH["input_ids"].shape)
    model = chained(Scripted(keep), skim.Transkimmer(protect=("cls", "sep")))
    run(model)
    ids, left = BATCH["input_ids"], model.trace.alive()[-1]
    separators = (ids == model.config.sep_token_id) & BATCH["attention_mask"].bool()
    assert separators.any()
    assert left[separators].all()
    assert left[:, 0].all()


# penalties, stages, the budget


def test_penalties_are_named_by_member_and_add_up() -> None:
    model = chained(skim.Transkimmer(warmup=0.0), skim.Transkimmer(coefficient=0.25, warmup=0.0)).train()
    model(**BATCH)
    total, log = model.method.weighed(model.trace)
    assert log["transkimmer/skim_loss_weight"] == 0.5
    assert log["transkimmer_2/skim_loss_weight"] == 0.25
    assert torch.allclose(total, 0.5 * log["transkimmer/skim_loss"] + 0.25 * log["transkimmer_2/skim_loss"])
    assert model.method.weights() == {"transkimmer/skim_loss": 0.5, "transkimmer_2/skim_loss": 0.25}


def test_stages_are_the_members_and_reach_those_that_have_them() -> None:
    chain = skim.Chain(["transkimmer", "ltp"])
    assert (chain.stages, chain.stage) == (("soft", "hard"), "soft")
    chain.enter("hard")
    assert [member.stage for member in chain.members] == ["hard", "hard"]
    assert not chain.trains_masked
    assert chain.stage_shares == {"soft": 0.67, "hard": 0.33}  # Transkimmer asks for them
    assert not skim.Chain(["layer_drop", "topk"]).trains_masked


class Staged(skim.Method):
    """Has stages of its own names."""

    stages = ("first", "second")


class Unstaged(skim.Method):
    """Has a schedule over the whole of training."""


def test_a_later_stage_finds_every_member_at_its_last() -> None:
    """As after the stages before it, also where those were never entered: in a chain that is loaded."""
    chain = skim.Chain(["ltp", Staged()])
    chain.enter("second")
    assert [member.stage for member in chain.members] == ["hard", "second"]
    chain.enter("soft")
    assert chain.members[0].stage == "soft"


def test_members_progress_is_that_of_their_own_training() -> None:
    """Of the whole without stages, of the present one, 0 before the first, 1 behind the last; also set, as by a resume.

    ``chain.progress`` is what a trainer tells and a checkpoint holds: the share of the present stage.
    """
    chain = skim.Chain([Unstaged(), "ltp", Staged()])

    def own() -> list[float]:
        return [round(member.progress, 6) for member in chain.members]

    chain.stage_shares = {"soft": 0.2, "hard": 0.3, "first": 0.1, "second": 0.4}
    chain.progress = 0.5
    assert own() == [0.1, 0.5, 0.0]
    chain.enter("hard")
    chain.step(0.1)
    assert (chain.progress, own()) == (0.1, [0.23, 0.1, 0.0])
    assert all(member.stepped for member in chain.members)
    chain.enter("first")
    chain.step(1.0)
    assert own() == [0.6, 1.0, 1.0]
    chain.enter("second")
    assert own() == [1.0, 1.0, 1.0]
    chain.stage_shares = {}  # nobody has said: as long as each other
    chain.step(0.0)
    assert own() == [0.75, 1.0, 0.0]


def test_a_schedule_of_the_whole_training_does_not_begin_again_with_a_stage() -> None:
    """ACT's budget is on the target in the stages of others as well."""
    chain = skim.Chain([skim.ACT(target=0.4, warmup=0.3), Staged()])
    goals = []
    for stage in ("first", "second"):
        chain.enter(stage)
        for progress in (0.0, 0.5):
            chain.progress = progress
            goals.append(round(chain.members[0].budget.goal(chain.members[0].progress), 6))
    assert goals == [1.0, 0.5, 0.4, 0.4]


def test_noise_fades_in_the_soft_stage_and_hard_decisions_have_none() -> None:
    skimmer = skim.Transkimmer(noise_until=0.6).train()
    real = torch.ones(2, 3, dtype=torch.bool)
    sequences = Sequences(real, ~real)
    rows = MaskedOccupancy(sequences.position, real, sequences)
    found = []
    for stage in skimmer.stages:
        skimmer.enter(stage)
        for skimmer.progress in (0.0, 0.5, 0.7):
            found.append(skimmer.noise(0, rows) is not None)
    assert found == [True, True, False, False, False, False]


def test_thresholds_are_read_once_per_forward() -> None:
    """On a device the host waits for them; the chain asks each member once in a layer (law 10)."""
    asked: list[int] = []

    class Asked(skim.LTP):
        def wants_received(self, i: int) -> bool:
            asked.append(i)
            return super().wants_received(i)

    run(chained(skim.LayerDrop(2), Asked(final_token_threshold=0.1), "dense"))
    assert asked == [0, 1]


def test_a_member_that_asks_for_no_attention_is_told_none() -> None:
    class Late(Noting):
        def wants_received(self, i: int) -> bool:
            return i == 2

        def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
            assert (received is None) == (i < 2)
            return tokens

    model = chained(Noting(), Late())
    run(model)
    assert len(model.method.members[0].received) == 3


def test_each_member_has_its_own_learning_rate_in_each_stage() -> None:
    chain = skim.Chain([Unstaged(), "ltp", Staged()])
    rates = {stage: [member.peak_rate(stage) for member in chain.by_label.values()] for stage in chain.stages}
    assert rates == {
        "soft": [1e-3, 1e-5, 0.0],
        "hard": [1e-3, 0.0, 0.0],
        "first": [1e-3, 0.0, 1e-3],
        "second": [1e-3, 0.0, 1e-3],
    }


def test_one_member_adapts_to_the_budget_of_the_whole() -> None:
    """Half of the layers are gone already; the member with the target brings the chain there, by its own decisions."""
    model = chained(skim.LayerDrop((0, 1)), skim.Transkimmer(target=0.5), skim.TopK(start=1, token_keep_rate=0.9))
    chain, (_, skimmer, topk) = model.method, model.method.members
    for predictor in skimmer.predictors.values():
        torch.nn.init.normal_(predictor[4].weight, std=2.0)
    assert (chain.target, chain.adapting) == (0.5, skimmer)
    spent = skim.calibrate(model, [BATCH])
    assert abs(spent - 0.5) < 0.03
    assert spend(model, [BATCH]) == spent
    assert float(skimmer.shift) != 0
    assert float(topk.shift) == 0
    assert float(chain.shift) == float(skimmer.shift)
    model.train()(**BATCH)
    chain.step(0.5, model.trace)
    assert float(skimmer.budget.last) == 0.5
    assert list(chain.terms(model.trace)) == ["transkimmer/relative_flops"]


def test_a_target_above_what_the_layers_that_run_can_spend_is_refused() -> None:
    model = chained(skim.LayerDrop(1), skim.Transkimmer(target=0.9))
    with pytest.raises(SkimError, match=r"target=0\.9\).*no more than 0\.37"):
        check_target(model, [BATCH])
    assert float(model.method.shift) == 0
    check_target(chained(skim.LayerDrop(1), skim.Transkimmer(target=0.37)), [BATCH])


def test_a_members_options_are_refused_in_words_that_fit_the_command_line() -> None:
    """There, ``method.target`` would be an option of the chain."""
    for methods in ([{"method": "ltp", "target": 7}, "dense"], [{"method": "layer_drop", "layers": 9}, "dense"]):
        with (
            pytest.raises(SkimError, match=r"^(LTP\(target=7\): must be|method\.layer_drop\.layers=9 asks for)"),
            typed("method"),
        ):
            chained(*methods)


def test_inputs_without_a_token_are_refused() -> None:
    model = chained(skim.Transkimmer(), "dense")
    with pytest.raises(SkimError, match="no token in them"):
        skim.calibrate(model, [{name: torch.zeros_like(value) for name, value in BATCH.items()}], 0.5)
    with pytest.raises(SkimError, match="got a NoneType"):
        skim.calibrate(model, None, 0.5)
    with pytest.raises(SkimError, match="method=chain has no one number"):
        skim.calibrate(chained("layer_drop", "dense"), [BATCH], 0.5)


def test_without_a_target_the_last_member_with_a_shift_is_calibrated() -> None:
    model = chained(skim.Transkimmer(), skim.TopK(start=0), "dense")
    skim.calibrate(model, [BATCH], 0.6)
    assert float(model.method.members[1].shift) != 0
    assert float(model.method.members[0].shift) == 0


def test_the_task_loss_is_that_of_the_member_that_reads_the_head() -> None:
    model = chained(skim.Transkimmer(), skim.EarlyExit(halting="pondernet")).train()
    inputs = BATCH | labels_of("classification", BATCH)
    torch.manual_seed(0)
    loss = model(**inputs).loss
    torch.manual_seed(0)
    logits = model(**BATCH).logits
    _, exits = model.method.members
    view = model.method._seen_by(model.trace)[1][2]
    assert torch.allclose(loss, exits.task_loss(logits, inputs["labels"], view))


# save and load


def test_round_trip(tmp_path: Path) -> None:
    model = chained(skim.LayerDrop(2), skim.Funnel(blocks=[1, 1]), skim.LTP(final_token_threshold=0.2))
    model.method.enter("hard")
    model.method.members[2].delta.data += 0.05
    wanted = run(model)
    skim.save_pretrained(model, tmp_path)
    again = skim.from_pretrained(tmp_path).eval()
    assert_same(run(again), wanted)
    assert again.method.options() == model.method.options()
    assert [member.stage for member in again.method.members] == ["", "", "hard"]
    assert torch.equal(again.trace.flops(), model.trace.flops())
    assert skim.decompress(again).__class__.__name__ == type(model).__name__


class Mine(skim.Transkimmer):
    """Has the name of what it derives from."""


@skim.register
class Known(skim.Transkimmer):
    """Has a name of its own, and is found by it."""

    name = "known_in_chains"


def test_a_member_that_is_not_found_by_its_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = chained(Mine(), "dense")
    for save in (lambda: skim.save_pretrained(model, tmp_path / "a"), lambda: model.save_pretrained(tmp_path / "a")):
        with pytest.raises(
            SkimError, match=r"'transkimmer' does not stand for .*Mine\.\nGive .*skim\.register\(Mine\)"
        ):
            save()
    assert not (tmp_path / "a").exists()
    skim.save_pretrained(chained(Known(), "dense"), tmp_path / "b")
    assert type(skim.from_pretrained(tmp_path / "b").method.members[0]) is Known
