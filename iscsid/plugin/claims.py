"""What a logical unit claims: the media that are its own, and those that others may have, too.

A path or a name in an option that is a ``medium`` is a claim, of a back end, its members, or a layer over them. Two
claims of one medium exclude each other, unless both only read it, both have a part of it of their own, both are content
to share it, or they are of one unit on purpose, which several LUNs with one serial number are. A medium that one
process has to itself can be claimed by one LUN only.

What is one medium is asked of the kernel: two paths may lead to one file, and two device nodes to one disk.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iscsid.block.device import Sharing
from iscsid.plugin.info import BackendInfo, LayerInfo, check_options
from iscsid.plugin.members import TYPE, Member

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

Layers = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Claim:
    """``medium`` is equal for one medium, ``name`` how it is called in the configuration.

    ``layer`` is the index of the layer that claims it, -1: the back end. ``key`` is the option, ``member`` tells whose.
    ``reads``: it is only read; ``alone``: one process has it; ``part``: of it only a part is used; ``shares``: others
    may write to it.
    """

    medium: object
    name: str
    key: str
    layer: int = -1
    member: str = ""
    reads: bool = False
    alone: bool = False
    part: bool = False
    shares: bool = False

    def excludes(self, other: Claim, one_unit: bool) -> bool:
        """Whether the two cannot be, of LUNs that are ``one_unit`` or not, or of one LUN."""
        if self.medium != other.medium or (self.reads and other.reads):
            return False
        if self.alone or other.alone:
            return True
        return not (one_unit or (self.part and other.part) or (self.shares and other.shares))


def claims_of(
    plugins: Plugins, backend: str, options: Mapping[str, Any], layers: Layers, readonly: bool
) -> Iterator[Claim]:
    """What a LUN claims; its options are checked. Raises PluginError."""
    sharing = plugins.sharing(backend, options, [name for name, _ in layers])
    role = plugins.role_under([name for name, _ in layers], "readonly" if readonly else "worker")
    alone = sharing is Sharing.EXCLUSIVE_OWNER or (sharing is Sharing.SHARED_READ and role != "readonly")
    mould = Claim(None, "", "", reads=role == "readonly", alone=alone)
    yield from _of_back_end(plugins, backend, options, layers, mould)
    yield from _of_layers(plugins, layers)


def _of_back_end(
    plugins: Plugins, backend: str, options: Mapping[str, Any], layers: Layers, mould: Claim
) -> Iterator[Claim]:
    info = plugins.backends[backend]
    names = [name for name, _ in layers]
    cut = any(layer.part for layer in _known(plugins, names))
    mould = replace(mould, part=mould.part or cut, shares=options.get("share") is True)
    yield from _in_options(info, options, mould)
    for option in info.options or ():
        if option.type != TYPE:
            continue
        for number, member in enumerate(options.get(option.name) or ()):
            yield from _of_member(plugins, member, replace(mould, member=f"{mould.member}{option.name}[{number}]: "))


def _of_member(plugins: Plugins, member: Member, mould: Claim) -> Iterator[Claim]:
    options, _ = check_options(plugins.backends[member.backend].options, member.options)
    reads = plugins.role_under([name for name, _ in member.layers], "worker") == "readonly"
    below = replace(mould, reads=mould.reads or reads)
    yield from _of_back_end(plugins, member.backend, options, member.layers, below)
    for claim in _of_layers(plugins, member.layers):
        yield replace(claim, layer=-1, member=mould.member)


def _of_layers(plugins: Plugins, layers: Layers) -> Iterator[Claim]:
    """What a layer keeps beside the data; no other device's is in it, whatever it may share with other processes."""
    for number, (name, options) in enumerate(layers):
        info = plugins.layers[name]
        values, _ = check_options(info.options, options)
        alone = info.sharing is not Sharing.SHARED
        yield from _in_options(info, values, Claim(None, "", "", layer=number, alone=alone))


def _in_options(info: BackendInfo | LayerInfo, options: Mapping[str, Any], mould: Claim) -> Iterator[Claim]:
    for option in info.options or ():
        given = options.get(option.name)
        if option.medium and isinstance(given, str):
            medium = file_at(given) if option.type == "path" else (info.name, given)
            yield replace(mould, medium=medium, name=given, key=option.name)


def _known(plugins: Plugins, names: Sequence[str]) -> list[LayerInfo]:
    return [info for name, info in plugins.layers.items() if name in names]


def file_at(path: str) -> object:
    """What tells the file or disk at ``path`` from all others, under whatever names; also of one that is yet to be
    made."""
    try:
        facts = os.stat(path)
    except OSError:
        folder, name = os.path.split(os.path.realpath(path))
        try:
            there = os.stat(folder)
        except OSError:
            return "path", folder, name
        return "new", there.st_dev, there.st_ino, name
    if stat.S_ISBLK(facts.st_mode):
        return "disk", facts.st_rdev
    return "file", facts.st_dev, facts.st_ino
