"""The back ends that come with iscsid. They import from ``iscsid.plugin`` only, as a stranger's would."""
