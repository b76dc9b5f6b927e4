"""The names and values of a handle."""

from __future__ import annotations

import pytest

from iscsid.compat.variables import Variables


def test_any_name_is_taken_and_set_anew() -> None:
    variables = Variables()
    assert variables.getvar("no such variable") is None
    assert variables.setvar("no such variable", "1") == 1
    assert variables.setvar("no such variable", "2") == 1
    assert variables.getvar("no such variable") == "2"
    assert variables.getvar("No such variable") is None


def test_reset_forgets_all_but_the_defaults() -> None:
    variables = Variables()
    variables.setvar("debug", "all")
    variables.reset({"iqn": "x"})
    assert (variables.getvar("debug"), variables.getvar("iqn")) == (None, "x")


def test_a_hundred_names_are_kept() -> None:  # the original's table broke at about thirty
    variables = Variables()
    for number in range(100):
        variables.setvar(f"name {number}", str(number))
    assert [variables.getvar(f"name {number}") for number in range(100)] == [str(number) for number in range(100)]


def test_value_that_is_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        Variables().setvar("iqn", None)  # type: ignore[arg-type]
