"""libiscsi(3) of NetBSD: the functions of its man page, under their names, of the target and of the initiator.

from iscsid.compat.libiscsi import *

tgt = iscsi_target_t()
iscsi_target_set_defaults(tgt)
iscsi_target_setvar(tgt, "configfile", "/etc/iscsi/targets")
if iscsi_target_start(tgt) == 0:
    iscsi_target_write_pidfile(None)
    iscsi_target_listen(tgt)

ini = iscsi_initiator_t()
iscsi_initiator_set_defaults(ini)
iscsi_initiator_setvar(ini, "target hostname", "store.example")
if iscsi_initiator_start(ini) == 0 and iscsi_initiator_discover("", 0, 0) == 0:
    targets = strv_t()
    iscsi_initiator_get_targets(0, targets)
"""

from __future__ import annotations

from iscsid.compat.libiscsi_initiator import (
    CONFIG_INITIATOR_NUM_TARGETS,
    ISCSI_NOP_OUT,
    ISCSI_SCSI_CMD,
    get_target_info,
    ii_initiator_init,
    initiator_abort,
    initiator_cmd_t,
    initiator_command,
    initiator_discover,
    initiator_enqueue,
    initiator_get_targets,
    initiator_set_target_name,
    initiator_target_t,
    iscsi_initiator_discover,
    iscsi_initiator_discovery,
    iscsi_initiator_get_max_targets,
    iscsi_initiator_get_targets,
    iscsi_initiator_getvar,
    iscsi_initiator_info,
    iscsi_initiator_set_defaults,
    iscsi_initiator_setvar,
    iscsi_initiator_shutdown,
    iscsi_initiator_start,
    iscsi_initiator_t,
    iscsi_nop_out_args_t,
    iscsi_scsi_cmd_args_t,
    strv_t,
)
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
    "CONFIG_INITIATOR_NUM_TARGETS",
    "ISCSI_NOP_OUT",
    "ISCSI_SCSI_CMD",
    "get_target_info",
    "ii_initiator_init",
    "initiator_abort",
    "initiator_cmd_t",
    "initiator_command",
    "initiator_discover",
    "initiator_enqueue",
    "initiator_get_targets",
    "initiator_set_target_name",
    "initiator_target_t",
    "iscsi_initiator_discover",
    "iscsi_initiator_discovery",
    "iscsi_initiator_get_max_targets",
    "iscsi_initiator_get_targets",
    "iscsi_initiator_getvar",
    "iscsi_initiator_info",
    "iscsi_initiator_set_defaults",
    "iscsi_initiator_setvar",
    "iscsi_initiator_shutdown",
    "iscsi_initiator_start",
    "iscsi_initiator_t",
    "iscsi_nop_out_args_t",
    "iscsi_scsi_cmd_args_t",
    "iscsi_target_getvar",
    "iscsi_target_listen",
    "iscsi_target_reconfigure",
    "iscsi_target_set_defaults",
    "iscsi_target_setvar",
    "iscsi_target_shutdown",
    "iscsi_target_start",
    "iscsi_target_t",
    "iscsi_target_write_pidfile",
    "strv_t",
]
