"""The login phase for either role: the names that other rooms use."""

from __future__ import annotations

from iscsid.session.authentication import AcceptNone, Authenticator, OfferNone
from iscsid.session.chap import AuthenticationFailed, ChapInitiator, ChapTarget
from iscsid.session.login_initiator import InitiatorLogin, LoginFailed
from iscsid.session.login_target import Admission, Authority, Redirect, TargetLogin
from iscsid.session.params import Parameters

__all__ = [
    "AcceptNone",
    "Admission",
    "AuthenticationFailed",
    "Authenticator",
    "Authority",
    "ChapInitiator",
    "ChapTarget",
    "InitiatorLogin",
    "LoginFailed",
    "OfferNone",
    "Parameters",
    "Redirect",
    "TargetLogin",
]
