"""Loading plugins, good and bad, and asking them. Whatever a plugin does, only PluginError comes out, with its name."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from iscsid.block.device import Device, Sharing
from iscsid.errors import PluginError
from iscsid.plugin import manager
from iscsid.plugin.manager import BUILTIN, PROVIDED_BY, Plugins, load

GOOD = """
    from iscsid.plugin import BackendInfo, Device, Option, hookimpl

    class Zeros(Device):
        size = 4096

        def read_into(self, buffer, offset):
            buffer[:] = bytes(len(buffer))

        def write(self, data, offset):
            pass

    @hookimpl
    def iscsid_backend_info():
        return BackendInfo("zeros", "zeros", (Option("size", "size", default=4096), Option("how", "str")))

    @hookimpl
    def iscsid_open(options, role):
        device = Zeros()
        device.size, device.role, device.options = options["size"], role, options
        return device
"""


@pytest.fixture(autouse=True)
def no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that happen to be installed on the machine of the test are not under test."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])


def put(folder: Path, name: str, *parts: str) -> None:
    (folder / f"{name}.py").write_text("\n".join(textwrap.dedent(part) for part in parts))


def load_one(folder: Path, *parts: str) -> Plugins:
    put(folder, "mine", *parts)
    return load([], [folder])


def reason(plugins: Plugins, name: str = "mine") -> str:
    assert [failure.plugin for failure in plugins.failures] == [name]
    return plugins.failures[0].reason


# Loading.


def test_every_builtin_loads() -> None:
    plugins = load()
    assert not plugins.failures
    assert set(plugins.backends) == {"file", "ram", "null", "block", "concat", "mirror", "nbd", "qcow2"}
    assert all(info.doc and info.options for info in plugins.backends.values())


def test_only_the_builtins_that_are_named_are_imported() -> None:
    code = (
        "import sys; from iscsid.plugin.manager import load; plugins = load(['block']);"
        "print(sorted(plugins.backends), sorted(name for name in sys.modules if name.startswith('iscsid_backends.')))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    expected = [f"iscsid_backends.{name}" for name in ("blockdev", "claims", "descriptor", "linux")]
    assert done.stdout.strip() == f"['block'] {expected}"


def test_disabled_builtin_is_not_there_and_says_so() -> None:
    plugins = load(["file", "block", "ram"], disabled=["file", "block"])
    assert set(plugins.backends) == {"ram"}
    assert not plugins.failures
    assert plugins.validate("block", {}) == ["the back end block is disabled"]


def test_names_of_builtins_lead_to_their_modules() -> None:
    modules = {path.rpartition(".")[2] for path in BUILTIN}
    assert set(PROVIDED_BY.values()) <= modules
    assert len(modules) == len(BUILTIN)


def test_file_in_a_plugin_folder_is_a_plugin(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, GOOD)
    assert not plugins.failures
    assert plugins.backends["zeros"].doc == "zeros"
    assert plugins.open("zeros", {}).size == 4096


def test_other_files_in_a_plugin_folder_are_not(tmp_path: Path) -> None:
    for name in ("_helper.py", ".hidden.py", "notes.txt"):
        (tmp_path / name).write_text("raise SystemExit(name)")
    plugins = load([], [tmp_path])
    assert not plugins.failures
    assert not plugins.backends


def test_plugin_folder_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    plugins = load([], [tmp_path / "none"])
    assert "cannot be read" in reason(plugins, str(tmp_path / "none"))


def test_entry_point_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "stranger_zeros", GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.metadata.EntryPoint("zeros-plugin", "stranger_zeros", "iscsid")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "iscsid" else [])
    plugins = load([])
    assert not plugins.failures
    assert set(plugins.backends) == {"zeros"}


def test_two_managers_know_nothing_of_each_other(tmp_path: Path) -> None:
    assert "zeros" in load_one(tmp_path, GOOD).backends
    assert "zeros" not in load([]).backends


# Bad plugins: each is left out and named, and its neighbour works.

BAD = {
    "import-error": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "syntax-error": ("def (:", "SyntaxError"),
    "exit": ("raise SystemExit(3)", "SystemExit"),
    "unmarked-hook": (
        "def iscsid_open(options, role): pass",
        "iscsid_open is not marked with @hookimpl",
    ),
    "misspelt-hook": (
        "from iscsid.plugin import hookimpl\n@hookimpl\ndef iscsid_opne(options, role): pass",
        'there is no hook iscsid_opne (did you mean "iscsid_open"?)',
    ),
    "wrong-argument": (
        "from iscsid.plugin import hookimpl\n@hookimpl\ndef iscsid_open(path): pass",
        "mine.py: iscsid_open has no argument path; it has options, role",
    ),
    "wrong-api": (
        "from iscsid.plugin import BackendInfo, hookimpl\n"
        "@hookimpl\ndef iscsid_backend_info(): return BackendInfo('x', '', api=99)",
        "made for API 99; this server has 1",
    ),
    "raising-info": (
        "from iscsid.plugin import hookimpl\n@hookimpl\ndef iscsid_backend_info(): return 1 / 0",
        "ZeroDivisionError",
    ),
    "wrong-info": (
        "from iscsid.plugin import hookimpl\n@hookimpl\ndef iscsid_backend_info(): return 'file'",
        "iscsid_backend_info answered str, not BackendInfo",
    ),
    "no-open": (
        "from iscsid.plugin import BackendInfo, hookimpl\n"
        "@hookimpl\ndef iscsid_backend_info(): return BackendInfo('x', '')",
        "has no iscsid_open",
    ),
    "no-filter": (
        "from iscsid.plugin import LayerInfo, hookimpl\n@hookimpl\ndef iscsid_layer_info(): return LayerInfo('x', '')",
        "has no iscsid_filter",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_plugin_is_left_out_and_named(tmp_path: Path, kind: str) -> None:
    source, words = BAD[kind]
    put(tmp_path, "mine", source)
    put(tmp_path, "zeros", GOOD)
    plugins = load(["null"], [tmp_path])
    assert words in reason(plugins)
    assert set(plugins.backends) == {"null", "zeros"}
    assert not plugins.layers


def test_bad_plugin_leaves_no_hook_behind(tmp_path: Path) -> None:
    source = "from iscsid.plugin import hookimpl\n@hookimpl\ndef iscsid_event(event): raise SystemExit\n"
    plugins = load_one(tmp_path, source, BAD["wrong-api"][0])
    assert "API 99" in reason(plugins)
    assert plugins.notify("anything") == []


def test_plugin_that_is_half_good_provides_nothing(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, GOOD, BAD["no-filter"][0])
    assert "has no iscsid_filter" in reason(plugins)
    assert not plugins.backends


def test_back_end_whose_name_is_taken_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a", GOOD)
    put(tmp_path, "b", GOOD)
    plugins = load([], [tmp_path])
    assert "the name zeros is taken by plugin a" in reason(plugins, "b")
    assert set(plugins.backends) == {"zeros"}


def test_stranger_cannot_stand_in_for_a_builtin(tmp_path: Path) -> None:
    put(tmp_path, "null", GOOD.replace('"zeros", "zeros"', '"null", "stolen"'))
    put(tmp_path, "other", GOOD.replace('"zeros", "zeros"', '"null", "stolen"'))
    plugins = load(["null"], [tmp_path])
    assert [failure.plugin for failure in plugins.failures] == ["null", "other"]
    assert plugins.backends["null"].doc != "stolen"


def test_failed_import_leaves_no_module_behind(tmp_path: Path) -> None:
    load_one(tmp_path, "import no_such_module_anywhere")
    assert "iscsid_plugin_file_mine" not in sys.modules


# Asking.

HOOKED = (
    GOOD
    + """
    @hookimpl
    def iscsid_validate(options):
        if options["how"] == "raise":
            raise RuntimeError("checked too hard")
        return {"bad": ["how: bad"], "text": "a string", "none": None}.get(options["how"], [])

    @hookimpl
    def iscsid_prepare(options):
        if options["how"] == "raise":
            raise OSError(28, "No space left on device")
        return {"none": None, "text": "x"}.get(options["how"], {"handle": 7})

    released = []

    @hookimpl
    def iscsid_release(options):
        released.append(options["handle"])

    @hookimpl
    def iscsid_create(options):
        released.append("created")

    @hookimpl
    def iscsid_probe(uri):
        return {"zeros:": 90, "maybe:": 0}[uri]

    @hookimpl
    def iscsid_sharing(options):
        from iscsid.plugin import Sharing

        return {"alone": Sharing.EXCLUSIVE_OWNER, "text": "alone"}.get(options["how"])
