"""The examples of docs/disk.md do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from iscsid.cli_disk import TYPES, disk
from iscsid.testing import TestTarget

DOCS = (Path(__file__).parents[2] / "docs" / "disk.md").read_text()


def test_examples_run(iscsid_targets: Callable[..., TestTarget], tmp_path: Path) -> None:
    target = iscsid_targets(luns=[{"size": "8 MiB"}, {"size": "8 MiB"}])
    (tmp_path / "image.raw").write_bytes(os.urandom(1 << 20))
    places = {"PORTAL": target.portal, "TARGET_URL": target.url().removesuffix("/0"), "URL": target.url(0)}
    environment = {
        **os.environ,
        **places,
        "OTHER_URL": target.url(1),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "PYTHON": sys.executable,
    }
    blocks = re.findall(r"```console\n(.*?)```", DOCS, re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    assert len(commands) == 17
    script = 'iscsid() { "$PYTHON" -m iscsid "$@"; }\nset -ex\n' + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "reserved: exclusive-access by 0x1234" in done.stdout
    assert (tmp_path / "bench.svg").exists()
    with target.disk() as opened:
        assert opened.read_keys().keys == ()


def test_every_command_option_type_and_variable_is_told() -> None:
    options: set[str] = set()
    for name, command in disk.commands.items():
        assert name in DOCS
        options |= {option for param in command.params if isinstance(param, click.Option) for option in param.opts[:1]}
    known: set[Any] = {option for option in options if option.startswith("--")} - {"--quiet"}
    assert not sorted(option for option in known if option not in DOCS)
    assert all(name in TYPES for name in ("write-exclusive", "exclusive-access", "write-exclusive-registrants-only"))
    told = re.findall(r"LIBISCSI_CHAP_\w+", DOCS)
    assert set(told) == set(re.findall(r"LIBISCSI_CHAP_\w+", str(disk.epilog)))
