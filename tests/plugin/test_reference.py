"""docs/hooks.md is what the specifications say."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from iscsid.plugin import reference
from iscsid.plugin.info import API_VERSION

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hooks.md"


def test_page_is_current() -> None:
    assert PAGE.read_text() == reference.page()


def test_page_says_the_version_of_the_door() -> None:
    assert f"`API_VERSION` {API_VERSION}" in PAGE.read_text()


@pytest.mark.parametrize("name", reference.hooks())
def test_every_hook_is_documented_once_with_its_arguments(name: str) -> None:
    page = PAGE.read_text()
    assert page.count(f"### `{name}`\n") == 1
    (signature,) = [line for line in page.splitlines() if line.startswith(f"{name}(")]
    for argument in inspect.signature(reference.hooks()[name]).parameters.values():
        assert f"{argument.name}: {argument.annotation}" in signature
    assert "``" not in page.replace("```", "")


def test_text_of_a_hook_is_its_docstring() -> None:
    words = "Make the medium. For tools; the server never calls it."
    assert words in (reference.hooks()["iscsid_create"].__doc__ or "")
    assert words in PAGE.read_text()
