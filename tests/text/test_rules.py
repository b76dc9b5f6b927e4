"""text.rules: each rule as responder (choose) and as originator (admits, implied)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.text import rules

numbers = st.integers(0, 3600).map(str)
booleans = st.sampled_from(["Yes", "No"])


@pytest.mark.parametrize(
    ("rule", "theirs", "ours", "answer"),
    [
        (rules.Minimum(1, 100), "50", "10", "10"),
        (rules.Minimum(1, 100), "5", "10", "5"),
        (rules.Minimum(1, 100), "0x20", "64", "32"),
        (rules.Maximum(0, 3600), "0", "2", "2"),
        (rules.Maximum(0, 3600), "20", "2", "20"),
        (rules.And(), "Yes", "Yes", "Yes"),
        (rules.And(), "Yes", "No", "No"),
        (rules.And(), "No", "Yes", "No"),
        (rules.And(), "No", "No", "No"),
        (rules.Or(), "Yes", "Yes", "Yes"),
        (rules.Or(), "Yes", "No", "Yes"),
        (rules.Or(), "No", "Yes", "Yes"),
        (rules.Or(), "No", "No", "No"),
        (rules.Or(), "no", "No", "No"),
        (rules.Choice("CRC32C", "None"), "CRC32C,None", "CRC32C,None", "CRC32C"),
        (rules.Choice("CRC32C", "None"), "None,CRC32C", "CRC32C,None", "None"),
        (rules.Choice("CRC32C", "None"), "X-sum,None", "CRC32C,None", "None"),
        (rules.Choice("CRC32C", "None"), "CRC32C,None", "None", "None"),
        (rules.Fixed("No"), "Yes", "", "No"),
        (rules.Fixed("Reject"), "8~16", "", "Reject"),
    ],
)
def test_choose_follows_the_rule(rule: rules.Rule, theirs: str, ours: str, answer: str) -> None:
    assert rule.choose(theirs, ours) == answer


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (rules.Minimum(512, 1000), "511", "1000"),
        (rules.Minimum(512, 1000), "1001", "1000"),
        (rules.Minimum(512, 1000), "many", "1000"),
        (rules.Maximum(0, 3600), "3601", "2"),
        (rules.And(), "maybe", "Yes"),
        (rules.Or(), "", "Yes"),
        (rules.Choice("CRC32C", "None"), "CRC32C", "None"),
        (rules.Choice("CRC32C", "None"), "", "None"),
    ],
)
def test_choose_of_an_inadmissible_proposal_is_a_value_error(rule: rules.Rule, theirs: str, ours: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        rule.choose(theirs, ours)


@pytest.mark.parametrize(
    ("rule", "proposed", "answer", "legal"),
    [
        (rules.Minimum(1, 100), "50", "50", True),
        (rules.Minimum(1, 100), "50", "1", True),
        (rules.Minimum(1, 100), "50", "51", False),
        (rules.Maximum(0, 3600), "2", "2", True),
        (rules.Maximum(0, 3600), "2", "1", False),
        (rules.And(), "No", "Yes", False),
        (rules.And(), "Yes", "No", True),
        (rules.Or(), "Yes", "No", False),
        (rules.Or(), "No", "Yes", True),
        (rules.Choice("CRC32C", "None"), "CRC32C", "None", False),
        (rules.Choice("CRC32C", "None"), "CRC32C,None", "None", True),
        (rules.Fixed("No"), "No", "No", True),
        (rules.Fixed("No"), "No", "Yes", False),
    ],
)
def test_admits_tells_legal_answers_from_others(rule: rules.Rule, proposed: str, answer: str, legal: bool) -> None:
    assert rule.admits(proposed, answer) is legal


@pytest.mark.parametrize(
    ("rule", "proposed", "outcome"),
    [
        (rules.And(), "No", "No"),
        (rules.And(), "Yes", None),
        (rules.Or(), "Yes", "Yes"),
        (rules.Or(), "No", None),
        (rules.Minimum(0, 9), "1", None),
        (rules.Choice("None"), "None", None),
    ],
)
def test_implied_is_the_outcome_that_needs_no_answer(rule: rules.Rule, proposed: str, outcome: str | None) -> None:
    assert rule.implied(proposed) == outcome


@settings(deadline=None)
@given(st.sampled_from([rules.Minimum(0, 3600), rules.Maximum(0, 3600)]), numbers, numbers)
def test_numbers_chosen_by_one_side_are_admitted_by_the_other(rule: rules.Rule, theirs: str, ours: str) -> None:
    assert rule.admits(theirs, rule.choose(theirs, ours))


@settings(deadline=None)
@given(st.sampled_from([rules.And(), rules.Or()]), booleans, booleans)
def test_booleans_chosen_by_one_side_are_admitted_by_the_other(rule: rules.Rule, theirs: str, ours: str) -> None:
    answer = rule.choose(theirs, ours)
    assert rule.admits(theirs, answer)
    assert rule.implied(theirs) in (None, answer)


def test_choice_offer_may_be_a_list_but_a_value_may_not() -> None:
    rule = rules.Choice("CRC32C", "None")
    rule.check_offer("CRC32C,None")
    assert rule.value("None") == "None"
    with pytest.raises(ValueError, match="not one of"):
        rule.value("CRC32C,None")
    with pytest.raises(ValueError, match="not one of"):
        rule.check_offer("CRC32C,MD5")


def test_number_offer_is_checked_like_a_value() -> None:
    rules.Minimum(512, 1024).check_offer("1024")
    with pytest.raises(ValueError, match="not in"):
        rules.Minimum(512, 1024).check_offer("1025")


def test_fixed_value_is_whatever_the_peer_says() -> None:
    assert rules.Fixed("No").value("Yes") == "Yes"


def test_declared_values_are_read_and_bounded() -> None:
    assert rules.declared_number(512, 1024).value("0x200") == 512
    assert rules.declared_choice(("Normal", "Discovery")).value("Normal") == "Normal"
    assert rules.declared_text().value("") == ""
    assert rules.declared_text(3).value("abc") == "abc"
    with pytest.raises(ValueError, match="longer than 3"):
        rules.declared_text(3).value("äb c")
    with pytest.raises(ValueError, match="not in"):
        rules.declared_number(512, 1024).value("0")
    with pytest.raises(ValueError, match="not one of"):
        rules.declared_choice(("Normal",)).value("normal")


@pytest.mark.parametrize("call", ["value", "choose", "admits"])
def test_a_rule_without_the_side_that_is_asked_says_so(call: str) -> None:
    arguments = ("1",) if call == "value" else ("1", "2")
    with pytest.raises(NotImplementedError):
        getattr(rules.Rule(), call)(*arguments)


def test_only_declared_keys_go_without_an_answer() -> None:
    assert not rules.declared_text().negotiated
    assert all(rule.negotiated for rule in (rules.And(), rules.Or(), rules.Choice("a"), rules.Fixed("No")))
