"""The back end ``nbd``: an export of an NBD server, such as nbdkit, qemu-nbd or nbd-server.

What the server can do is asked once, in the supervisor; every worker opens the same export, and one whose size or flags
have changed when the connection comes back is not taken. Requests of several threads share one connection, or several
where the server says that a flush on one is a flush for all.

Unless it is ``shared``, one worker has the export to itself, and keeps what is not flushed, to write it again if the
server is lost (nbd_journal). Workers that share it cannot: they have every write put on the medium instead (FUA).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Capabilities,
    Device,
    Extent,
    Fault,
    Option,
    Sharing,
    Support,
    Threading,
    hookimpl,
)

from . import nbd_protocol as protocol
from .nbd_client import Client, Settings, examine
from .nbd_connection import Request
from .nbd_uri import Credentials, parse

OPTIONS = (
    Option(
        "uri",
        "str",
        required=True,
        doc="nbd://host:port/export, or nbds, nbd+unix, nbds+unix with ?socket=",
        medium=True,
    ),
    Option("shared", "bool", default=False, doc="for all workers; the server must allow several connections"),
    Option("connections", "int", default=1, minimum=1, maximum=16, doc="of each worker, if the server allows several"),
    Option("timeout", "int", default=30, minimum=1, maximum=3600, doc="seconds that the server has for one request"),
    Option("reconnect", "int", default=30, minimum=0, maximum=3600, doc="seconds that a request waits for the server"),
    Option("keep", "size", default=32 << 20, maximum=1 << 30, doc="kept of what is not flushed, for a lost server"),
    Option("ca", "path", doc="who may vouch for the server, in PEM; by default whom the system trusts"),
    Option("cert", "path", doc="our own certificate, in PEM"),
    Option("key", "path", doc="its key, if that is not in the same file"),
)
PREPARE_SECONDS: Final = 5.0  # for the server to tell of the export: the supervisor, which asks, has more to do
MAX_DATA: Final = 4 << 20  # bytes of one request, although servers may take more: others get their turn
MAX_RANGE: Final = 64 << 20  # bytes, of requests without data: each may take its time


class NbdDevice(Device):
    """An export. ``sync``: every change is on the medium when it is answered, so that there is nothing to flush."""

    threading = Threading.PARALLEL

    def __init__(self, client: Client, *, readonly: bool = False, sync: bool = False) -> None:
        facts = client.facts
        self._client = client
        self._has = facts.flags
        self._sync = protocol.CMD_FLAG_FUA if sync else 0
        self._statuses = facts.context is not None
        self.block_size = max(512, facts.minimum)
        self.size = facts.size
        self.readonly = readonly or bool(facts.flags & protocol.READ_ONLY)
        self.rotational = bool(facts.flags & protocol.ROTATIONAL)
        self.physical_block_size = min(max(facts.preferred, self.block_size), 65536)
        self.minimum_io = self.discard_granularity = max(facts.preferred, self.block_size)
        self._most = min(facts.maximum, MAX_DATA) // self.block_size * self.block_size or self.block_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        for at, size in _pieces(0, len(buffer), self._most):
            self._client.call(Request(protocol.CMD_READ, offset + at, data=buffer[at : at + size]))

    def write(self, data: memoryview, offset: int) -> None:
        self._write(data, offset, self._sync)

    def write_fua(self, data: memoryview, offset: int) -> None:
        self._write(data, offset, protocol.CMD_FLAG_FUA)

    def _write(self, data: memoryview, offset: int, flags: int) -> None:
        for at, size in _pieces(0, len(data), self._most):
            self._client.change(Request(protocol.CMD_WRITE, offset + at, data=data[at : at + size], flags=flags))

    def flush(self) -> None:
        self._client.flush()

    def discard(self, offset: int, length: int) -> None:
        for at, size in _pieces(offset, length, MAX_RANGE):
            self._client.change(Request(protocol.CMD_TRIM, at, size, flags=self._sync))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        flags = self._sync if may_unmap else self._sync | protocol.CMD_FLAG_NO_HOLE
        for at, size in _pieces(offset, length, MAX_RANGE):
            self._client.change(Request(protocol.CMD_WRITE_ZEROES, at, size, flags=flags))

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        end = offset + length
        while offset < end:
            request = Request(protocol.CMD_BLOCK_STATUS, offset, min(MAX_RANGE, end - offset))
            self._client.call(request)
            for extent in request.status or ():
                yield extent
                offset += extent.length

    def prefetch(self, offset: int, length: int) -> None:
        """Waits for the server to answer, which as a rule has started by then and not ended."""
        for at, size in _pieces(offset, length, MAX_RANGE):
            self._client.call(Request(protocol.CMD_CACHE, at, size))

    def close(self) -> None:
        self._client.close()

    def capabilities(self) -> Capabilities:
        def having(flag: int) -> Support:
            return Support.NATIVE if self._has & flag else Support.NONE

        def writing(flag: int) -> Support:
            return Support.NONE if self.readonly else having(flag)

        return dataclasses.replace(
            super().capabilities(),
            flush=Support.NONE if self._sync else having(protocol.SEND_FLUSH),
            fua=writing(protocol.SEND_FUA),
            discard=writing(protocol.SEND_TRIM),
            write_zeroes=writing(protocol.SEND_WRITE_ZEROES),
            block_status=Support.NATIVE if self._statuses else Support.NONE,
            prefetch=having(protocol.SEND_CACHE),
        )


def _pieces(offset: int, length: int, limit: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        size = min(limit, end - offset)
        yield offset, size
        offset += size


def _settings(options: Mapping[str, Any]) -> Settings:
    credentials = Credentials(*(options[name] or "" for name in ("ca", "cert", "key")))
    return Settings(
        parse(options["uri"]), credentials, options["connections"], options["timeout"], options["reconnect"]
    )


def _examined(options: Mapping[str, Any], settings: Settings) -> protocol.Facts:
    """What the server tells. Raises BlockError(INVALID) where several workers cannot share such an export."""
    facts = examine(settings._replace(timeout=min(settings.timeout, PREPARE_SECONDS)))
    if options["shared"] and not facts.flags & protocol.READ_ONLY:
        if not facts.flags & protocol.CAN_MULTI_CONN:
            words = "its server does not allow several connections to write: leave shared = true away"
            raise BlockError(Fault.INVALID, f"{settings.address}: {words}")
        if not _durable(facts):
            raise BlockError(Fault.INVALID, f"{settings.address}: shared = true needs a server with FUA")
    return facts


def _durable(facts: protocol.Facts) -> bool:
    """Whether each write can be put on the medium by itself."""
    return bool(facts.flags & protocol.SEND_FUA or not facts.flags & protocol.SEND_FLUSH)


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("nbd", "an export of an NBD server", OPTIONS, Sharing.EXCLUSIVE_OWNER)


@hookimpl
def iscsid_sharing(options: Mapping[str, Any]) -> Sharing:
    return Sharing.SHARED if options["shared"] else Sharing.EXCLUSIVE_OWNER


@hookimpl
def iscsid_probe(uri: str) -> int:
    try:
        parse(uri)
    except ValueError:
        return 0
    return 100


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    """Without asking the server: it may have room for one client only, and we may be it."""
    try:
        address = parse(options["uri"])
    except ValueError as error:
        return [f"uri: {error}"]
    given = [name for name in ("ca", "cert", "key") if options[name]]
    if given and not address.tls:
        return [f"{given[0]}: is for TLS, which nbds:// and nbds+unix:// have"]
    if "key" in given and "cert" not in given:
        return ["key: has no cert"]
    return [f"{name}: {options[name]} cannot be read" for name in given if not os.access(options[name], os.R_OK)]


@hookimpl
def iscsid_prepare(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask the server once, so that all workers, also one that starts while it is away, tell the same of the disk."""
    return {"facts": _examined(options, _settings(options))}


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> NbdDevice:
    settings = _settings(options)
    facts = options.get("facts") or _examined(options, settings)
    readonly = role == "readonly"
    sync = options["shared"] and bool(facts.flags & protocol.SEND_FUA)
    changing = not readonly and not facts.flags & protocol.READ_ONLY and bool(facts.flags & protocol.SEND_FLUSH)
    if changing and not options["shared"]:
        settings = settings._replace(journal=options["keep"])
    return NbdDevice(Client(settings, facts), readonly=readonly, sync=sync)
