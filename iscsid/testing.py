"""A server for somebody's test: a child process on a free port of this host, with the disks that the test wants.

What ``iscsid.pytest_plugin`` gives to tests; anybody else may use it as a context manager.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from iscsid.daemon.control import ControlError, ask
from iscsid.errors import IscsidError
from iscsid.initiator import Disk, open_disk

NAME: Final = "iqn.2026-11.org.iscsid:test"
SIZE: Final = "64 MiB"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02
LOG_TAIL: Final = 4000  # characters of the log in an error


class TestServerError(IscsidError):
    """The server did not start, or did not stop as it should; the text has the end of its log."""

    __test__ = False  # pytest collects classes that are called Test...


class TestTarget:
    """One target on 127.0.0.1.

    Args:
        folder: where its files are: configuration, log, and those of file disks.
        luns: one table of the configuration for each LUN, with ``lun`` filled in where it is missing; a ``path`` is
            relative to ``folder``, and a file disk without one gets one. Without ``luns``, ``lun`` is the only one.
        name: of the target.
        workers: how many processes.
        chap: user and secret (12 bytes or more) that initiators need.
        server: more keys of the table ``server``.
        target: more keys of the table ``target``.
        lun: keys of the only LUN: a RAM disk of 64 MiB unless they say otherwise.
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        *,
        luns: Sequence[Mapping[str, Any]] = (),
        name: str = NAME,
        workers: int = 1,
        chap: tuple[str, str] | None = None,
        server: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
        **lun: Any,
    ) -> None:
        if luns and lun:
            raise ValueError(f"either luns or {', '.join(sorted(lun))}")
        self.name = name
        self.folder = folder
        self.log_path = folder / "iscsid.log"
        self.luns = [self._lun(number, table) for number, table in enumerate(luns or [lun])]
        self._chap = chap
        self._port = 0
        self._reserved: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._runtime_dir = ""
        auth = {"auth": {"chap": [{"user": chap[0], "secret": chap[1]}]}} if chap else {}
        self._document: dict[str, Any] = {
            "server": {"state_dir": str(folder / "state"), "workers": workers, **(server or {})},
            "target": [{"name": name, **auth, **(target or {}), "lun": self.luns}],
        }

    def _lun(self, number: int, table: Mapping[str, Any]) -> dict[str, Any]:
        made = {"lun": number, "backend": "ram", **table}
        if made["backend"] in ("ram", "file"):
            made.setdefault("size", SIZE)
        if made["backend"] == "file" or "path" in made:
            made["path"] = str(self.folder / made.get("path", f"lun{made['lun']}.img"))
        return made

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> TestTarget:
        """Start the server; it serves when this returns. The port stays the same over a stop and a start.

        Raises TestServerError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._runtime_dir:  # the path of a socket may have 107 bytes, and folders of tests are deep
            self._runtime_dir = tempfile.mkdtemp(prefix="iscsid-test-")
        if self._reserved is None:
            self._reserved = self._reserve()
        server = {**self._document["server"], "portals": [self.portal], "runtime_dir": self._runtime_dir}
        config = self.folder / "iscsid.toml"
        config.write_text(_toml({**self._document, "server": server}))
        argv = [sys.executable, "-m", "iscsid", "serve", "-c", str(config)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise TestServerError(f"the server did not start:\n{self.log[-LOG_TAIL:]}")
            time.sleep(POLL_SECONDS)
        return self

    def _reserve(self) -> socket.socket:
        """Take a free port, for the server alone: as long as it is bound here, where nobody listens, the kernel gives
        it to nobody who asks for any port, be it to listen or to connect from, while the server is down."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, 0))
        self._port = sock.getsockname()[1]
        return sock

    def _serves(self) -> bool:
        try:
            status = ask(self._runtime_dir, "status")
        except ControlError:
            return False
        return bool(status["phase"] == "serving")

    def stop(self) -> None:
        """Stop it as a service manager does: what was written is on its medium. Raises TestServerError if it does not
        end well. RAM disks are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise TestServerError(f"the server did not stop:\n{self.log[-LOG_TAIL:]}") from None
        if status:
            raise TestServerError(f"the server ended with {status}:\n{self.log[-LOG_TAIL:]}")

    def kill(self) -> None:
        """Kill it, as a failing machine does. Its workers end with it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop it and forget its port and its runtime folder."""
        try:
            self.stop()
        finally:
            if self._reserved is not None:
                self._reserved.close()
                self._reserved, self._port = None, 0
            if self._runtime_dir:
                shutil.rmtree(self._runtime_dir, ignore_errors=True)
                self._runtime_dir = ""

    def __enter__(self) -> TestTarget:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """127.0.0.1."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """The port that it was given; 0 before it was started."""
        return self._port

    @property
    def portal(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    def url(self, lun: int = 0) -> str:
        """The URL of a disk for libiscsi, QEMU and ``iscsid.initiator``; with user and secret, if it needs them."""
        who = f"{quote(self._chap[0], safe='')}%{self._chap[1]}@" if self._chap else ""
        return f"iscsi://{who}{self.portal}/{self.name}/{lun}"

    def path(self, lun: int = 0) -> Path:
        """The file behind a disk. Raises LookupError where there is none."""
        for table in self.luns:
            if table["lun"] == lun and "path" in table:
                return Path(table["path"])
        raise LookupError(f"LUN {lun} has no file")

    def disk(self, lun: int = 0, **options: Any) -> Disk:
        """A session of ours to a disk: what is on it, and what was written."""
        return open_disk(self.url(lun), **options)

    def sessions(self) -> list[dict[str, Any]]:
        """Who is logged in: one table each, as ``iscsid sessions --json`` tells."""
        return list(ask(self._runtime_dir, "sessions")["sessions"])

    @property
    def log(self) -> str:
        """What the server has said."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""


def _toml(document: Mapping[str, Any]) -> str:
    """The document with every value inline: what stands behind a key, TOML writes as JSON does but for tables."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in document.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str | int | float | bool):
        raise TypeError(f"{value!r} is nothing that a configuration can hold")
    return json.dumps(value)
