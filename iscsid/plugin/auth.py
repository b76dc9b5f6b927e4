"""How an authentication source describes itself, and what it answers: who may log in, and with which secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iscsid.plugin.info import API_VERSION, Option

#: CHAP's hash functions by the names that configurations have for them; ``text.chap`` has the numbers.
CHAP_ALGORITHMS: Final = ("MD5", "SHA1", "SHA-256", "SHA3-256")


@dataclass(frozen=True, slots=True)
class AuthInfo:
    """An authentication source: the name that ``source = ...`` gives, what it is, and its options (BackendInfo)."""

    name: str
    doc: str
    options: tuple[Option, ...] | None = None
    api: int = API_VERSION


class CredentialSource:
    """Secrets for CHAP. Asked in a worker's loop, and from its threads, once or twice for each login.

    No method may wait, but for a small local file. What one raises is logged and refuses the login, and no more. A
    source must take the same time for users that there are and users that there are not, and must show no secret in
    what it logs, raises or is printed as.

    Attributes:
        algorithms: the members of CHAP_ALGORITHMS that may be used.
    """

    algorithms: tuple[str, ...] = CHAP_ALGORITHMS

    def secret(self, user: str) -> bytes | None:
        """Return the secret that an initiator proves to be ``user`` with; None: there is no such user."""
        raise NotImplementedError

    def own(self) -> tuple[str, bytes] | None:
        """Return name and secret that the target proves itself with; None: it does not.

        The secret must be no initiator's (RFC 7143 section 9.2.1).
        """
        return None
