"""FreeBSD's ``ctl.conf``, as ctld(8) reads it, to a draft of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from iscsid.compat.draft import Draft, Table, auth, disk, number_of_bytes, portal

_TOKEN: Final = re.compile(r'#[^\n]*|"((?:[^"\\\n]|\\.)*)"|[{};\n]|[^\s{};"#]+')
_SILENT: Final = frozenset(["debug", "timeout", "maxproc", "pidfile", "isns-server", "isns-period", "isns-timeout"])
_NOBODY: Final = ("no-access", "default")  # the group "default" lets nobody in unless it is written down


@dataclass(slots=True)
class Statement:
    """Words, and what stands in braces behind them."""

    line: int
    words: list[str]
    body: list[Statement] = field(default_factory=list)

    def all(self, *words: str) -> Iterator[Statement]:
        return (entry for entry in self.body if entry.words[0] in words)

    def value(self, word: str) -> str:
        """What the last statement of this word says, "" if there is none."""
        return next((entry.words[1] for entry in reversed(self.body) if entry.words[0] == word and entry.words[1:]), "")


def parse(text: str, draft: Draft) -> Statement:
    """Return the file as a tree; braces that do not match are noted."""
    root = Statement(0, [""])
    inside, line, first = [root], 1, 1
    words: list[str] = []
    for match in _TOKEN.finditer(text + "\n"):
        token = match[0]
        if token.startswith("#"):
            continue
        if token == "{" and words:
            inside.append(Statement(first, words))
            inside[-2].body.append(inside[-1])
            words = []
        elif token in ("\n", ";", "}", "{"):
            if words:
                inside[-1].body.append(Statement(first, words))
                words = []
            if token == "}" and len(inside) > 1:
                inside.pop()
            elif token in "{}":
                draft.note(line, f"a {token} that does not belong there")
            line += token == "\n"
        else:
            first = first if words else line
            words.append(token if match[1] is None else re.sub(r"\\(.)", r"\1", match[1]))
    for statement in inside[1:]:
        draft.note(statement.line, f"{' '.join(statement.words)} is not closed")
    return root


def read(text: str) -> Draft:
    """Return what a configuration of iscsid can say of it."""
    draft = Draft()
    return _Reader(draft, parse(text, draft)).draft


class _Reader:
    def __init__(self, draft: Draft, root: Statement) -> None:
        self.draft = draft
        self._auth = {entry.words[1]: entry for entry in root.all("auth-group") if entry.words[1:]}
        self._portals = {entry.words[1]: entry for entry in root.all("portal-group") if entry.words[1:]}
        self._luns = {entry.words[1]: entry for entry in root.all("lun") if entry.words[1:]}
        listened: dict[str, None] = {}
        for entry in root.body:
            word = entry.words[0]
            if word == "target" and entry.words[1:]:
                self._target(entry, listened)
            elif word not in _SILENT and word not in ("auth-group", "portal-group", "lun"):
                draft.note(entry.line, f"{word} is not translated")
        if listened:
            draft.server["portals"] = list(listened)

    def _target(self, target: Statement, listened: dict[str, None]) -> None:
        table: Table = {"name": target.words[1]}
        if target.value("alias"):
            table["alias"] = target.value("alias")
        if not self._guests(target, table):
            return
        for entry in target.all("portal-group"):
            for address in self._portals.get(entry.words[-1 if len(entry.words) < 3 else 1], Statement(0, [""])).all(
                "listen"
            ):
                host, port = _split(address.words[-1])
                listened[portal(host, port)] = None
        if len(list(target.all("portal-group"))) > 1:
            self.draft.note(target.line, "all portals are one portal group")
        luns = list(self._disks(target))
        if luns:
            table["lun"] = luns
        known = ("alias", "portal-group", "auth-group", "auth-type", "chap", "chap-mutual", "lun")
        for entry in target.body:
            if entry.words[0] not in (*known, "initiator-name", "initiator-portal"):
                self.draft.note(entry.line, f"{entry.words[0]} is not translated")
        self.draft.targets.append(table)

    def _guests(self, target: Statement, table: Table) -> bool:
        """Who may come, and what they have to prove; False: nobody may."""
        name = target.value("auth-group")
        own = list(target.all("chap", "chap-mutual", "initiator-name", "initiator-portal", "auth-type"))
        group = Statement(target.line, [""], own) if own else self._auth.get(name or "default")
        if name == "no-authentication":
            group = Statement(target.line, [""])
        if group is None:
            why = f"there is no auth-group {name}" if name and name not in _NOBODY else "nobody may use it"
            self.draft.note(target.line, f"{target.words[1]}: {why}: left out")
            return False
        if group.value("auth-type") == "deny":
            self.draft.note(group.line, f"{target.words[1]}: nobody may use it: left out")
            return False
        accounts, mutual = [], None
        for entry in group.all("chap", "chap-mutual"):
            if len(entry.words) < 3:
                self.draft.note(entry.line, f"{entry.words[0]} needs a user and a secret")
                return False
            accounts.append((entry.words[1], entry.words[2]))
            if len(entry.words) >= 5:
                mutual = (entry.words[3], entry.words[4])
        if (found := auth(self.draft, group.line, accounts, mutual)) is not None:
            table["auth"] = found
        for word, key in (("initiator-name", "initiators"), ("initiator-portal", "networks")):
            guests = [_plain_host(entry.words[-1]) for entry in group.all(word)]
            if guests:
                table[key] = list(dict.fromkeys(guests))
        return True

    def _disks(self, target: Statement) -> Iterator[Table]:
        for entry in target.all("lun"):
            number = entry.words[1] if entry.words[1:] else ""
            lun = self._luns.get(entry.words[2]) if len(entry.words) > 2 else entry
            if not number.isdecimal() or lun is None:
                self.draft.note(entry.line, f"{' '.join(entry.words)}: there is no such lun")
                continue
            table = self._disk(lun)
            if table is not None:
                yield {"lun": int(number), **table}

    def _disk(self, lun: Statement) -> Table | None:
        size = number_of_bytes(lun.value("size")) if lun.value("size") else None
        if lun.value("backend") == "ramdisk":
            table: Table = {"backend": "ram", "size": size or 0}
        elif lun.value("path"):
            table = disk(self.draft, lun.line, lun.value("path"), size)
        else:
            self.draft.note(lun.line, f"{' '.join(lun.words)} has no path: left out")
            return None
        if lun.value("blocksize").isdecimal():
            table["block_size"] = int(lun.value("blocksize"))
        if lun.value("serial"):
            table["serial"] = lun.value("serial")[:36]
        for entry in lun.body:
            if entry.words[0] == "option" and len(entry.words) > 2:
                self._option(entry, table)
            elif entry.words[0] not in ("path", "size", "backend", "blocksize", "serial"):
                self.draft.note(entry.line, f"{entry.words[0]} is not translated")
        return table

    def _option(self, entry: Statement, table: Table) -> None:
        word, value = entry.words[1], entry.words[2]
        if word == "vendor":
            table["vendor"] = value[:8]
        elif word == "product":
            table["product"] = value[:16]
        elif word in ("readonly", "removable"):
            table[word] = value.lower() in ("on", "yes", "true", "1")
        else:
            self.draft.note(entry.line, f"option {word} is not translated")


def _split(address: str) -> tuple[str, int]:
    """Host and port of ``listen``: "0.0.0.0", "[::]:3261", "host:3260"."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and (host.endswith("]") or ":" not in host):
        return host.strip("[]"), int(port)
    return address.strip("[]"), 3260


def _plain_host(word: str) -> str:
    """A network without the brackets that ctl.conf may have around an IPv6 address."""
    return word.replace("[", "").replace("]", "")
