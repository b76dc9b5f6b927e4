"""``iscsid disk``: what people do with disks of targets every day, without a kernel and without root."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def disk() -> None:
    """Find, describe, copy, measure and reserve disks of any iSCSI target."""