"""
)


@pytest.fixture
def hooked(tmp_path: Path) -> Plugins:
    plugins = load_one(tmp_path, HOOKED)
    assert not plugins.failures
    return plugins


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({}, []),
        ({"how": "none"}, []),
        ({"size": "8 KiB"}, []),
        ({"how": "bad"}, ["how: bad"]),
        ({"sise": 1}, ['sise: unknown option (did you mean "size"?)']),
        ({"size": "big"}, ["size: 'big' is not a size such as 10 GiB"]),
        ({"how": "raise"}, ["plugin mine: RuntimeError: checked too hard (mine.py, line 26)"]),
        ({"how": "text"}, ["plugin mine: iscsid_validate answered 'a string', not a list"]),
    ],
)
def test_validate_tells_every_problem_and_never_raises(
    hooked: Plugins, options: dict[str, Any], problems: list[str]
) -> None:
    assert hooked.validate("zeros", options) == problems


def test_sharing_is_what_the_options_make_it_or_that_of_the_back_end(hooked: Plugins) -> None:
    assert hooked.sharing("zeros", {"how": "alone"}) is Sharing.EXCLUSIVE_OWNER
    assert hooked.sharing("zeros", {}) is Sharing.SHARED
    with pytest.raises(PluginError, match="iscsid_sharing answered str, not a Sharing"):
        hooked.sharing("zeros", {"how": "text"})


def test_unknown_back_end_is_told_with_the_likely_one(hooked: Plugins) -> None:
    assert hooked.validate("zeroes", {}) == ['there is no back end zeroes (did you mean "zeros"?)']
    with pytest.raises(PluginError, match="there is no back end zeroes"):
        hooked.open("zeroes", {})


def test_back_end_that_failed_to_load_is_told_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "fancy", "import no_such_module_anywhere")
    problems = load(["fancy"], [tmp_path]).validate("fancy", {})
    assert len(problems) == 1
    assert "could not be loaded" in problems[0]
    assert "no_such_module_anywhere" in problems[0]


def test_prepare_adds_to_the_options_that_open_gets(hooked: Plugins) -> None:
    prepared = hooked.prepare("zeros", {"size": "8 KiB"})
    assert prepared == {"size": 8192, "how": None, "handle": 7}
    device: Any = hooked.open("zeros", prepared, "owner")
    assert (device.size, device.role, device.options) == (8192, "owner", prepared)


def test_prepare_that_answers_nothing_gives_the_options(hooked: Plugins) -> None:
    assert hooked.prepare("zeros", {"how": "none"}) == {"size": 4096, "how": "none"}


def test_prepare_of_a_plugin_without_one_gives_the_options(tmp_path: Path) -> None:
    assert load_one(tmp_path, GOOD).prepare("zeros", {}) == {"size": 4096, "how": None}


@pytest.mark.parametrize(
    ("how", "words"), [("raise", "plugin mine: .*No space left"), ("text", "answered str, not a mapping")]
)
def test_prepare_that_fails_names_the_plugin(hooked: Plugins, how: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        hooked.prepare("zeros", {"how": how})


def test_release_and_create_reach_the_plugin(hooked: Plugins) -> None:
    hooked.release("zeros", hooked.prepare("zeros", {}))
    hooked.create("zeros", {})
    assert sys.modules["iscsid_plugin_file_mine"].released == [7, "created"]


def test_create_of_a_plugin_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="has no iscsid_create"):
        load_one(tmp_path, GOOD).create("zeros", {})


def test_probe_ranks_the_back_ends_and_skips_who_fails(hooked: Plugins) -> None:
    assert hooked.probe("zeros:") == [(90, "zeros")]
    assert hooked.probe("maybe:") == []
    assert hooked.probe("unheard-of:") == []


def test_open_with_options_that_are_wrong_names_them(hooked: Plugins) -> None:
    with pytest.raises(PluginError, match="plugin mine: size: 'big' is not a size"):
        hooked.open("zeros", {"size": "big"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise OSError(2, 'No such file or directory', '/x')", "/x: No such file or directory"),
        ("raise KeyError('path')", "KeyError: 'path' (mine.py, line {})"),
        ("raise SystemExit(1)", "SystemExit: 1 (mine.py, line {})"),
        ("raise ValueError()", "ValueError (mine.py, line {})"),
        ("raise ValueError('too odd')", "ValueError: too odd (mine.py, line {})"),
        ("return None", "iscsid_open answered NoneType, not a Device"),
        ("return 'device'", "iscsid_open answered str, not a Device"),
    ],
)
def test_open_that_fails_names_the_plugin(tmp_path: Path, body: str, words: str) -> None:
    source = GOOD.partition("        device = Zeros()")[0] + f"        {body}\n"
    with pytest.raises(PluginError) as caught:
        load_one(tmp_path, source).open("zeros", {})
    line = (tmp_path / "mine.py").read_text().partition(body)[0].count("\n") + 1
    assert str(caught.value) == f"plugin mine: {words.format(line)}"


LAYER = """
    from iscsid.plugin import Device, LayerInfo, Option, hookimpl

    class Same(Device):
        def __init__(self, below, factor):
            self.below, self.size, self.factor = below, below.size, factor

    @hookimpl
    def iscsid_layer_info():
        return LayerInfo("same", "changes nothing", (Option("factor", "int", default=1, minimum=0),))

    @hookimpl
    def iscsid_filter(device, name, options):
        return None if options["factor"] == 0 else Same(device, (name, options["factor"]))
