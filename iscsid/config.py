"""TOML to specs: the only place that knows what a key of the configuration file is called.

What a key may hold stands in the tables ``SERVER``, ``TARGET`` and ``LUN``; a back end's and a layer's own keys come
from its ``BackendInfo``. Everything that is wrong is collected and told at once, each with its table, key and reason.
Defaults are those of ``specs``: a key that is left out is left out of the record too.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from iscsid.errors import ConfigError, PluginError, Problem
from iscsid.plugin.claims import Claim, claims_of
from iscsid.plugin.info import Option, check_options, near
from iscsid.plugin.manager import BUILTIN, PROVIDED_BY, Plugins
from iscsid.plugin.manager import load as load_plugins
from iscsid.plugin.members import MAX_DEPTH
from iscsid.specs import ACCESS_STATES, AccessSpec, AuthSpec, LayerSpec, LunSpec, PortalSpec, ServerSpec, TargetSpec
from iscsid.text.codec import parse_number
from iscsid.text.keys import OFFERABLE, TARGET_OFFERS, check_offer
from iscsid.values import (
    Read,
    array,
    block_size,
    boolean,
    choice,
    folder,
    initiator_pattern,
    integer,
    iscsi_name,
    kind_of,
    network,
    portal,
    runtime_folder,
    seconds,
    text,
    workers,
)

MAX_FILE_SIZE = 16 << 20  # a configuration of thousands of targets is a few hundred KiB
MAX_PORTAL_GROUP_TAG = 65535  # 16 bits; 0 is left out, for a target port group has the number of its portal group
MAX_LUN = 0x3FFF  # what flat space addressing can name (SAM-5 4.7.7.3)

NOBODY = "cannot be empty: without the key everybody may come, and a target for nobody is left out"

PluginLoader = Callable[..., Plugins]

_INDEX = re.compile(r"\[\d+\]")


# -- tables ------------------------------------------------------------------------------------------------------------

SERVER: dict[str, Read] = {
    "portals": array(portal),
    "workers": workers,
    "runtime_dir": runtime_folder,
    "state_dir": folder,
    "plugin_dirs": array(folder),
    "disabled_plugins": array(text(255)),
    "log_level": choice("debug", "info", "warning", "error"),
    "login_timeout": seconds(1, 3600),
    "max_pending_logins": integer(1, 65536),
    "max_pending_logins_per_host": integer(1, 65536),
    "max_sessions": integer(1, 65535),  # a TSIH has 16 bits and 0 is none (RFC 7143 section 11.12.6)
    "nop_interval": seconds(0, 86400),
    "nop_timeout": seconds(1, 3600),
    "stop_timeout": seconds(0, 3600),
    "worker_timeout": seconds(5, 3600),
    "io_timeout": seconds(1, 3600),
}

PORTAL_GROUP: dict[str, Read] = {
    "tag": integer(1, MAX_PORTAL_GROUP_TAG),
    "portals": array(portal),
}

TARGET: dict[str, Read] = {
    "name": iscsi_name,
    "alias": text(255),  # a text value (RFC 7143 section 6.1)
    "initiators": array(initiator_pattern, empty=NOBODY),
    "networks": array(network, empty=NOBODY),
    "auth": lambda value: value,  # read by auth
    "portal_group": lambda value: value,  # read by _access
    "parameters": lambda value: value,  # read by _parameters
    "lun": lambda value: value,  # read by _luns
}

ACCESS: dict[str, Read] = {
    "tag": integer(1, MAX_PORTAL_GROUP_TAG),
    "state": choice(*ACCESS_STATES),
    "preferred": boolean,
}

LUN: dict[str, Read] = {
    "lun": integer(0, MAX_LUN),
    "backend": text(255),
    "block_size": block_size,
    "io_timeout": seconds(1, 3600),
    "readonly": boolean,
    "removable": boolean,
    "loaded": boolean,
    "serial": text(36, printable_ascii=True),  # room for a UUID
    "vendor": text(8, printable_ascii=True),  # T10 VENDOR IDENTIFICATION (SPC-4 6.4.2)
    "product": text(16, printable_ascii=True),  # PRODUCT IDENTIFICATION
    "layers": lambda value: value,  # read by _layers
}

DISCOVERY: dict[str, Read] = {"auth": lambda value: value}  # read by auth

DEFAULT_SOURCE = "chap"

# What may be negotiated by RFC 7143, but is not there to be used: the sessions of this version have one connection,
# recover at level 0 and move data in order.
ONLY_OFFER = {"MaxConnections": "1", "ErrorRecoveryLevel": "0", "DataPDUInOrder": "Yes", "DataSequenceInOrder": "Yes"}


def load(source: str, plugins: PluginLoader = load_plugins) -> tuple[ServerSpec, Plugins]:
    """Read the configuration file ``source``; return what it says and the plugins that it needs.

    Raises ConfigError with everything that is wrong.
    """
    try:
        with Path(source).open("rb") as file:
            content = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigError(source, [Problem("", "", error.strerror or str(error))]) from error
    if len(content) > MAX_FILE_SIZE:
        raise ConfigError(source, [Problem("", "", f"is larger than {MAX_FILE_SIZE:,} bytes")])
    try:
        return parse(content.decode(), source, plugins)
    except UnicodeDecodeError as error:
        raise ConfigError(source, [Problem("", "", f"is not UTF-8 (byte {error.start:,})")]) from error


def parse(
    content: str, source: str = "configuration", plugins: PluginLoader = load_plugins
) -> tuple[ServerSpec, Plugins]:
    """As ``load``, from text; ``source`` names it in messages."""
    try:
        document = tomli.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also of int(), for a number of thousands of digits
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ConfigError(source, [Problem("", "", f"is not TOML: {reason}")]) from error
    return read(document, source, plugins)


def read(
    document: Mapping[str, Any], source: str = "configuration", plugins: PluginLoader = load_plugins
) -> tuple[ServerSpec, Plugins]:
    """As ``parse``, from what the text says: nested tables."""
    reader = _Reader()
    known = {"server": SERVER, "discovery": DISCOVERY, "portal_group": PORTAL_GROUP, "target": TARGET}
    reader.refuse_unknown("", document, known)
    server = reader.table("server", document.get("server", {}), SERVER)
    reader.plugins = plugins(_plugin_names(document), server.get("plugin_dirs", ()), server.get("disabled_plugins", ()))
    server["portals"] = reader.portals(document.get("portal_group", []), server.get("portals"))
    targets = reader.targets(document.get("target", []), {portal.portal_group_tag for portal in server["portals"]})
    discovery = reader.table("discovery", document.get("discovery", {}), DISCOVERY)
    server["discovery_auth"] = reader.auth("discovery.auth", discovery.get("auth"))
    if reader.problems:
        raise ConfigError(source, reader.problems)
    return ServerSpec(targets=targets, **server), reader.plugins


class _Reader:
    """Walks the document and collects problems."""

    plugins: Plugins

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.claims: dict[object, list[tuple[Claim, str, str]]] = {}  # by medium: with the LUN and its serial number
        self.media: dict[str, tuple[bool, bool]] = {}  # by serial number: removable, loaded

    def complain(self, where: str, key: str, reason: str) -> None:
        self.problems.append(Problem(where, key, reason))

    def complain_all(self, where: str, key: str, reasons: Iterable[str]) -> None:
        self.problems.extend(Problem(where, key, reason) for reason in reasons)

    def refuse_unknown(self, where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
        names = list(known)
        for key in table:
            if key not in names:
                self.complain(where, key, f"unknown key{near(key, names)}")

    def table(
        self, where: str, table: Any, keys: Mapping[str, Read], required: Sequence[str] = (), open_ended: bool = False
    ) -> dict[str, Any]:
        """Read ``table`` by ``keys``; ``open_ended`` leaves unknown keys to the caller."""
        if not isinstance(table, dict):
            self.complain(where, "", f"must be a table, not {kind_of(table)}")
            return {}
        if not open_ended:
            self.refuse_unknown(where, table, keys)
        for key in required:
            if key not in table:
                self.complain(where, key, f"is missing{_perhaps_misspelt(key, table, keys)}")
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key in keys:
                try:
                    values[key] = keys[key](value)
                except ValueError as error:
                    self.complain(where, key, str(error))
        return values

    def tables(self, where: str, value: Any) -> list[tuple[str, Any]]:
        """The members of an array of tables, each with its place."""
        if isinstance(value, list):
            return [(f"{where}[{index}]", item) for index, item in enumerate(value)]
        if value is not None:
            self.complain(where, "", f"is written [[{_INDEX.sub('', where)}]], once for each")
        return []

    def portals(self, value: Any, first: tuple[PortalSpec, ...] | None) -> tuple[PortalSpec, ...]:
        """Read ``[[portal_group]]``; ``first`` are the portals of ``[server]``, which are group 1, or None."""
        if first is None:
            first = ServerSpec().portals if value == [] else ()
        places = {(portal.host, portal.port): "[server]" for portal in first if portal.port}
        groups = {1: "[server]"} if first else {}
        found = list(first)
        for where, table in self.tables("portal_group", value):
            values = self.table(where, table, PORTAL_GROUP, required=("tag", "portals"))
            tag = values.get("tag", 0)
            if tag in groups:
                self.complain(where, "tag", f"{tag} is the portal group of {groups[tag]} too")
            groups[tag] = where
            for address in values.get("portals", ()):
                if (other := places.get((address.host, address.port))) is not None:
                    self.complain(where, "portals", f"{address} is a portal of {other} too")
                if address.port:
                    places[address.host, address.port] = where
                found.append(PortalSpec(address.host, address.port, tag))
        return tuple(found)

    def access(self, where: str, value: Any, tags: Collection[int]) -> tuple[AccessSpec, ...]:
        """Read ``[[target.portal_group]]``; ``tags`` are the portal groups that there are."""
        found: dict[int, AccessSpec] = {}
        for place, table in self.tables(where, value):
            values = self.table(place, table, ACCESS, required=("tag",))
            if "tag" not in values:
                continue
            spec = AccessSpec(**values)
            if spec.tag in found:
                self.complain(place, "tag", f"{spec.tag} is named twice")
            elif spec.tag not in tags:
                there = ", ".join(map(str, sorted(tags))) or "none"
                self.complain(place, "tag", f"there is no portal group {spec.tag} (there is: {there})")
            found[spec.tag] = spec
        return tuple(found[tag] for tag in sorted(found))

    def targets(self, value: Any, tags: Collection[int] = (1,)) -> tuple[TargetSpec, ...]:
        targets: list[TargetSpec] = []
        serials: dict[str, tuple[str, object]] = {}
        places: dict[str, str] = {}
        for where, table in self.tables("target", value):
            values = self.table(where, table, TARGET, required=("name",))
            name = values.get("name", "")
            if name in places:
                self.complain(where, "name", f"{name} is the name of {places[name]} too")
                name = ""
            elif name:
                places[name] = where
            luns = self.luns(f"{where}.lun", values.get("lun"), name or where, serials)
            parameters = self.parameters(f"{where}.parameters", values.get("parameters", {}))
            access = self.access(f"{where}.portal_group", values.get("portal_group"), tags)
            auth = self.auth(f"{where}.auth", values.get("auth"))
            guests = {key: values[key] for key in ("initiators", "networks") if key in values}
            targets.append(TargetSpec(name, luns, values.get("alias", ""), parameters, access, auth=auth, **guests))
        return tuple(targets)

    def auth(self, where: str, table: Any) -> AuthSpec | None:
        """Who has to prove what; all keys but ``source`` are the authentication source's own."""
        if table is None:
            return None
        values = self.table(where, table, {"source": text(255)}, open_ended=True)
        options = {key: value for key, value in table.items() if key != "source"} if isinstance(table, dict) else {}
        source = values.get("source", DEFAULT_SOURCE)
        info = self.plugins.auth_sources.get(source)
        before = len(self.problems)
        if info is not None:
            options = self.options(where, info.options, options, ("source",))
        if len(self.problems) == before:
            for problem in self.plugins.validate_auth(source, options):
                key, colon, reason = problem.partition(": ")
                self.complain(where, *((key, reason) if colon and info is not None else ("source", problem)))
        return AuthSpec(source, options)

    def luns(self, where: str, value: Any, target: str, serials: dict[str, tuple[str, object]]) -> tuple[LunSpec, ...]:
        """Read the logical units of one target; ``serials`` holds those of all targets so far."""
        luns: dict[int, LunSpec] = {}
        places: dict[int, str] = {}
        for place, table in self.tables(where, value):
            before = len(self.problems)
            spec = self.lun(place, table, target)
            if spec is None:
                continue
            if spec.lun in luns:
                self.complain(place, "lun", f"{spec.lun} is the number of {places[spec.lun]} too")
                continue
            luns[spec.lun] = spec
            places[spec.lun] = place
            if len(self.problems) == before:
                self.claim(place, spec)
            # Initiators take two paths with one serial number for one disk and spread their writes over both.
            has_medium = spec.options.keys() & {"path", "members"}
            medium = (spec.backend, spec.options) if has_medium else place
            other, other_medium = serials.setdefault(spec.serial, (place, medium))
            if medium != other_medium:
                self.complain(place, "serial", f"{spec.serial} is the serial number of {other} too, another disk")
            elif (other_state := self.media.setdefault(spec.serial, (spec.removable, spec.loaded))) != (
                spec.removable,
                spec.loaded,
            ):
                key = "removable" if spec.removable != other_state[0] else "loaded"
                self.complain(place, key, f"must be as that of {other}, which is the same disk")
        return tuple(luns[number] for number in sorted(luns))

    def claim(self, where: str, spec: LunSpec) -> None:
        """Refuse a LUN with a medium that another one has, or that it has twice itself."""
        layers = [(layer.layer, layer.options) for layer in spec.layers]
        try:
            claims = list(claims_of(self.plugins, spec.backend, spec.options, layers, spec.readonly))
        except PluginError as error:
            self.complain(where, "backend", str(error))
            return
        for claim in claims:
            table = where if claim.layer < 0 else f"{where}.layers[{claim.layer}]"
            others = self.claims.setdefault(claim.medium, [])
            for other, place, serial in others:
                if place == where and claim.part and other.part:
                    continue  # whoever has all of it to itself may have its parts, too
                if claim.excludes(other, serial == spec.serial and place != where):
                    self.complain(table, claim.key, f"{claim.member}{_conflict(claim, other, place, where)}")
                    break
            others.append((claim, where, spec.serial))

    def lun(self, where: str, table: Any, target: str) -> LunSpec | None:
        values = self.table(where, table, LUN, required=("lun", "backend"), open_ended=True)
        if "lun" not in values or "backend" not in values:
            return None
        options = {key: value for key, value in table.items() if key not in LUN}
        backend = values.pop("backend")
        options = self.backend_options(where, backend, options)
        layers = self.layers(f"{where}.layers", values.pop("layers", None))
        serial = values.pop("serial", "") or _derived_serial(target, values["lun"])
        if not values.get("loaded", True) and not values.get("removable", False):
            self.complain(where, "loaded", "can be false only where removable is true: nobody could load it")
        return LunSpec(backend=backend, options=options, layers=layers, serial=serial, **values)

    def backend_options(self, where: str, backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
        info = self.plugins.backends.get(backend)
        if info is None:
            self.complain_all(where, "backend", self.plugins.validate(backend, options))
            return dict(options)
        before = len(self.problems)
        values = self.options(where, info.options, options, LUN)
        if len(self.problems) == before:
            self.complain_all(where, "", self.plugins.validate(backend, values))
        return values

    def options(
        self, where: str, schema: tuple[Option, ...] | None, options: Mapping[str, Any], others: Iterable[str]
    ) -> dict[str, Any]:
        """Check a plugin's own keys against what it declares; ``others`` are the keys that may stand beside them."""
        values, problems = check_options(schema, options)
        names = [option.name for option in schema or ()]
        for problem in problems:
            key, _, reason = problem.partition(": ")
            if key in options and key not in names:
                reason = f"unknown key{near(key, [*names, *others])}"
            self.complain(where, key, reason)
        return values

    def layers(self, where: str, value: Any) -> tuple[LayerSpec, ...]:
        layers: list[LayerSpec] = []
        for place, table in self.tables(where, value):
            values = self.table(place, table, {"layer": text(255)}, required=("layer",), open_ended=True)
            if (name := values.get("layer")) is None:
                continue
            info = self.plugins.layers.get(name)
            if info is None:
                self.complain_all(place, "layer", self.plugins.validate_layer(name, {}))
                continue
            options = {key: item for key, item in table.items() if key != "layer"}
            before = len(self.problems)
            options = self.options(place, info.options, options, ("layer",))
            if len(self.problems) == before:
                self.complain_all(place, "", self.plugins.validate_layer(name, options))
            layers.append(LayerSpec(name, options))
        return tuple(layers)

    def parameters(self, where: str, table: Any) -> dict[str, str]:
        """What a target offers in negotiation, under the RFC's names of the keys."""
        if not isinstance(table, dict):
            self.complain(where, "", f"must be a table, not {kind_of(table)}")
            return {}
        parameters: dict[str, str] = {}
        for key, value in table.items():
            try:
                parameters[key] = _parameter(key, value)
            except ValueError as error:
                self.complain(where, key, str(error))
        offers = {**TARGET_OFFERS, **parameters}
        if parse_number(offers["FirstBurstLength"]) > parse_number(offers["MaxBurstLength"]):  # RFC 7143 section 13.14
            reason = f"{offers['FirstBurstLength']} is greater than MaxBurstLength, {offers['MaxBurstLength']}"
            self.complain(where, "FirstBurstLength", reason)
        return parameters


def _conflict(claim: Claim, other: Claim, place: str, where: str) -> str:
    """Why a LUN cannot have a medium that ``other``, at ``place``, has."""
    whose = "this LUN" if place == where else place
    named = "" if claim.name == other.name else f", there {other.name}"
    words = f"{claim.name} is a medium of {whose} already{named}"
    if claim.alone or other.alone:
        return f"{words}, and only one LUN can have it"
    return f"{words}: as two disks they would destroy each other's data; one disk has one serial number"


def _parameter(key: str, value: Any) -> str:
    """A value as the text that is negotiated with: ``true`` is Yes, an array is a list in order of preference."""
    if key not in OFFERABLE:
        raise ValueError(f"is not a key that a target can offer{near(key, OFFERABLE)}")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    if not isinstance(value, bool | int | str):
        raise ValueError(f"must be a number, a string, true, false or an array of strings, not {kind_of(value)}")
    offer = ("Yes" if value else "No") if isinstance(value, bool) else str(value)
    check_offer(key, offer)
    if offer != ONLY_OFFER.get(key, offer):
        raise ValueError(f"can only be {ONLY_OFFER[key]} in this version")
    return offer


def _derived_serial(target: str, lun: int) -> str:
    """A serial number that stays the same as long as target name and LUN do."""
    return hashlib.sha256(f"{target}\0{lun}".encode()).hexdigest()[:16].upper()


def _plugin_names(document: Mapping[str, Any]) -> set[str] | None:
    """The back ends and layers that the document names; None, which is all, as soon as one of them is no built-in.

    All have to be known then: the name may be a stranger's, or a misspelt one that is to be recognised.
    """
    names: set[str] = set()
    for target in _list_of_tables(document.get("target")):
        for lun in _list_of_tables(target.get("lun")):
            names.update(_names_in(lun))
        names.update(_source_in(target))
    names.update(_source_in(document.get("discovery")))
    modules = {path.rpartition(".")[2] for path in BUILTIN}
    return names if {PROVIDED_BY.get(name, name) for name in names} <= modules else None


def _source_in(table: Any) -> Iterable[str]:
    """The authentication source of a table that may have one."""
    auth = table.get("auth") if isinstance(table, dict) else None
    if isinstance(auth, dict):
        yield str(auth.get("source", DEFAULT_SOURCE))


def _names_in(table: Mapping[str, Any], depth: int = MAX_DEPTH) -> Iterable[str]:
    """The back end and the layers of a LUN, and those of its members, whatever the option is called that has them."""
    yield str(table.get("backend"))
    yield from (str(layer.get("layer")) for layer in _list_of_tables(table.get("layers")))
    for value in table.values() if depth else ():
        for member in _list_of_tables(value):
            if "backend" in member:
                yield from _names_in(member, depth - 1)


def _list_of_tables(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _perhaps_misspelt(key: str, table: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Which stranger in ``table`` may have been written for ``key``."""
    strangers = [name for name in table if name not in keys]
    found = difflib.get_close_matches(key, strangers, n=1)
    return f' (is "{found[0]}" meant?)' if found else ""
