"""The examples of docs/initiator.md do what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e_server import TARGET, Server

from iscsid import errors, initiator
from iscsid.initiator import Disk, aio
from iscsid.initiator.session import SessionOptions

DOCS = (Path(__file__).parents[2] / "docs" / "initiator.md").read_text()


def test_examples_run(start: Callable[..., Server], ram: list[dict[str, Any]], capsys: Any) -> None:
    server = start(ram)
    examples = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/initiator.md", "exec"), {"URL": server.url(), "PORTAL": server.portal()})
    assert TARGET in capsys.readouterr().out


def test_every_method_option_and_exception_is_told() -> None:
    methods = {name for name in vars(Disk) if not name.startswith("_")} - {"close", "lun", "attentions", "max_transfer"}
    options = set(SessionOptions.__dataclass_fields__) - {"target_name", "isid", "offers"}
    exceptions = {
        name
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, errors.InitiatorError)
    }
    missing = sorted(name for name in methods | options | exceptions if f"{name}`" not in DOCS)
    assert not missing


def test_async_disk_has_what_the_blocking_one_has() -> None:
    blocking = {name for name in vars(Disk) if not name.startswith("_")}
    tickets = {name for name in blocking if name.startswith("submit_")} | {"wait", "push", "abort_task"}
    assert blocking - tickets == {name for name in vars(aio.AsyncDisk) if not name.startswith("_")} - {"load"}


def test_public_names_are_there() -> None:
    assert all(hasattr(initiator, name) for name in initiator.__all__)
    assert initiator.__all__ == sorted(initiator.__all__)
