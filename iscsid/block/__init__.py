"""What a device is: contract, facts, capabilities, and the guard that checks and emulates.

Bytes at an offset, and nothing of SCSI or iSCSI.
"""
