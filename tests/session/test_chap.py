"""session.chap: our two sides against each other, every way to fail, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError, LoginError, RemoteProtocolError
from iscsid.session.chap import AuthenticationFailed, ChapInitiator, ChapTarget
from iscsid.session.login import Admission, InitiatorLogin, LoginFailed, TargetLogin
from iscsid.text import chap
from iscsid.text.chap import Account
from iscsid.text.codec import Pair, format_binary
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest, LoginResponse

USERS = {"joe": b"a secret of joe's", "ann": b"a secret of ann's"}
OWN = Account("disk0", b"a secret of the disk's")
NONCE = bytes(range(chap.NONCE_LENGTH))
OTHER = bytes(range(100, 100 + chap.NONCE_LENGTH))
INITIATOR = "iqn.2010-11.org.example:host"
TARGET = "iqn.2026-11.org.iscsid:disk0"
METHOD = [("AuthMethod", "CHAP")]


def target(**options: object) -> ChapTarget:
    return ChapTarget(USERS.get, NONCE, **options)  # type: ignore[arg-type]


def initiator(user: str = "joe", secret: bytes = USERS["joe"], **options: object) -> ChapInitiator:
    return ChapInitiator(user, secret, OTHER, **options)  # type: ignore[arg-type]


def mutual(**options: object) -> ChapInitiator:
    return initiator(**{"target_user": OWN.user, "target_secret": OWN.secret, **options})


def converse(ours: ChapInitiator, theirs: ChapTarget) -> list[list[Pair]]:
    """Hand texts to and fro until nobody has more to say; return all of them."""
    texts = [ours.offer()]
    while texts[-1] and len(texts) < 20:
        side = theirs if len(texts) % 2 else ours
        texts.append(side.receive(texts[-1]))
    return texts


def status_of(error: pytest.ExceptionInfo[LoginError]) -> int:
    return error.value.status


def test_pair_proves_the_initiator() -> None:
    ours, theirs = initiator(), target()
    assert not ours.done and not theirs.done
    texts = converse(ours, theirs)
    assert [[name for name, _ in text] for text in texts] == [
        ["AuthMethod"],
        ["AuthMethod"],
        ["CHAP_A"],
        ["CHAP_A", "CHAP_I", "CHAP_C"],
        ["CHAP_N", "CHAP_R"],
        [],
    ]
    assert ours.done and theirs.done
    assert theirs.user == "joe"


def test_pair_proves_both() -> None:
    ours, theirs = mutual(), target(own=OWN)
    texts = converse(ours, theirs)
    assert [name for name, _ in texts[4]] == ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"]
    assert [name for name, _ in texts[5]] == ["CHAP_N", "CHAP_R"]
    assert ours.done and theirs.done


@pytest.mark.parametrize("algorithm", chap.ALGORITHMS)
def test_pair_speaks_every_algorithm(algorithm: int) -> None:
    ours, theirs = mutual(algorithms=(algorithm,)), target(own=OWN, algorithms=(7, algorithm))
    texts = converse(ours, theirs)
    assert texts[3][0] == ("CHAP_A", str(algorithm))
    assert theirs.user == "joe"


def test_initiators_order_of_algorithms_decides_among_those_allowed() -> None:
    theirs = target(algorithms=(5, 7))
    theirs.receive(METHOD)
    assert theirs.receive([("CHAP_A", "x,8,99,7,5")])[0] == ("CHAP_A", "7")


# A target that refuses.


def at_proof(theirs: ChapTarget, algorithm: int = 5) -> tuple[int, bytes]:
    theirs.receive([("AuthMethod", "None,CHAP")])
    said = dict(theirs.receive([("CHAP_A", str(algorithm))]))
    return int(said["CHAP_I"]), bytes.fromhex(said["CHAP_C"][2:])


def proof(user: str, secret: bytes, asked: tuple[int, bytes]) -> list[Pair]:
    return [("CHAP_N", user), ("CHAP_R", format_binary(chap.digest(5, asked[0], secret, asked[1])))]


@pytest.mark.parametrize("offer", ["None", "KRB5,None", "chap", "", ","])
def test_target_never_accepts_another_method(offer: str) -> None:
    theirs = target()
    with pytest.raises(LoginError) as caught:
        theirs.receive([("AuthMethod", offer)])
    assert status_of(caught) == LoginStatus.AUTHENTICATION_FAILURE
    assert not theirs.done


def test_target_refuses_when_no_algorithm_is_allowed() -> None:
    theirs = target(algorithms=(7, 8))
    theirs.receive(METHOD)
    with pytest.raises(LoginError) as caught:
        theirs.receive([("CHAP_A", "5,6")])
    assert status_of(caught) == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize(("user", "secret"), [("joe", b"wrong"), ("jim", USERS["joe"]), ("Joe", USERS["joe"])])
def test_target_tells_nobody_what_was_wrong(user: str, secret: bytes) -> None:
    theirs = target(own=OWN)
    with pytest.raises(LoginError, match=f"user '{user}'") as caught:
        theirs.receive(proof(user, secret, at_proof(theirs)))
    assert status_of(caught) == LoginStatus.AUTHENTICATION_FAILURE
    assert not theirs.done
    assert theirs.user == ""
    assert not any(known.decode() in str(caught.value) for known in USERS.values())


def test_target_does_the_same_work_for_a_user_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[int] = []
    real = chap.digest

    def counting(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        work.append(algorithm)
        return real(algorithm, identifier, secret, challenge)

    done = []
    for user in ("joe", "jim"):
        theirs = target(own=OWN)
        asked = at_proof(theirs)
        said = [*proof(user, b"a wrong secret..", asked), ("CHAP_I", "1"), ("CHAP_C", "0x0102")]
        with monkeypatch.context() as patch:
            patch.setattr(chap, "digest", counting)
            with pytest.raises(LoginError):
                theirs.receive(said)
        done.append(list(work))
        work.clear()
    assert done[0] == done[1]


def test_target_refuses_the_proof_of_another_algorithms_length() -> None:
    theirs = target()
    at_proof(theirs, 7)
    with pytest.raises(LoginError):
        theirs.receive([("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16)])


def test_target_refuses_its_own_challenge_sent_back() -> None:
    theirs = target(own=OWN)
    asked = at_proof(theirs)
    said = [*proof("joe", USERS["joe"], asked), ("CHAP_I", str(asked[0])), ("CHAP_C", format_binary(asked[1]))]
    with pytest.raises(LoginError, match="own challenge"):
        theirs.receive(said)
    assert not theirs.done


def test_target_refuses_a_user_who_has_its_own_secret() -> None:
    theirs = ChapTarget({"joe": OWN.secret}.get, NONCE, own=OWN)
    with pytest.raises(LoginError, match="secret of the target") as caught:
        theirs.receive(proof("joe", OWN.secret, at_proof(theirs)))
    assert status_of(caught) == LoginStatus.AUTHENTICATION_FAILURE


def test_target_without_a_secret_refuses_who_asks_for_its_proof() -> None:
    with pytest.raises(LoginError, match="wants a proof") as caught:
        converse(mutual(), target())
    assert status_of(caught) == LoginStatus.AUTHENTICATION_FAILURE


def test_target_does_not_prove_itself_to_who_fails() -> None:
    theirs = target(own=OWN)
    said = [*proof("joe", b"wrong", at_proof(theirs)), ("CHAP_I", "1"), ("CHAP_C", "0x0102")]
    with pytest.raises(LoginError):
        theirs.receive(said)


@pytest.mark.parametrize(
    "said",
    [
        [("CHAP_N", "joe")],
        [("CHAP_R", "0x" + "00" * 16)],
        [("CHAP_N", "joe"), ("CHAP_R", "00" * 16)],
        [("CHAP_N", ""), ("CHAP_R", "0x" + "00" * 16)],
        [("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_I", "1")],
        [("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_C", "0x01")],
        [("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_I", "256"), ("CHAP_C", "0x01")],
        [("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_I", "1"), ("CHAP_C", "0x" + "00" * 1025)],
        [("CHAP_N", "joe"), ("CHAP_N", "ann"), ("CHAP_R", "0x" + "00" * 16)],
        [("CHAP_N", "joe"), ("CHAP_R", "0x" + "00" * 16), ("CHAP_A", "5")],
        [("AuthMethod", "None")],
        [("CHAP_N", "j\noe"), ("CHAP_R", "0x" + "00" * 16)],
    ],
)
def test_target_refuses_what_is_no_proof(said: Sequence[Pair]) -> None:
    theirs = target(own=OWN)
    at_proof(theirs)
    with pytest.raises(LoginError) as caught:
        theirs.receive(said)
    assert status_of(caught) == LoginStatus.INITIATOR_ERROR
    assert not theirs.done


def test_target_refuses_keys_out_of_order_and_after_the_end() -> None:
    with pytest.raises(LoginError):
        target().receive([("CHAP_A", "5")])
    theirs = target()
    converse(initiator(), theirs)
    with pytest.raises(LoginError):
        theirs.receive(METHOD)


def test_target_waits_through_texts_without_keys() -> None:
    theirs = target()
    assert theirs.receive([]) == []
    assert not theirs.done


# An initiator that refuses.


def test_initiator_offers_none_too_unless_it_wants_a_proof() -> None:
    assert initiator().offer() == [("AuthMethod", "CHAP,None")]
    assert mutual().offer() == [("AuthMethod", "CHAP")]


def test_initiator_is_content_with_none_unless_it_wants_a_proof() -> None:
    ours = initiator()
    assert ours.receive([("AuthMethod", "None")]) == []
    assert ours.done
    with pytest.raises(AuthenticationFailed):
        mutual().receive([("AuthMethod", "None")])


def challenged(ours: ChapInitiator, challenge: str = "0x0102") -> ChapInitiator:
    ours.receive(METHOD)
    ours.receive([("CHAP_A", "5"), ("CHAP_I", "7"), ("CHAP_C", challenge)])
    return ours


@pytest.mark.parametrize("secret", [b"wrong", USERS["joe"]])
def test_initiator_refuses_a_target_with_another_secret(secret: bytes) -> None:
    ours = challenged(mutual())
    response = chap.digest(5, OTHER[0], secret, OTHER[1:17])
    with pytest.raises(AuthenticationFailed, match="another secret"):
        ours.receive([("CHAP_N", OWN.user), ("CHAP_R", format_binary(response))])


def test_initiator_refuses_a_target_of_another_name() -> None:
    ours = challenged(mutual())
    response = chap.digest(5, OTHER[0], OWN.secret, OTHER[1:17])
    with pytest.raises(AuthenticationFailed, match="disk1"):
        ours.receive([("CHAP_N", "disk1"), ("CHAP_R", format_binary(response))])


def test_initiator_takes_any_name_when_it_was_told_none() -> None:
    ours = challenged(mutual(target_user=""))
    response = chap.digest(5, OTHER[0], OWN.secret, OTHER[1:17])
    assert ours.receive([("CHAP_N", "disk1"), ("CHAP_R", format_binary(response))]) == []


def test_initiator_refuses_a_target_that_passes_over_its_challenge() -> None:
    with pytest.raises(AuthenticationFailed, match="does not prove"):
        challenged(mutual()).receive([])


def test_initiator_refuses_its_own_challenge() -> None:
    with pytest.raises(AuthenticationFailed, match="foreseen"):
        challenged(mutual(), format_binary(OTHER[1:17]))


@pytest.mark.parametrize(
    "said",
    [
        [],
        [("CHAP_A", "5")],
        [("CHAP_A", "5"), ("CHAP_I", "1")],
        [("CHAP_A", "5"), ("CHAP_I", "-1"), ("CHAP_C", "0x01")],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0x")],
        [("CHAP_A", "5"), ("CHAP_I", "1"), ("CHAP_C", "0b====")],
        [("CHAP_A", "9"), ("CHAP_I", "1"), ("CHAP_C", "0x01")],
        [("CHAP_A", "5,7"), ("CHAP_I", "1"), ("CHAP_C", "0x01")],
        [("CHAP_A", "Reject")],
        [("CHAP_N", "x"), ("CHAP_R", "0x01")],
    ],
)
def test_initiator_refuses_what_is_no_challenge(said: Sequence[Pair]) -> None:
    ours = initiator()
    ours.receive(METHOD)
    with pytest.raises(RemoteProtocolError):
        ours.receive(said)


@pytest.mark.parametrize(
    "options",
    [
        {"user": ""},
        {"secret": b""},
        {"target_user": "disk0"},
        {"target_secret": USERS["joe"]},
        {"algorithms": ()},
        {"algorithms": (4,)},
    ],
)
def test_initiator_with_credentials_that_cannot_be_used_is_refused(options: Mapping[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        initiator(**options)  # type: ignore[arg-type]


def test_a_nonce_of_another_length_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        ChapTarget(USERS.get, b"")


def test_no_secret_is_in_a_repr() -> None:
    assert "secret" not in repr(OWN)
    assert "secret" not in repr(initiator()) + repr(target(own=OWN))


# In whole logins.


def meet(ours: InitiatorLogin, theirs: TargetLogin) -> int:
    requests, count = [ours.start()], 0
    while requests:
        request = requests.pop()
        count += 1
        sent = LoginRequest.unpack(request.pack(), 0, b"", bytes(request.data))
        try:
            (response,) = theirs.receive(sent)
        except LoginError as error:
            response = theirs.failure(sent, error.status)
        requests += ours.receive(LoginResponse.unpack(response.pack(), 0, b"", bytes(response.data)))
    return count


def login(authenticator: ChapInitiator | None = None, **options: object) -> InitiatorLogin:
    return InitiatorLogin(INITIATOR, TARGET, isid=1, authenticator=authenticator, **options)  # type: ignore[arg-type]


def guarded(**options: object) -> TargetLogin:
    return TargetLogin(lambda *_: Admission(authenticator=target(**options)), tsih=3)


def test_login_with_chap_takes_four_requests() -> None:
    ours, theirs = login(initiator()), guarded()
    assert meet(ours, theirs) == 4
    assert ours.done and theirs.done


def test_login_with_chap_both_ways_takes_four_requests() -> None:
    ours, theirs = login(mutual()), guarded(own=OWN)
    assert meet(ours, theirs) == 4
    assert ours.done and theirs.done


@pytest.mark.parametrize("ours", [{}, {"skip_security": True}])
def test_login_without_credentials_is_refused(ours: dict[str, object]) -> None:
    theirs = guarded()
    with pytest.raises(LoginFailed) as caught:
        meet(login(**ours), theirs)
    assert caught.value.status == LoginStatus.AUTHENTICATION_FAILURE
    assert not theirs.done


def test_login_that_leaves_the_stage_half_way_is_not_let_on() -> None:
    theirs = guarded()
    data = f"InitiatorName={INITIATOR}\0TargetName={TARGET}\0AuthMethod=CHAP\0".encode()
    request = LoginRequest(csg=0, nsg=3, transit=True, isid=1, data=data)
    (response,) = theirs.receive(request)
    assert not response.transit
    with pytest.raises(LoginError):
        theirs.receive(LoginRequest(csg=1, nsg=3, transit=True, isid=1))
    assert not theirs.done


def test_login_to_a_target_that_asks_nobody_goes_on_without_chap() -> None:
    ours, theirs = login(initiator()), TargetLogin(lambda *_: 0, tsih=3)
    meet(ours, theirs)
    assert ours.done


def test_login_to_a_target_that_asks_nobody_fails_when_it_should_prove_itself() -> None:
    with pytest.raises(LoginFailed):
        meet(login(mutual()), TargetLogin(lambda *_: 0, tsih=3))


def test_credentials_with_the_security_stage_skipped_are_refused() -> None:
    with pytest.raises(LocalProtocolError):
        login(initiator(), skip_security=True)


# Noise.

NAMES = st.sampled_from(["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"])
VALUES = st.one_of(
    st.sampled_from(
        ["CHAP", "None", "5", "7,5", "0", "255", "0x00", "0b", "0bAAAA", "0x" + "ab" * 16, "joe", "Reject"]
    ),
    st.text(max_size=40),
    st.binary(min_size=1, max_size=1100).map(lambda data: "0x" + data.hex()),
)
TEXTS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=4), max_size=6)


@given(texts=TEXTS, progress=st.integers(0, 2))
def test_hostile_keys_raise_login_errors_only_and_open_nothing(texts: list[list[Pair]], progress: int) -> None:
    theirs = target(own=OWN)
    honest: list[list[Pair]] = [METHOD, [("CHAP_A", "7")]]
    for text in honest[:progress]:
        theirs.receive(text)
    try:
        for text in texts:
            theirs.receive(text)
    except LoginError as error:
        assert error.status in (LoginStatus.AUTHENTICATION_FAILURE, LoginStatus.INITIATOR_ERROR)
    assert not theirs.done


@given(texts=TEXTS, progress=st.integers(0, 2))
def test_hostile_target_raises_protocol_errors_only_and_proves_nothing(texts: list[list[Pair]], progress: int) -> None:
    ours = mutual()
    honest: list[list[Pair]] = [METHOD, [("CHAP_A", "7"), ("CHAP_I", "1"), ("CHAP_C", "0x0102")]]
    for text in honest[:progress]:
        ours.receive(text)
    try:
        for text in texts:
            ours.receive(text)
            if ours.done and text and text[0][0] == "CHAP_N":
                pytest.fail("noise is no proof")
    except RemoteProtocolError:
        pass
