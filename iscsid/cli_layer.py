"""``iscsid layer``: what layers can do with what they keep beside the data, when no server has it or beside one.

Which verbs there are is what the layers say (``LayerInfo.verbs``). A layer is named by where it is: configuration,
target and LUN, and its name where the stack has several with that verb.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from iscsid.block.device import Device
from iscsid.block.whole import whole
from iscsid.cli_image import print_answer
from iscsid.config import load
from iscsid.errors import PluginError
from iscsid.plugin.manager import Plugins
from iscsid.specs import LayerSpec, LunSpec


def find_layer(plugins: Plugins, layers: Sequence[LayerSpec], verb: str, named: str | None) -> int:
    """Which of ``layers`` is meant. Raises PluginError unless it is exactly one."""
    able = [
        index
        for index, layer in enumerate(layers)
        if verb in (known.name for known in plugins.layers[layer.layer].verbs) and named in (None, layer.layer)
    ]
    if len(able) != 1:
        there = ", ".join(layer.layer for layer in layers) or "none"
        how_many = "more than one layer can" if able else "no layer can"
        raise PluginError("layer", f"{how_many} {verb}; there are: {there}")
    return able[0]


@contextmanager
def opener(plugins: Plugins, lun: LunSpec, under: int) -> Iterator[Any]:
    """A function that opens the device under the layer with the index ``under``; it is closed at the end."""
    with ExitStack() as stack:

        def below() -> Device:
            options = plugins.prepare(lun.backend, lun.options)
            stack.callback(plugins.release, lun.backend, options)
            layers = plugins.prepare_layers([(layer.layer, layer.options) for layer in lun.layers[:under]])
            stack.callback(plugins.release_layers, layers)
            device = whole(plugins.open(lun.backend, options, "readonly" if lun.readonly else "owner"))
            closing = stack.enter_context(ExitStack())
            closing.callback(device.close)
            for name, values in layers:
                device = plugins.wrap(device, name, values)
                closing.pop_all()  # the layer closes what is below it
                closing.callback(device.close)
            return device

        yield below


def do(verb: str, path: str, target: str, number: int, named: str | None) -> Mapping[str, Any]:
    """Do ``verb`` for the LUN. Raises ConfigError, PluginError, BlockError and OSError."""
    spec, plugins = load(path)
    found = [lun for each in spec.targets if each.name == target for lun in each.luns if lun.lun == number]
    if not found:
        raise PluginError("layer", f"{path} has no target {target} with a LUN {number}")
    (lun,) = found
    index = find_layer(plugins, lun.layers, verb, named)
    layer = lun.layers[index]
    with opener(plugins, lun, index) as below:
        return plugins.layer_verb(layer.layer, layer.options, verb, below)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("verb")
@click.argument("file", type=click.Path())
@click.argument("target")
@click.argument("lun", type=int)
@click.option("-l", "--layer", "named", metavar="NAME", help="Which layer, where several know the verb.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer for programs.")
def layer(verb: str, file: str, target: str, lun: int, named: str | None, as_json: bool) -> None:
    """Do VERB with what a layer of LUN of TARGET keeps, as FILE, a configuration, says.

    commit writes the overlay of a cow into the device below it, discard forgets it; verify reads all that a checksum
    covers; stats shows what a stats has counted; format makes the header of a crypt.
    """
    answer = do(verb, file, target, lun, named)
    click.echo(json.dumps(answer, indent=2)) if as_json else print_answer(answer)
