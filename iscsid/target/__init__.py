"""Joins session, scsi and shared state for one session of a target; still without I/O."""
