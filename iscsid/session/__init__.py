"""The iSCSI connection without I/O, for either role: login, numbers, transfers. Bytes and time are arguments."""
