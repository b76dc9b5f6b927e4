"""tests/ports.py: a port is given away once, by whichever process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ports import PORTS, free_port


def test_port_can_be_listened_at_and_is_given_once() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20 and set(ports) <= set(PORTS)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_port_of_another_process_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = free_port(), free_port()
    code = f"import ports; ports.PORTS = [{mine}, {other}]; ports.free_port()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert "RuntimeError: every port" in done.stderr
    monkeypatch.setattr("ports.PORTS", [mine])
    with pytest.raises(RuntimeError):
        free_port()


def test_port_where_somebody_listens_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr("ports.PORTS", [taken.getsockname()[1]])
        with pytest.raises(RuntimeError):
            free_port()