"""


def test_layer_wraps_a_device(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, LAYER)
    assert plugins.layers["same"].doc == "changes nothing"
    assert not plugins.backends
    below = Device()
    below.size = 512
    above: Any = plugins.wrap(below, "same", {})
    assert (above.below, above.factor) == (below, ("same", 1))


def test_layer_that_answers_no_device_names_itself(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="plugin mine: iscsid_filter answered NoneType"):
        load_one(tmp_path, LAYER).wrap(Device(), "same", {"factor": 0})


def test_layer_options_are_validated(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, LAYER)
    assert plugins.validate_layer("same", {"factor": 2}) == []
    assert plugins.validate_layer("same", {"factor": -1}) == ["factor: -1 is below 0"]
    assert plugins.validate_layer("sam", {}) == ['there is no layer sam (did you mean "same"?)']


def test_wrong_layer_options_are_refused_by_wrap(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="factor: -1 is below 0"):
        load_one(tmp_path, LAYER).wrap(Device(), "same", {"factor": -1})  # asks nothing of the device


OBSERVER = """
    from iscsid.plugin import hookimpl

    seen = []

    @hookimpl
    def iscsid_event(event):
        seen.append(event)
        if event == {event!r}:
            raise RuntimeError("cannot look")
"""


def test_event_reaches_every_observer_whatever_one_does(tmp_path: Path) -> None:
    for name, event in (("one", "a"), ("two", "b"), ("three", "c")):
        put(tmp_path, name, OBSERVER.replace("{event!r}", repr(event)))
    plugins = load([], [tmp_path])
    assert [failure.plugin for failure in plugins.notify("b")] == ["two"]
    assert plugins.notify("d") == []
    for name in ("one", "two", "three"):
        assert sys.modules[f"iscsid_plugin_file_{name}"].seen == ["b", "d"]


def test_every_hook_is_called_by_some_method() -> None:
    source = Path(manager.__file__).read_text()
    assert all(f'"{hook}"' in source for hook in manager._HOOKS)


PREPARED_LAYER = (
    LAYER
    + """
    calls = []

    @hookimpl
    def iscsid_layer_validate(name, options):
        return ["factor: is odd"] if options["factor"] % 2 else []

    @hookimpl
    def iscsid_layer_prepare(name, options):
        calls.append(("prepare", options["factor"]))
        if options["factor"] == 6:
            raise OSError(5, "no memory")
        return [1] if options["factor"] == 8 else {"page": options["factor"] * 10}

    @hookimpl
    def iscsid_layer_release(name, options):
        calls.append(("release", options["page"]))
        if options["page"] == 40:
            raise OSError(5, "lost")

    @hookimpl
    def iscsid_validate(options):
        return ["not asked"]
