"""How a key is settled: one small object per rule of RFC 7143 section 6.2, with the bounds of its key.

A rule sees values as the text they have on the wire. ``choose`` is the responder's side, ``admits`` and ``implied`` the
originator's. ValueError says that the peer's value is not admissible; a responder may answer that with Reject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iscsid.text.codec import VALUE_LIMIT, format_boolean, parse_boolean, parse_list, parse_number

Value = bool | int | str


class Rule:
    """What all rules share: the checks of one value, and no opinion on who wins."""

    __slots__ = ()

    negotiated = True  # False: declared by one side, never answered

    def value(self, text: str) -> Value:
        """Return the value that ``text`` stands for."""
        raise NotImplementedError

    def check_offer(self, text: str) -> None:
        """Raise ValueError where ``text`` cannot be what one side offers; lists may hold more than a value may."""
        self.value(text)

    def choose(self, theirs: str, ours: str) -> str:
        """Return the answer to the proposal ``theirs`` of a responder that would like ``ours``."""
        raise NotImplementedError

    def admits(self, proposed: str, answer: str) -> bool:
        """Tell whether ``answer`` is a legal selection for what we proposed."""
        raise NotImplementedError

    def implied(self, proposed: str) -> str | None:
        """Return the outcome where the answer to ``proposed`` may be left out (section 6.2.2), else None."""
        return None


class Number(Rule):
    """A number from ``low`` to ``high``, both included."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def value(self, text: str) -> int:
        number = parse_number(text)
        if not self.low <= number <= self.high:
            raise ValueError(f"{number} is not in {self.low}..{self.high}")
        return number


class Minimum(Number):
    """The smaller of the two numbers is the outcome."""

    __slots__ = ()

    def choose(self, theirs: str, ours: str) -> str:
        return str(min(self.value(theirs), self.value(ours)))

    def admits(self, proposed: str, answer: str) -> bool:
        return self.value(answer) <= self.value(proposed)


class Maximum(Number):
    """The larger of the two numbers is the outcome."""

    __slots__ = ()

    def choose(self, theirs: str, ours: str) -> str:
        return str(max(self.value(theirs), self.value(ours)))

    def admits(self, proposed: str, answer: str) -> bool:
        return self.value(answer) >= self.value(proposed)


class And(Rule):
    """Yes only where both sides say Yes; a No needs no answer."""

    __slots__ = ()

    def value(self, text: str) -> bool:
        return parse_boolean(text)

    def choose(self, theirs: str, ours: str) -> str:
        return format_boolean(self.value(theirs) and self.value(ours))

    def admits(self, proposed: str, answer: str) -> bool:
        return self.value(proposed) or not self.value(answer)

    def implied(self, proposed: str) -> str | None:
        return None if self.value(proposed) else "No"


class Or(Rule):
    """Yes where one side says Yes; a Yes needs no answer."""

    __slots__ = ()

    def value(self, text: str) -> bool:
        return parse_boolean(text)

    def choose(self, theirs: str, ours: str) -> str:
        return format_boolean(self.value(theirs) or self.value(ours))

    def admits(self, proposed: str, answer: str) -> bool:
        return self.value(answer) or not self.value(proposed)

    def implied(self, proposed: str) -> str | None:
        return "Yes" if self.value(proposed) else None


class Choice(Rule):
    """A list in the originator's order of preference; the first member that the responder has is the outcome.

    ``known`` are the values the RFC names. A responder passes over what it does not know (section 6.2.1).
    """

    __slots__ = ("known",)

    def __init__(self, *known: str) -> None:
        self.known = known

    def value(self, text: str) -> str:
        if text not in self.known:
            raise ValueError(f"{text[:40]!r} is not one of {', '.join(self.known)}")
        return text

    def check_offer(self, text: str) -> None:
        for member in parse_list(text):
            self.value(member)

    def choose(self, theirs: str, ours: str) -> str:
        acceptable = parse_list(ours)
        for member in parse_list(theirs):
            if member in acceptable:
                return member
        raise ValueError(f"nothing in {theirs[:80]!r} is acceptable here ({ours})")

    def admits(self, proposed: str, answer: str) -> bool:
        return answer in parse_list(proposed)


class Fixed(Rule):
    """A key that is gone from the standard and has one answer for ever (section 13.25)."""

    __slots__ = ("answer",)

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def value(self, text: str) -> str:
        return text

    def choose(self, theirs: str, ours: str) -> str:
        return self.answer

    def admits(self, proposed: str, answer: str) -> bool:
        return answer == self.answer


class Declared(Rule):
    """Said by one side, not answered. ``read`` turns the text into the value or raises ValueError."""

    __slots__ = ("_read", "limit")

    negotiated = False

    def __init__(self, read: Callable[[str], Value], limit: int = VALUE_LIMIT) -> None:
        self._read = read
        self.limit = limit

    def value(self, text: str) -> Value:
        if len(text.encode()) > self.limit:
            raise ValueError(f"value is longer than {self.limit} bytes")
        return self._read(text)


def declared_number(low: int, high: int) -> Declared:
    """Return the rule of a declared number."""
    return Declared(Number(low, high).value)


def declared_text(limit: int = VALUE_LIMIT) -> Declared:
    """Return the rule of a declared text, which may be empty."""
    return Declared(str, limit)


def declared_choice(known: Iterable[str]) -> Declared:
    """Return the rule of a declared value out of ``known``."""
    return Declared(Choice(*known).value)
