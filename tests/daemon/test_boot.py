"""Who opens which target."""

from __future__ import annotations

from typing import Any

from iscsid.daemon.boot import ExitCode, WorkerBoot
from iscsid.specs import ServerSpec


def boot(index: int) -> WorkerBoot:
    plugins: Any = None
    return WorkerBoot(index, ServerSpec(), plugins, owners={"iqn.x:exclusive": 1})


def test_target_with_an_owner_is_served_by_its_owner_only() -> None:
    assert [boot(index).serves("iqn.x:exclusive") for index in range(3)] == [False, True, False]


def test_any_other_target_is_served_by_all() -> None:
    assert all(boot(index).serves("iqn.x:shared") for index in range(3))


def test_key_of_tokens_is_not_told_by_its_repr() -> None:
    plugins: Any = None
    assert "secret" not in repr(WorkerBoot(0, ServerSpec(), plugins, copy_key=b"secret"))


def test_exit_codes_do_not_collide_with_the_interpreter() -> None:
    """Python itself exits with 1 for an exception and 2 for a bad command line."""
    assert ExitCode.BOOT_FAILED not in (0, 1, 2)
