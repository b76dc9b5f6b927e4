"""libiscsi(3) of NetBSD: the functions of its man page, under their names, on ``iscsi_target_t``.

from iscsid.compat.libiscsi import *

tgt = iscsi_target_t()
iscsi_target_set_defaults(tgt)
iscsi_target_setvar(tgt, "configfile", "/etc/iscsi/targets")
if iscsi_target_start(tgt) == 0:
    iscsi_target_write_pidfile(None)
    iscsi_target_listen(tgt)
"""

from __future__ import annotations

from iscsid.compat.libiscsi_target import (
    iscsi_target_getvar,
    iscsi_target_listen,
    iscsi_target_reconfigure,
    iscsi_target_set_defaults,
    iscsi_target_setvar,
    iscsi_target_shutdown,
    iscsi_target_start,
    iscsi_target_t,
    iscsi_target_write_pidfile,
)

__all__ = [
    "iscsi_target_getvar",
    "iscsi_target_listen",
    "iscsi_target_reconfigure",
    "iscsi_target_set_defaults",
    "iscsi_target_setvar",
    "iscsi_target_shutdown",
    "iscsi_target_start",
    "iscsi_target_t",
    "iscsi_target_write_pidfile",
]
