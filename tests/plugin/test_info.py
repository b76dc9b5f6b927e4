"""Sizes with units, and the check of options against a description."""

from __future__ import annotations

from typing import Any

import pytest

from iscsid.plugin.info import API_VERSION, MAX_SIZE, BackendInfo, LayerInfo, Option, check_options, near, parse_size

SIZES = [
    ("0", 0),
    ("512", 512),
    ("512B", 512),
    ("1K", 1024),
    ("1KiB", 1024),
    ("1KB", 1000),
    ("10 GiB", 10 << 30),
    ("10 gib", 10 << 30),
    (" 1.5T ", 3 << 39),
    ("0.5 KiB", 512),
    ("2 TB", 2 * 10**12),
    ("1 PiB", 1 << 50),
    ("1EiB", 1 << 60),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1 XiB", "1 Gi B", "1e9", "0x10", "1.", ".5", "1,5 G", "1.0001B", "9" * 30, "１０"]
)
def test_size_that_is_none_is_refused(text: str) -> None:
    if text == "１０":  # digits of another script are digits to Python: taken for what they are
        assert parse_size(text) == 10
        return
    with pytest.raises(ValueError, match="is not a"):
        parse_size(text)


def test_near_names_the_likely_one() -> None:
    assert near("szie", ["size", "path"]) == ' (did you mean "size"?)'
    assert near("colour", ["size", "path"]) == ""


def one(option: Option, value: Any) -> Any:
    values, problems = check_options((option,), {option.name: value})
    assert not problems, problems
    return values[option.name]


def problem(option: Option, value: Any) -> str:
    _, problems = check_options((option,), {option.name: value})
    assert len(problems) == 1
    return problems[0]


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("str", "x", "x"),
        ("str", "", ""),
        ("path", "/srv/x", "/srv/x"),
        ("int", -5, -5),
        ("bool", True, True),
        ("size", 4096, 4096),
        ("size", "4 KiB", 4096),
    ],
)
def test_value_of_its_type_is_converted(kind: str, given: Any, value: Any) -> None:
    assert one(Option("o", kind), given) == value


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("str", 5, "not a string"),
        ("path", "", "not a path"),
        ("path", "a\0b", "not a path"),
        ("path", ["x"], "not a string"),
        ("int", "5", "not a whole number"),
        ("int", 5.0, "not a whole number"),
        ("int", True, "not a whole number"),
        ("bool", 1, "neither true nor false"),
        ("bool", "yes", "neither true nor false"),
        ("size", -1, "is not from 0"),
        ("size", MAX_SIZE + 1, "is not from 0"),
        ("size", "8 EiB", "is not from 0"),
        ("size", True, "not a size"),
        ("size", 1.5, "not a size"),
        ("size", "big", "is not a size"),
    ],
)
def test_value_of_another_type_is_refused(kind: str, given: Any, words: str) -> None:
    message = problem(Option("o", kind), given)
    assert message.startswith("o: ")
    assert words in message


def test_value_out_of_range_is_refused() -> None:
    option = Option("o", "size", minimum=512, maximum=1024)
    assert one(option, 512) == 512
    assert one(option, 1024) == 1024
    assert "below 512" in problem(option, 511)
    assert "above 1024" in problem(option, "2 KiB")


def test_value_that_is_no_choice_is_refused_with_the_likely_one() -> None:
    option = Option("o", "str", choices=("writeback", "writethrough"))
    assert one(option, "writeback") == "writeback"
    assert problem(option, "writebak").endswith('is not one of writeback, writethrough (did you mean "writeback"?)')


SCHEMA = (
    Option("path", "path", required=True, doc="the file"),
    Option("size", "size", default=4096),
    Option("direct", "bool"),
)


def test_defaults_are_filled_in() -> None:
    assert check_options(SCHEMA, {"path": "x"}) == ({"path": "x", "size": 4096, "direct": None}, [])


def test_converted_options_convert_to_themselves() -> None:
    values, _ = check_options(SCHEMA, {"path": "x", "size": "1 MiB"})
    assert check_options(SCHEMA, values) == (values, [])


def test_every_problem_is_told() -> None:
    _, problems = check_options(SCHEMA, {"sise": 5, "direct": "no"})
    assert problems == [
        'sise: unknown option (did you mean "size"?)',
        "path: missing (the file)",
        "direct: 'no' is neither true nor false",
    ]


def test_unknown_option_passes_where_not_strict() -> None:
    values, problems = check_options(SCHEMA, {"path": "x", "claim": 7}, strict=False)
    assert values["claim"] == 7
    assert not problems


def test_required_option_may_not_be_none() -> None:
    assert "not a string" in problem(Option("o", "path", required=True), None)


def test_without_a_schema_everything_passes() -> None:
    assert check_options(None, {"any": object}) == ({"any": object}, [])


def test_option_of_an_unknown_type_is_the_authors_mistake() -> None:
    with pytest.raises(ValueError, match="number"):
        Option("o", "number")


def test_infos_are_of_this_api() -> None:
    assert BackendInfo("x", "").api == LayerInfo("x", "").api == API_VERSION == 1
