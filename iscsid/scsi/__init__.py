"""CDB in, plan and sense data out: a direct access block device that never heard of iSCSI."""
