"""LIO's ``saveconfig.json``, as targetcli writes it, to a draft of a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from iscsid.compat.draft import Draft, Table, auth, disk, portal

_PARAMETERS: Final = (
    "InitialR2T",
    "ImmediateData",
    "MaxBurstLength",
    "FirstBurstLength",
    "MaxOutstandingR2T",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
)


def read(text: str) -> Draft:
    """Return what a configuration of iscsid can say of it. Raises ValueError for what is no JSON object."""
    try:
        said = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(said, dict):
        raise ValueError("no object")
    return _Reader(text, said).draft


class _Reader:
    """JSON tells no lines: those of notes are where the name first stands."""

    def __init__(self, text: str, said: Mapping[str, Any]) -> None:
        self.draft = Draft()
        self._text = text
        self._portals: dict[str, None] = {}
        self._stores = {
            f"/backstores/{store.get('plugin')}/{store.get('name')}": store
            for store in _tables(said, "storage_objects")
        }
        for target in _tables(said, "targets"):
            self._target(target)
        if self._portals:
            self.draft.server["portals"] = list(self._portals)

    def _line(self, word: object) -> int:
        place = self._text.find(json.dumps(word))
        return self._text.count("\n", 0, place) + 1 if place >= 0 else 1

    def _target(self, target: Mapping[str, Any]) -> None:
        name = str(target.get("wwn", ""))
        line = self._line(name)
        if target.get("fabric") != "iscsi":
            self.draft.note(line, f"{name}: fabric {target.get('fabric')}: left out")
            return
        groups = [group for group in _tables(target, "tpgs") if group.get("enable", True)]
        if not groups:
            self.draft.note(line, f"{name}: no portal group is enabled: left out")
            return
        if len(groups) > 1:
            self.draft.note(line, f"{name}: only the first of its {len(groups)} portal groups is translated")
        group = groups[0]
        table: Table = {"name": name}
        if not self._guests(line, name, group, table):
            return
        parameters = {
            key: _parameter(group["parameters"][key]) for key in _PARAMETERS if key in group.get("parameters", {})
        }
        if parameters:
            table["parameters"] = parameters
        for address in _tables(group, "portals"):
            self._portals[portal(str(address.get("ip_address", "0.0.0.0")), int(address.get("port", 3260)))] = None
        luns = list(self._luns(group))
        if luns:
            table["lun"] = luns
        self.draft.targets.append(table)

    def _guests(self, line: int, name: str, group: Mapping[str, Any], table: Table) -> bool:
        """Who may come, and what they have to prove; False: nobody may."""
        attributes = group.get("attributes", {})
        acls = list(_tables(group, "node_acls"))
        if not int(attributes.get("generate_node_acls", 0)):
            if not acls:
                self.draft.note(line, f"{name}: no initiator may use it (no node_acls): left out")
                return False
            table["initiators"] = [str(acl.get("node_wwn", "")) for acl in acls]
        if int(attributes.get("authentication", 0)):
            holders = [holder for holder in (*acls, group) if holder.get("chap_userid") and holder.get("chap_password")]
            accounts = [(str(holder["chap_userid"]), str(holder["chap_password"])) for holder in holders]
            mutuals = {
                (str(holder["chap_mutual_userid"]), str(holder["chap_mutual_password"]))
                for holder in holders
                if holder.get("chap_mutual_userid") and holder.get("chap_mutual_password")
            }
            if len(mutuals) > 1:
                self.draft.note(line, f"{name}: the target proves itself with several secrets; one of them is kept")
            found = auth(self.draft, line, accounts, min(mutuals, default=None))
            if found is None:
                self.draft.note(line, f"{name}: it asks for authentication, and nobody has an account: left out")
                return False
            if len(holders) > 1:
                self.draft.note(line, f"{name}: an account is no longer bound to one initiator's name")
            table["auth"] = found
        return True

    def _luns(self, group: Mapping[str, Any]) -> Iterator[Table]:
        demo = int(group.get("attributes", {}).get("generate_node_acls", 0))
        guarded = demo and int(group.get("attributes", {}).get("demo_mode_write_protect", 1))
        mapped = [entry for acl in _tables(group, "node_acls") for entry in _tables(acl, "mapped_luns")]
        for entry in mapped:
            if entry.get("index") != entry.get("tpg_lun"):
                line = self._line(entry.get("alias", "mapped_luns"))
                self.draft.note(line, "a LUN has another number for an initiator: all have the numbers of the target")
                break
        for lun in _tables(group, "luns"):
            index = lun.get("index")
            here = [bool(entry.get("write_protect")) for entry in mapped if entry.get("tpg_lun") == index]
            table = self._disk(str(lun.get("storage_object", "")))
            if table is None or not isinstance(index, int):
                continue
            if (here and all(here)) or (guarded and not here):
                table["readonly"] = True
            elif any(here):
                self.draft.note(
                    self._line(lun.get("storage_object")), f"LUN {index} can be written by all, not only by some"
                )
            yield {"lun": index, **table}

    def _disk(self, name: str) -> Table | None:
        store = self._stores.get(name)
        if store is None:
            self.draft.note(self._line(name), f"{name} is not there")
            return None
        line, plugin = self._line(store.get("name")), store.get("plugin")
        if plugin == "ramdisk":
            table: Table = {"backend": "ram", "size": int(store.get("size", 0))}
        elif plugin in ("fileio", "block"):
            path = str(store.get("dev", ""))
            table = disk(
                self.draft, line, path, int(store["size"]) if plugin == "fileio" and store.get("size") else None
            )
        else:
            self.draft.note(line, f"{name}: there is no {plugin} here: left out")
            return None
        serial = str(store.get("wwn") or "")
        if 0 < len(serial) <= 36:
            table["serial"] = serial
        block_size = store.get("attributes", {}).get("block_size", 0)
        if isinstance(block_size, int) and block_size > 512:
            table["block_size"] = block_size
        if store.get("readonly"):
            table["readonly"] = True
        return table


def _tables(table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = table.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _parameter(value: object) -> bool | int | str:
    if value in ("Yes", "No"):
        return value == "Yes"
    return int(value) if isinstance(value, str) and value.isdecimal() else str(value)