"""
)


def layer_calls(plugins: Plugins) -> Any:
    return plugins._manager.get_plugin("mine").calls  # type: ignore[union-attr]


def test_layer_validates_its_options_by_its_own_hook(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, PREPARED_LAYER)
    assert plugins.validate_layer("same", {"factor": 3}) == ["factor: is odd"]
    assert plugins.validate_layer("same", {"factor": 4}) == []


def test_layers_are_prepared_upwards_and_released_downwards(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, PREPARED_LAYER)
    layers = plugins.prepare_layers([("same", {"factor": 2}), ("same", {})])
    assert layers == [("same", {"factor": 2, "page": 20}), ("same", {"factor": 1, "page": 10})]
    plugins.release_layers(layers)
    assert layer_calls(plugins) == [("prepare", 2), ("prepare", 1), ("release", 10), ("release", 20)]


@pytest.mark.parametrize(("factor", "reason"), [(6, "no memory"), (8, "iscsid_layer_prepare answered list")])
def test_layer_that_cannot_be_prepared_leaves_none_prepared(tmp_path: Path, factor: int, reason: str) -> None:
    plugins = load_one(tmp_path, PREPARED_LAYER)
    with pytest.raises(PluginError, match=reason):
        plugins.prepare_layers([("same", {"factor": 2}), ("same", {"factor": factor})])
    assert layer_calls(plugins) == [("prepare", 2), ("prepare", factor), ("release", 20)]


def test_layer_that_fails_in_its_release_stops_no_other(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, PREPARED_LAYER)
    layers = plugins.prepare_layers([("same", {"factor": 2}), ("same", {"factor": 4})])
    with pytest.raises(PluginError, match="lost"):
        plugins.release_layers(layers)
    assert layer_calls(plugins)[-2:] == [("release", 40), ("release", 20)]


# Authentication sources.

SOURCE = """
    from iscsid.plugin import AuthInfo, CredentialSource, Option, hookimpl

    class Key(CredentialSource):
        def __init__(self, key):
            self.key = key

        def secret(self, user):
            return self.key.encode()

    @hookimpl
    def iscsid_auth_info():
        options = Option("key", "str", required=True), Option("times", "int", default=1)
        return AuthInfo("keys", "one key for all", options)

    @hookimpl
    def iscsid_authenticate(options):
        if options["key"] == "none":
            return None
        if options["key"] == "raise":
            raise OSError(2, "no such vault")
        return Key(options["key"] * options["times"])
