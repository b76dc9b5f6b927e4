"""Finds the plugins, asks them once what they are, and opens devices through them.

Nothing here happens at import: :func:`load` builds a :class:`Plugins`, and a process may have several. A plugin that
cannot be used is left out and kept in ``failures`` with its name and reason; what calls a plugin raises PluginError and
nothing else, so one bad file in a folder takes no server down.

Built-ins come first, then entry points of the group ``iscsid``, then files of the plugin folders; a name that is taken
stays with the first, so no stranger can stand in for a built-in.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from iscsid.block.device import Device, Sharing
from iscsid.block.handles import Condition, handles_of
from iscsid.block.whole import whole
from iscsid.errors import PluginError
from iscsid.plugin import hookspecs
from iscsid.plugin.auth import AuthInfo, CredentialSource
from iscsid.plugin.info import API_VERSION, BackendInfo, LayerInfo, check_options, near
from iscsid.plugin.members import MAX_DEPTH, TYPE, Member, depth
from iscsid.plugin.modules import PREFIX, failure_of, import_file, marked_hooks, unknown_arguments, unmarked_hooks

#: The modules that come with iscsid; the last part is the plugin's name. Strings, so that nothing in iscsid imports
#: them; order is the order of registration.
BUILTIN = (
    "iscsid_backends.file",
    "iscsid_backends.ram",
    "iscsid_backends.null",
    "iscsid_backends.blockdev",
    "iscsid_backends.qcow2",
    "iscsid_backends.nbd",
    "iscsid_backends.concat",
    "iscsid_backends.mirror",
    "iscsid_plugins.offset",
    "iscsid_plugins.partition",
    "iscsid_plugins.protect",
    "iscsid_plugins.rate",
    "iscsid_plugins.delay",
    "iscsid_plugins.retry",
    "iscsid_plugins.fault",
    "iscsid_plugins.log",
    "iscsid_plugins.stats",
    "iscsid_plugins.record",
    "iscsid_plugins.cow",
    "iscsid_plugins.cache",
    "iscsid_plugins.checksum",
    "iscsid_plugins.crypt",
    "iscsid_plugins.chap",
)
#: Names of built-in back ends that are not the name of their module (``block`` is a room of iscsid already).
PROVIDED_BY = {"block": "blockdev"}
ENTRY_POINTS = "iscsid"
_HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith(PREFIX))


_STRICTNESS = (Sharing.SHARED, Sharing.SHARED_READ, Sharing.EXCLUSIVE_OWNER)


#: What a plugin must implement beside the hook that describes it.
_MAKERS: dict[type, str] = {
    BackendInfo: "iscsid_open",
    LayerInfo: "iscsid_filter",
    AuthInfo: "iscsid_authenticate",
}


@dataclass(frozen=True, slots=True)
class _Owner:
    """A back end, a layer or an authentication source, and the plugin that owns it."""

    plugin: str
    info: BackendInfo | LayerInfo | AuthInfo


def _members(owner: _Owner, options: Mapping[str, Any]) -> list[tuple[str, tuple[Member, ...]]]:
    """Each option of ``owner`` that holds members, with them."""
    names = [option.name for option in owner.info.options or () if option.type == TYPE]
    return [(name, options[name]) for name in names if isinstance(options.get(name), tuple)]


def _with_opener(member: Member, opener: Callable[[], Device]) -> Member:
    return replace(member, opener=opener)


class Plugins:
    """The plugins of one process. Made by :func:`load`, whose ``arguments`` make the same in another process."""

    arguments: tuple[frozenset[str] | None, tuple[str, ...], tuple[str, ...]] | None = None

    #: Makes what threads wait at for a handle (``block.handles``); None, where there is one thread: one handle will do.
    condition: Callable[[], Condition] | None = None

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for name in disabled:
            self._manager.set_blocked(PROVIDED_BY.get(name, name))
        self._backends: dict[str, _Owner] = {}
        self._layers: dict[str, _Owner] = {}
        self._auth: dict[str, _Owner] = {}
        #: What could not be used, and why.
        self.failures: list[PluginError] = []

    @property
    def backends(self) -> dict[str, BackendInfo]:
        """The back ends there are, by name."""
        return {name: owner.info for name, owner in self._backends.items() if isinstance(owner.info, BackendInfo)}

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """The layers there are, by name."""
        return {name: owner.info for name, owner in self._layers.items() if isinstance(owner.info, LayerInfo)}

    @property
    def auth_sources(self) -> dict[str, AuthInfo]:
        """The authentication sources there are, by name."""
        return {name: owner.info for name, owner in self._auth.items() if isinstance(owner.info, AuthInfo)}

    def catalogue(self) -> list[tuple[str, BackendInfo | LayerInfo | AuthInfo, str, str]]:
        """All that there is: its kind, what it says of itself, the plugin that has it, and that one's file."""
        found = []
        for kind, known in (("back end", self._backends), ("layer", self._layers), ("auth", self._auth)):
            for owner in known.values():
                file = getattr(self._manager.get_plugin(owner.plugin), "__file__", None)
                found.append((kind, owner.info, owner.plugin, file or ""))
        return found

    # Loading.

    def add(self, name: str, importing: Callable[[], object], file: str = "") -> bool:
        """Import a plugin and take it in as ``name``; False, with the reason in ``failures``, when it is no good.

        A blocked name is passed over without being imported. The reason names the ``file``, where there is one.
        """
        if self._manager.is_blocked(name):
            return False
        if self._manager.has_plugin(name):
            self._fail(PluginError(name, "there is another plugin of this name"), file)
            return False
        try:
            plugin = importing()
            self._register(name, plugin)
            self._describe(name)
        except PluginError as error:
            self._fail(error, file)
        except (Exception, SystemExit) as error:
            self._fail(failure_of(name, error, file), file)
        else:
            return True
        self._forget(name)
        return False

    def _fail(self, error: PluginError, file: str) -> None:
        failure = PluginError(error.plugin, f"{file}: {error.reason}") if file else error
        failure.__cause__ = error.__cause__
        self.failures.append(failure)

    def _forget(self, name: str) -> None:
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        for known in (self._backends, self._layers, self._auth):
            for provided in [key for key, owner in known.items() if owner.plugin == name]:
                del known[provided]

    def _register(self, name: str, plugin: object) -> None:
        unmarked = [hook for hook in unmarked_hooks(plugin) if hook in _HOOKS]
        if unmarked:
            raise PluginError(name, f"{unmarked[0]} is not marked with @hookimpl")
        unknown = [hook for hook in marked_hooks(plugin) if hook not in _HOOKS]
        if unknown:
            raise PluginError(name, f"there is no hook {unknown[0]}{near(unknown[0], _HOOKS)}")
        for hook in marked_hooks(plugin):
            if problem := unknown_arguments(plugin, hook):
                raise PluginError(name, problem)
        self._manager.register(plugin, name=name)
        self._manager.check_pending()

    def _describe(self, name: str) -> None:
        for hook, kind, known in (
            ("iscsid_backend_info", BackendInfo, self._backends),
            ("iscsid_layer_info", LayerInfo, self._layers),
            ("iscsid_auth_info", AuthInfo, self._auth),
        ):
            info = self._call(name, hook)
            if info is None:
                continue
            if not isinstance(info, kind):
                raise PluginError(name, f"{hook} answered {type(info).__name__}, not {kind.__name__}")
            if info.api != API_VERSION:
                raise PluginError(name, f"made for API {info.api}; this server has {API_VERSION}")
            if info.name in known:
                raise PluginError(name, f"the name {info.name} is taken by plugin {known[info.name].plugin}")
            self._require(name, _MAKERS[kind])
            known[info.name] = _Owner(name, info)

    def _require(self, name: str, hook: str) -> None:
        if not self._implements(name, hook):
            raise PluginError(name, f"has no {hook}")

    # Asking plugins.

    def validate(self, backend: str, options: Mapping[str, Any]) -> list[str]:
        """What is wrong with ``options`` for ``backend``, and with the name itself; empty when all is well.

        Never raises: a plugin that fails in its check is a problem like any other.
        """
        return self._validate(self._backends, "back end", backend, options)

    def validate_layer(self, layer: str, options: Mapping[str, Any]) -> list[str]:
        """As :meth:`validate`, for a layer."""
        return self._validate(self._layers, "layer", layer, options)

    def validate_auth(self, source: str, options: Mapping[str, Any]) -> list[str]:
        """As :meth:`validate`, for an authentication source."""
        return self._validate(self._auth, "authentication source", source, options)

    def authenticate(self, source: str, options: Mapping[str, Any]) -> CredentialSource:
        """Make an authentication source; in the worker."""
        owner, values = self._options(source, options, self._auth, "authentication source")
        made = self._call(owner.plugin, "iscsid_authenticate", options=values)
        if not isinstance(made, CredentialSource):
            raise PluginError(owner.plugin, f"iscsid_authenticate answered {type(made).__name__}")
        return made

    def prepare(self, backend: str, options: Mapping[str, Any], role: str = "worker") -> dict[str, Any]:
        """Make ready what all workers share, who open it in ``role``; in the supervisor, before they are forked.

        Returns the options for :meth:`open` and :meth:`release`: converted, complete, with what the plugin added.
        On failure nothing is left prepared.
        """
        owner, values = self._options(backend, options)
        values = self._prepare_members(owner, values, role)
        try:
            added = self._call(owner.plugin, "iscsid_prepare", options=values, role=role)
            if not isinstance(added, Mapping | None):
                raise PluginError(owner.plugin, f"iscsid_prepare answered {type(added).__name__}, not a mapping")
        except PluginError:
            self._release_members(owner, values)
            raise
        return {**values, **(added or {})}

    def resize(self, backend: str, options: Mapping[str, Any], size: int, *, shrink: bool = False) -> dict[str, Any]:
        """Give a medium another size, for which ``options`` is the answer of :meth:`prepare`; see ``iscsid_resize``.

        Returns the options to open it with from now on. Raises PluginError, where the back end cannot do it as well.
        """
        owner = self._owner(self._backends, "back end", backend)
        if not self._implements(owner.plugin, "iscsid_resize"):
            raise PluginError(owner.plugin, f"the back end {backend} cannot change the size of what is in use")
        added = self._call(owner.plugin, "iscsid_resize", options=options, size=size, shrink=shrink)
        if not isinstance(added, Mapping | None):
            raise PluginError(owner.plugin, f"iscsid_resize answered {type(added).__name__}, not a mapping")
        return {**options, "size": size, **(added or {})}

    def release(self, backend: str, options: Mapping[str, Any]) -> None:
        """Undo :meth:`prepare`, whose answer is ``options``; in the supervisor, after the last worker closed."""
        owner = self._owner(self._backends, "back end", backend)
        try:
            self._call(owner.plugin, "iscsid_release", options=options)
        finally:
            self._release_members(owner, options)

    def prepare_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
        """As :meth:`prepare`, for a stack of layers, names with their options, the lowest first.

        Returns them with the options for :meth:`wrap` and :meth:`release_layers`.
        """
        prepared: list[tuple[str, dict[str, Any]]] = []
        try:
            for layer, options in layers:
                owner, values = self._options(layer, options, self._layers, "layer")
                added = self._call(owner.plugin, "iscsid_layer_prepare", name=layer, options=values)
                if not isinstance(added, Mapping | None):
                    reason = f"iscsid_layer_prepare answered {type(added).__name__}, not a mapping"
                    raise PluginError(owner.plugin, reason)
                prepared.append((layer, {**values, **(added or {})}))
        except PluginError:
            self.release_layers(prepared)
            raise
        return prepared

    def release_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Undo :meth:`prepare_layers`. Every one of them, whatever fails; the first failure is raised."""
        failures = []
        for layer, options in reversed(list(layers)):
            try:
                owner = self._owner(self._layers, "layer", layer)
                self._call(owner.plugin, "iscsid_layer_release", name=layer, options=options)
            except PluginError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def layer_verb(
        self, layer: str, options: Mapping[str, Any], verb: str, below: Callable[[], Device]
    ) -> Mapping[str, Any]:
        """Do ``verb`` with what ``layer`` keeps; see the hook ``iscsid_layer_verb``."""
        owner, values = self._options(layer, options, self._layers, "layer")
        self._require(owner.plugin, "iscsid_layer_verb")
        answer = self._call(owner.plugin, "iscsid_layer_verb", name=layer, verb=verb, options=values, below=below)
        if not isinstance(answer, Mapping):
            raise PluginError(owner.plugin, f"iscsid_layer_verb answered {type(answer).__name__}, not a mapping")
        return answer

    def create(self, backend: str, options: Mapping[str, Any]) -> None:
        """Make the medium that ``options`` describe."""
        owner, values = self._options(backend, options)
        self._require(owner.plugin, "iscsid_create")
        self._call(owner.plugin, "iscsid_create", options=values)

    def image(
        self, backend: str, options: Mapping[str, Any], verb: str, arguments: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Do ``verb`` with the medium that ``options`` describe; see the hook ``iscsid_image``."""
        owner, values = self._options(backend, options)
        verbs = {known.name: known for known in owner.info.verbs} if isinstance(owner.info, BackendInfo) else {}
        if verb not in verbs:
            raise PluginError(owner.plugin, f"the back end {backend} cannot {verb}{near(verb, verbs)}")
        checked, problems = check_options(verbs[verb].options, arguments)
        if problems:
            raise PluginError(owner.plugin, "; ".join(problems))
        self._require(owner.plugin, "iscsid_image")
        answer = self._call(owner.plugin, "iscsid_image", options=values, verb=verb, arguments=checked)
        if not isinstance(answer, Mapping):
            raise PluginError(owner.plugin, f"iscsid_image answered {type(answer).__name__}, not a mapping")
        return answer

    def open(self, backend: str, options: Mapping[str, Any], role: str = "worker") -> Device:
        """Open a device; in the worker. ``options`` are the answer of :meth:`prepare`, or plain ones without it."""
        owner, values = self._options(backend, options)
        for name, there in _members(owner, values):
            openers = [partial(self._open_member, member, role) for member in there]
            values[name] = tuple(map(_with_opener, there, openers))
        opener = partial(self._device, owner.plugin, "iscsid_open", options=values, role=role)
        assert isinstance(owner.info, BackendInfo)
        return handles_of(opener, owner.info.handles, self.condition)

    def sharing(self, backend: str, options: Mapping[str, Any], layers: Iterable[str] = ()) -> Sharing:
        """How many processes may open a back end with its members, under these layers: what the strictest allows."""
        owner, values = self._options(backend, options)
        assert isinstance(owner.info, BackendInfo)
        over = set(layers)
        own = self._call(owner.plugin, "iscsid_sharing", options=values)
        if not isinstance(own, Sharing | None):
            raise PluginError(owner.plugin, f"iscsid_sharing answered {type(own).__name__}, not a Sharing")
        found = [own or owner.info.sharing, *(info.sharing for name, info in self.layers.items() if name in over)]
        for _, there in _members(owner, values):
            for member in there:
                found.append(self.sharing(member.backend, member.options, (name for name, _ in member.layers)))
        return max(found, key=_STRICTNESS.index)

    def role_under(self, layers: Iterable[str], role: str) -> str:
        """In which role to open a back end under these layers, the whole in ``role``."""
        there = self.layers
        return "readonly" if any(name in there and there[name].preserves for name in layers) else role

    def wrap(self, device: Device, layer: str, options: Mapping[str, Any]) -> Device:
        """Put a layer over ``device``; closing the answer closes both. On failure ``device`` stays open."""
        owner, values = self._options(layer, options, self._layers, "layer")
        return self._device(owner.plugin, "iscsid_filter", device=whole(device), name=layer, options=values)

    def probe(self, uri: str) -> list[tuple[int, str]]:
        """(confidence, back end) of each that says it can open ``uri``, surest first; one that fails is left out."""
        found = []
        for name, owner in self._backends.items():
            try:
                confidence = self._call(owner.plugin, "iscsid_probe", uri=uri)
            except PluginError:
                continue  # a guess that fails is no guess
            if isinstance(confidence, int) and confidence > 0:
                found.append((confidence, name))
        return sorted(found, reverse=True)

    def notify(self, event: object) -> list[PluginError]:
        """Tell every observer of ``event``. Returns the failures: one observer's does not keep it from the next."""
        failures = []
        for impl in self._manager.hook.iscsid_event.get_hookimpls():
            try:
                self._call(impl.plugin_name, "iscsid_event", event=event)
            except PluginError as error:
                failures.append(error)
        return failures

    # Parts of the above.

    def _validate(self, known: Mapping[str, _Owner], kind: str, name: str, options: Mapping[str, Any]) -> list[str]:
        try:
            owner = self._owner(known, kind, name)
        except PluginError as error:
            return [error.reason]
        if depth(options) > MAX_DEPTH:
            return [f"members within members more than {MAX_DEPTH} deep"]
        values, problems = check_options(owner.info.options, options)
        problems += self._validate_members(owner, values)
        if problems:
            return problems
        try:
            if kind == "layer":
                hook = "iscsid_layer_validate"
                answer = self._call(owner.plugin, hook, name=name, options=values)
            else:
                hook = "iscsid_validate"
                answer = self._call(owner.plugin, hook, options=values)
        except PluginError as error:
            return [str(error)]
        if isinstance(answer, str) or not isinstance(answer, Iterable | None):
            return [f"plugin {owner.plugin}: {hook} answered {answer!r}, not a list"]
        return [str(problem) for problem in answer or ()]

    def _validate_members(self, owner: _Owner, options: Mapping[str, Any]) -> list[str]:
        problems = []
        for name, there in _members(owner, options):
            for index, member in enumerate(there):
                found = self.validate(member.backend, member.options)
                for layer, its in member.layers:
                    found += self.validate_layer(layer, its)
                problems += [f"{name}[{index}]: {problem}" for problem in found]
        return problems

    def _open_member(self, member: Member, role: str) -> Device:
        role = self.role_under((name for name, _ in member.layers), role)
        device = whole(self.open(member.backend, member.options, role))
        try:
            for layer, options in member.layers:
                device = self.wrap(device, layer, options)
        except PluginError:
            device.close()
            raise
        return device

    def _prepare_members(self, owner: _Owner, options: dict[str, Any], role: str) -> dict[str, Any]:
        """``options`` with every member prepared, or with its problem where the back end can do without it."""
        values = dict(options)
        for name, there in _members(owner, options):
            values[name] = ()
            for member in there:
                try:
                    made = self._prepare_member(member, role)
                except PluginError as error:
                    if not (isinstance(owner.info, BackendInfo) and owner.info.degrades):
                        self._release_members(owner, values)
                        raise
                    made = replace(member, problem=str(error))
                values[name] = (*values[name], made)
        return values

    def _prepare_member(self, member: Member, role: str) -> Member:
        names = [name for name, _ in member.layers]
        options = self.prepare(member.backend, member.options, self.role_under(names, role))
        try:
            return replace(member, options=options, layers=tuple(self.prepare_layers(member.layers)))
        except PluginError:
            self.release(member.backend, options)
            raise

    def _release_members(self, owner: _Owner, options: Mapping[str, Any]) -> None:
        """Every one of them, whatever fails; the first failure is raised."""
        failures = []
        for _, there in _members(owner, options):
            for member in there:
                if member.problem:
                    continue
                for release, arguments in (
                    (self.release_layers, (member.layers,)),
                    (self.release, (member.backend, member.options)),
                ):
                    try:
                        release(*arguments)
                    except PluginError as error:
                        failures.append(error)
        if failures:
            raise failures[0]

    def _owner(self, known: Mapping[str, _Owner], kind: str, name: str) -> _Owner:
        owner = known.get(name)
        if owner is not None:
            return owner
        module = PROVIDED_BY.get(name, name)
        if self._manager.is_blocked(module):
            raise PluginError(name, f"the {kind} {name} is disabled")
        for failure in self.failures:
            if failure.plugin == module:
                raise PluginError(name, f"the {kind} {name} could not be loaded: {failure.reason}")
        raise PluginError(name, f"there is no {kind} {name}{near(name, known)}")

    def _options(
        self, name: str, options: Mapping[str, Any], known: Mapping[str, _Owner] | None = None, kind: str = "back end"
    ) -> tuple[_Owner, dict[str, Any]]:
        """Owner and converted options. Keys that are not in the schema pass: ``iscsid_prepare`` adds some."""
        owner = self._owner(self._backends if known is None else known, kind, name)
        values, problems = check_options(owner.info.options, options, strict=False)
        if problems:
            raise PluginError(owner.plugin, "; ".join(problems))
        return owner, values

    def _device(self, plugin: str, hook: str, **arguments: Any) -> Device:
        device = self._call(plugin, hook, **arguments)
        if not isinstance(device, Device):
            raise PluginError(plugin, f"{hook} answered {type(device).__name__}, not a Device")
        return device

    def implements(self, backend: str, hook: str) -> bool:
        """Whether the plugin of a back end has this hook."""
        return self._implements(self._owner(self._backends, "back end", backend).plugin, hook)

    def _implements(self, plugin: str, hook: str) -> bool:
        return any(impl.plugin_name == plugin for impl in getattr(self._manager.hook, hook).get_hookimpls())

    def _call(self, plugin: str, hook: str, **arguments: Any) -> Any:
        """Put one hook to one plugin; whatever it raises becomes a PluginError with its name."""
        others = [other for other in self._manager.get_plugins() if self._manager.get_name(other) != plugin]
        caller = self._manager.subset_hook_caller(hook, others)
        try:
            return caller(**arguments)
        except (Exception, SystemExit) as error:
            file = getattr(self._manager.get_plugin(plugin), "__file__", None)
            raise failure_of(plugin, error, file or "") from error


