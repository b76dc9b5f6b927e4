"""libiscsi(3): that all names are there."""

from __future__ import annotations

from iscsid.compat import libiscsi

TARGET = ("set_defaults", "start", "listen", "shutdown", "write_pidfile", "setvar", "getvar", "reconfigure")


def test_every_function_of_the_target_is_exported() -> None:
    for name in (*(f"iscsi_target_{word}" for word in TARGET), "iscsi_target_t"):
        assert name in libiscsi.__all__
        assert callable(getattr(libiscsi, name))
