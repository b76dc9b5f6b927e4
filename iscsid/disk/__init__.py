"""What ``iscsid disk`` does: copies between disks and files, a bench, and what both tell. Built on the initiator."""
