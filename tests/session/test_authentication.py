"""session.authentication: the two sides that know no method but None."""

from __future__ import annotations

import pytest

from iscsid.errors import LoginError, RemoteProtocolError
from iscsid.session.authentication import AcceptNone, OfferNone
from iscsid.text.keys import AUTHENTICATION_KEYS, KEYS
from iscsid.wire.const import LoginStatus


@pytest.mark.parametrize("offer", ["None", "CHAP,None", "None,CHAP", "KRB5,SRP,CHAP,None", "X-own,None"])
def test_target_picks_none_wherever_it_is_offered(offer: str) -> None:
    target = AcceptNone()
    assert target.done
    assert target.offer() == []
    assert target.receive([("AuthMethod", offer)]) == [("AuthMethod", "None")]


def test_target_accepts_a_stage_without_any_key() -> None:
    assert AcceptNone().receive([]) == []


@pytest.mark.parametrize("offer", ["CHAP", "CHAP,KRB5", "", "none", ","])
def test_target_refuses_who_insists_on_a_method(offer: str) -> None:
    with pytest.raises(LoginError) as caught:
        AcceptNone().receive([("AuthMethod", offer)])
    assert caught.value.status == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize("pair", [("CHAP_A", "5"), ("CHAP_N", "joe"), ("AuthResult", "Yes")])
def test_target_refuses_keys_of_a_method_that_was_not_chosen(pair: tuple[str, str]) -> None:
    with pytest.raises(LoginError) as caught:
        AcceptNone().receive([pair])
    assert caught.value.status == LoginStatus.INITIATOR_ERROR


def test_target_refuses_a_second_choice_of_method() -> None:
    target = AcceptNone()
    target.receive([("AuthMethod", "None")])
    with pytest.raises(LoginError) as caught:
        target.receive([("AuthMethod", "None")])
    assert caught.value.status == LoginStatus.INITIATOR_ERROR


def test_initiator_offers_none_and_is_content_with_it() -> None:
    initiator = OfferNone()
    assert initiator.done
    assert initiator.offer() == [("AuthMethod", "None")]
    assert initiator.receive([("AuthMethod", "None")]) == []
    assert initiator.receive([]) == []


@pytest.mark.parametrize("answer", [("AuthMethod", "CHAP"), ("AuthMethod", "Reject"), ("CHAP_A", "5")])
def test_initiator_without_credentials_gives_up_when_asked_for_them(answer: tuple[str, str]) -> None:
    with pytest.raises(RemoteProtocolError, match="authentication"):
        OfferNone().receive([answer])


def test_neither_side_knows_the_key_authresult() -> None:
    # NetBSD's target believes a peer that says AuthResult=Yes; here the key does not even exist.
    assert "AuthResult" not in AUTHENTICATION_KEYS
    assert "AuthResult" not in KEYS
