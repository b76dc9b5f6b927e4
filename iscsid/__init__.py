"""iscsid: a plugin-based, multi-process iSCSI storage server."""

__version__ = "0.1.0"