"""


def test_authentication_source_is_listed_with_its_plugin(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, SOURCE)
    assert plugins.auth_sources["keys"].doc == "one key for all"
    assert not plugins.backends and not plugins.layers
    ((kind, info, plugin, file),) = plugins.catalogue()
    assert (kind, info.name, plugin, file) == ("auth", "keys", "mine", str(tmp_path / "mine.py"))


def test_authentication_source_gets_its_options_converted_and_complete(tmp_path: Path) -> None:
    plugins = load_one(tmp_path, SOURCE)
    assert plugins.authenticate("keys", {"key": "abc"}).secret("joe") == b"abc"
    assert plugins.authenticate("keys", {"key": "abc", "times": 2}).secret("joe") == b"abcabc"


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("keys", {}, "key"),
        ("keys", {"key": "a", "times": "many"}, "times"),
        ("kyes", {"key": "a"}, "keys"),
    ],
)
def test_wrong_options_of_an_authentication_source_are_told_and_refused(
    tmp_path: Path, source: str, options: dict[str, Any], words: str
) -> None:
    plugins = load_one(tmp_path, SOURCE)
    assert plugins.validate_auth("keys", {"key": "a"}) == []
    assert "times" in plugins.validate_auth("keys", {"key": "a", "tims": 2})[0]
    (problem,) = plugins.validate_auth(source, options)
    assert words in problem
    with pytest.raises(PluginError, match=words):
        plugins.authenticate(source, options)


@pytest.mark.parametrize(
    ("key", "words"), [("none", "mine: iscsid_authenticate answered NoneType"), ("raise", "mine: .*no such vault")]
)
def test_authentication_source_that_cannot_be_made_names_the_plugin(tmp_path: Path, key: str, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        load_one(tmp_path, SOURCE).authenticate("keys", {"key": key})


def test_authentication_source_validates_its_options_by_the_hook(tmp_path: Path) -> None:
    validate = """
    @hookimpl
    def iscsid_validate(options):
        return ["key: is known to everybody"] if options["key"] == "password" else []
    """
    plugins = load_one(tmp_path, SOURCE, validate)
    assert plugins.validate_auth("keys", {"key": "password"}) == ["key: is known to everybody"]
    assert plugins.validate_auth("keys", {"key": "other"}) == []


def test_authentication_source_without_a_maker_or_with_a_taken_name_is_left_out(tmp_path: Path) -> None:
    head, _, _ = SOURCE.rpartition("    @hookimpl\n")
    put(tmp_path, "a", head)
    put(tmp_path, "b", SOURCE)
    put(tmp_path, "c", SOURCE)
    plugins = load([], [tmp_path])
    assert {failure.plugin: failure.reason for failure in plugins.failures} == {
        "a": f"{tmp_path}/a.py: has no iscsid_authenticate",
        "c": f"{tmp_path}/c.py: the name keys is taken by plugin b",
    }
    assert set(plugins.auth_sources) == {"keys"}
