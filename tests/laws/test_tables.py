"""The tables have every method, every family and every head."""

from __future__ import annotations

from skim import backbones
from skim.methods import METHODS as REGISTERED
from tests.families import FAMILIES, HEADS, config_of, has
from tests.laws.cases import THREE, TWO, Case, cases, looks_apart, of_law
from tests.methods.table import METHODS


def test_the_tables_are_the_registries() -> None:
    assert {row.make().name for row in METHODS.values()} == set(REGISTERED)
    assert {config_of(name).model_type for name in FAMILIES} == set(backbones.families()) - {"funnel"}


def test_the_default_selection_has_all_methods_all_families_and_all_heads() -> None:
    some, wide = cases(heads=FAMILIES), cases("wide", heads=FAMILIES)
    assert set(some) < set(wide) < set(cases("full", heads=FAMILIES))
    for once in (False, True):
        sample = cases(once=once)
        assert set(sample) < set(cases("wide", once=once))
        assert {case.method for case in sample} == set(METHODS)
        assert {case.family for case in sample} == set(FAMILIES)
    assert {case.family for case in some if case.row.is_chain} == set(THREE)
    assert {case.head for case in some} == set(HEADS)
    assert {(case.family, case.head) for case in some} >= {(f, head) for f in THREE for head in HEADS if has(f, head)}


def test_a_law_loses_no_method_by_the_sample() -> None:
    """Chains run on one family each: where that one does not pack, they would be in no test of what packs."""

    def packs(case: Case) -> bool:
        return "packed" in case.executions

    assert {case.method for case in cases() if packs(case)} < set(METHODS)
    assert {case.method for case in of_law("default", packs)} == set(METHODS)


def test_the_wide_selection_has_methods_on_three_families() -> None:
    some = cases("wide", heads=FAMILIES)
    for family in FAMILIES:
        assert len({case.method for case in some if case.family == family}) > len(TWO)
    for name, row in METHODS.items():
        families = {case.family for case in some if case.method == name}
        can = {family for family in THREE if looks_apart(family) or not row.apart}
        assert families >= can or (row.is_chain and "bert" in families and len(families & can) == 2)
    chains = [case for case in some if case.row.is_chain]
    assert {case.family for case in chains} >= set(THREE)


def test_which_families_look_apart() -> None:
    apart = {family for family in FAMILIES if looks_apart(family)}
    assert {"albert", "albert-shared", "roberta", "esm", "modernbert", "eurobert", "distilbert"} <= apart
    assert not apart & {"mobilebert", "deberta-v3", "xlnet", "mpnet"}
