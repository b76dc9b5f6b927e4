"""plugin.auth: what a source is without saying anything."""

from __future__ import annotations

import pytest

from iscsid.plugin.auth import CHAP_ALGORITHMS, CredentialSource


def test_source_that_says_nothing_proves_nothing_and_allows_every_algorithm() -> None:
    assert CredentialSource().own() is None
    assert CredentialSource().algorithms == CHAP_ALGORITHMS
    with pytest.raises(NotImplementedError):
        CredentialSource().secret("joe")