def load(
    names: Iterable[str] | None = None, plugin_dirs: Iterable[str | Path] = (), disabled: Iterable[str] = ()
) -> Plugins:
    """Find and import plugins.

    ``names`` are the back ends and layers that the configuration uses: built-ins that it does not name are not
    imported (None: all are). Those of strangers are, since only they know what they provide. ``disabled`` are names
    of plugins or back ends that must not be imported at all. Never raises: see ``Plugins.failures``.
    """
    names = None if names is None else frozenset(names)
    plugins = Plugins(disabled)
    plugins.arguments = (names, tuple(map(str, plugin_dirs)), tuple(disabled))
    wanted = None if names is None else {PROVIDED_BY.get(name, name) for name in names}
    for path in BUILTIN:
        name = path.rpartition(".")[2]
        if wanted is None or name in wanted:
            plugins.add(name, partial(importlib.import_module, path))
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        plugins.add(entry.name, entry.load)
    for folder in plugin_dirs:
        _add_folder(plugins, Path(folder))
    return plugins


def load_file(path: str | Path) -> Plugins:
    """The built-ins, and the plugin in one file. Raises PluginError where that is no good.

    No other plugins: the one in the file may well be installed, too.
    """
    plugins = Plugins()
    for module in BUILTIN:
        plugins.add(module.rpartition(".")[2], partial(importlib.import_module, module))
    if not plugins.add(Path(path).stem, partial(import_file, Path(path)), str(path)):
        raise plugins.failures[-1]
    return plugins


def _add_folder(plugins: Plugins, folder: Path) -> None:
    """Each ``name.py`` in ``folder`` is the plugin ``name``; files that begin with _ or . are not."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".py" and path.name[0] not in "._")
    except OSError as error:
        plugins.failures.append(PluginError(str(folder), f"the plugin folder cannot be read: {error.strerror}"))
        return
    for path in paths:
        plugins.add(path.stem, partial(import_file, path), str(path))
