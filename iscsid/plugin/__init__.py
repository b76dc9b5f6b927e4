"""The only door for plugins: every name that one may import from iscsid. docs/backends.md tells how to use them."""

from __future__ import annotations

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Sharing, Space, Support, Threading
from iscsid.block.fault import fault_of
from iscsid.block.filter import Filter
from iscsid.block.turn import pause, stay
from iscsid.errors import BlockError, Fault
from iscsid.plugin.auth import CHAP_ALGORITHMS, AuthInfo, CredentialSource
from iscsid.plugin.descriptors import Descriptor
from iscsid.plugin.hookspecs import hookimpl
from iscsid.plugin.info import API_VERSION, BackendInfo, LayerInfo, Option, Verb
from iscsid.plugin.members import Member

__all__ = [
    "API_VERSION",
    "CHAP_ALGORITHMS",
    "AuthInfo",
    "BackendInfo",
    "BlockError",
    "Capabilities",
    "Content",
    "CredentialSource",
    "Descriptor",
    "Device",
    "Extent",
    "Fault",
    "Filter",
    "LayerInfo",
    "Member",
    "Mode",
    "Option",
    "Sharing",
    "Space",
    "Support",
    "Threading",
    "Verb",
    "fault_of",
    "hookimpl",
    "pause",
    "stay",
]
