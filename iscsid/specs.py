"""What the configuration says, as frozen records: the only form in which it reaches the rooms below ``config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PortalSpec:
    """An address to listen on. ``host`` is a numeric IPv4 or IPv6 address without brackets, or a host name.

    ``portal_group_tag`` names the portal group that it belongs to, from 1 to 65535 (RFC 7143 section 4.4.1).
    """

    host: str
    port: int = 3260
    portal_group_tag: int = 1

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer over a device: the name of the layer and its own options."""

    layer: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LunSpec:
    """One logical unit of a target.

    ``options`` are the back end's own keys, checked against its ``BackendInfo``. ``block_size`` 0 takes the device's
    own. ``removable``: initiators may eject the medium; ``loaded``: it is there when the server begins. ``serial`` is
    what INQUIRY and VPD 80/83 show; config derives a stable one from target name and LUN.
    """

    lun: int
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    block_size: int = 0
    readonly: bool = False
    serial: str = ""
    vendor: str = "ISCSID"
    product: str = "VIRTUAL-DISK"
    layers: tuple[LayerSpec, ...] = ()
    removable: bool = False
    loaded: bool = True
    io_timeout: float = 0.0  # seconds that one call of the medium may take; 0: as the server says


ACCESS_STATES = ("active/optimized", "active/non-optimized", "standby", "unavailable", "offline", "transitioning")
"""The asymmetric access states of SPC-4 5.15.2.4, as people call them."""


@dataclass(frozen=True, slots=True)
class AccessSpec:
    """A portal group through which a target is served, and the asymmetric access state that it begins in."""

    tag: int
    state: str = ACCESS_STATES[0]
    preferred: bool = False


@dataclass(frozen=True, slots=True)
class AuthSpec:
    """Who has to prove what to log in: an authentication source and its own options, which may hold secrets."""

    source: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A target node: its iSCSI name, its logical units and what it offers in negotiation (see ``text.keys``).

    ``portal_groups``, in ascending order of their tags, are those that it is served through; none: all that there are.
    ``parameters`` maps the RFC's key names to values and overrides what the server offers.
    """

    name: str
    luns: tuple[LunSpec, ...] = ()
    alias: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    portal_groups: tuple[AccessSpec, ...] = ()
    initiators: tuple[str, ...] = ()  # names that may use it, with wildcards; none: every name
    networks: tuple[str, ...] = ()  # and the addresses they may come from; none: every address
    auth: AuthSpec | None = None


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The whole configuration. Times in seconds."""

    portals: tuple[PortalSpec, ...] = (PortalSpec("0.0.0.0"), PortalSpec("::"))
    targets: tuple[TargetSpec, ...] = ()
    workers: int = 0  # 0: one per core that this process may use
    runtime_dir: str = "/run/iscsid-server"
    state_dir: str = "/var/lib/iscsid-server"
    plugin_dirs: tuple[str, ...] = ()
    disabled_plugins: tuple[str, ...] = ()
    log_level: str = "info"
    login_timeout: float = 15.0  # from accept to full feature phase
    max_pending_logins: int = 256  # connections that have not sent a whole first Login PDU, in all
    max_pending_logins_per_host: int = 64
    max_sessions: int = 1024
    nop_interval: float = 30.0  # idle time before a NOP-In asks whether the initiator lives; 0: never
    nop_timeout: float = 30.0  # how long its answer may take
    stop_timeout: float = 10.0  # how long a graceful stop waits for commands in flight
    worker_timeout: float = 60.0  # a worker that shows no life for this long is killed and replaced
    io_timeout: float = 30.0  # of the logical units that do not say their own
    discovery_auth: AuthSpec | None = None

    def access(self, target: TargetSpec) -> tuple[AccessSpec, ...]:
        """The portal groups through which ``target`` is served, in ascending order of their tags."""
        tags = {portal.portal_group_tag for portal in self.portals}
        return target.portal_groups or tuple(AccessSpec(tag) for tag in sorted(tags))
