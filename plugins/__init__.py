"""The layers and observers that come with iscsid. They import from ``iscsid.plugin`` only, as a stranger's would."""
