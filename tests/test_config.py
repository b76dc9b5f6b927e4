"""A configuration becomes specs whole, or is refused with everything that is wrong with it."""

from __future__ import annotations

import configparser
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from iscsid import config
from iscsid.errors import ConfigError, Problem
from iscsid.scsi.ports import STATES
from iscsid.specs import ACCESS_STATES, AccessSpec, LayerSpec, LunSpec, PortalSpec, ServerSpec, TargetSpec
from iscsid.text.keys import OFFERABLE, TARGET_OFFERS

ROOT = Path(__file__).resolve().parent.parent
TARGET = '[[target]]\nname = "iqn.2026-11.org.iscsid:disk0"\n'
LUN = '[[target.lun]]\nlun = 0\nbackend = "ram"\nsize = "64 MiB"\n'
PLUGIN = """
from iscsid.plugin import BackendInfo, LayerInfo, Option, hookimpl

@hookimpl
def iscsid_backend_info():
    return BackendInfo("tape", "reels", None)

@hookimpl
def iscsid_validate(options):
    return [] if options.get("reel") else ["a tape needs a reel", "and a motor"]

@hookimpl
def iscsid_open(options, role):
    raise OSError("no drive")

@hookimpl
def iscsid_layer_info():
    return LayerInfo("brake", "slows down", (Option("iops", "int", required=True, minimum=1),))

@hookimpl
def iscsid_filter(device, name, options):
    return device
"""


def parse(content: str) -> ServerSpec:
    return config.parse(content, "disk.toml")[0]


def problems(content: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(content, "disk.toml")
    assert caught.value.source == "disk.toml"
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def plugin_dirs(tmp_path: Path) -> str:
    """A [server] table whose plugin folder holds the back end "tape" and the layer "brake"."""
    (tmp_path / "tape.py").write_text(PLUGIN)
    return f'[server]\nplugin_dirs = ["{tmp_path}"]\n'


# -- what is read ------------------------------------------------------------------------------------------------------


def test_empty_file_is_all_defaults() -> None:
    assert parse("") == ServerSpec()


def test_whole_file_becomes_specs() -> None:
    spec = parse("""
        [server]
        portals = ["127.0.0.1:3261", "[::1]:0"]
        workers = 3
        runtime_dir = "/run/x/"
        log_level = "debug"
        stop_timeout = 1

        [[target]]
        name = "IQN.2026-11.ORG.iscsid:Disk0"
        alias = "the first"
        parameters = { InitialR2T = true, MaxBurstLength = 524288, HeaderDigest = ["None", "CRC32C"] }

        [[target.lun]]
        lun = 7
        backend = "ram"
        size = "10 MiB"
        block_size = 4096
        readonly = true
        serial = "0001"
        vendor = "ACME"
        product = "ROCKET"

        [[target.lun]]
        lun = 1
        backend = "ram"
        size = 1048576
    """)
    lun = LunSpec(7, "ram", {"size": 10 << 20}, 4096, True, "0001", "ACME", "ROCKET")
    assert spec.portals == (PortalSpec("127.0.0.1", 3261), PortalSpec("::1", 0))
    assert (spec.workers, spec.runtime_dir, spec.log_level, spec.stop_timeout) == (3, "/run/x", "debug", 1.0)
    assert spec.login_timeout == ServerSpec().login_timeout
    (target,) = spec.targets
    assert (target.name, target.alias) == ("iqn.2026-11.org.iscsid:disk0", "the first")
    assert target.parameters == {"InitialR2T": "Yes", "MaxBurstLength": "524288", "HeaderDigest": "None,CRC32C"}
    assert [unit.lun for unit in target.luns] == [1, 7]
    assert target.luns[1] == lun


def test_target_without_units_is_served_as_it_is() -> None:
    assert parse(TARGET).targets == (TargetSpec("iqn.2026-11.org.iscsid:disk0"),)


def test_serial_number_is_derived_from_target_and_unit_and_stays() -> None:
    first, second = (parse(TARGET + LUN + LUN.replace("lun = 0", "lun = 1")).targets[0].luns[i].serial for i in (0, 1))
    other = parse(TARGET.replace("disk0", "disk1") + LUN).targets[0].luns[0].serial
    assert len({first, second, other}) == 3
    assert first == "34FAE539EA19DFAF"  # a constant: disks keep their names over an update


def test_units_with_one_serial_number_are_refused_unless_they_are_one_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    unit = f'[[target.lun]]\nlun = 0\nbackend = "file"\nserial = "A1"\npath = "{image}"\n'
    two_paths = TARGET + unit + TARGET.replace("disk0", "disk1") + unit
    assert len(parse(two_paths).targets) == 2
    ram = TARGET + LUN + 'serial = "A1"\n' + LUN.replace("lun = 0", "lun = 1") + 'serial = "A1"\n'
    assert problems(ram) == ["target[0].lun[1].serial: A1 is the serial number of target[0].lun[0] too, another disk"]


def test_paths_of_one_disk_that_differ_in_their_medium_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    unit = f'[[target.lun]]\nlun = 0\nbackend = "file"\nserial = "A1"\npath = "{image}"\n'
    second = TARGET.replace("disk0", "disk1") + unit
    same = "must be as that of target[0].lun[0], which is the same disk"
    assert problems(TARGET + unit + second + "removable = true\n") == [f"target[1].lun[0].removable: {same}"]
    removable = TARGET + unit + "removable = true\n" + second + "removable = true\n"
    assert problems(removable + "loaded = false\n") == [f"target[1].lun[0].loaded: {same}"]


def test_medium_that_nobody_could_load_is_refused() -> None:
    found = problems(TARGET + LUN + "loaded = false\n")
    assert found == ["target[0].lun[0].loaded: can be false only where removable is true: nobody could load it"]
    assert not parse(TARGET + LUN + "removable = true\nloaded = false\n").targets[0].luns[0].loaded


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("worker = 2", 'server.worker: unknown key (did you mean "workers"?)'),
        ("zebra = 2", "server.zebra: unknown key"),
        ('workers = "two"', "server.workers: must be \"auto\" or a number, not 'two'"),
        ("workers = 0", "server.workers: must be from 1 to 1,024, not 0"),
        ("workers = true", "server.workers: must be a whole number, not a boolean"),
        ("workers = 1.5", "server.workers: must be a whole number, not a number"),
        ('portals = "::1"', "server.portals: must be an array, not a string"),
        ("portals = [3260]", "server.portals: [0] must be a string, not a whole number"),
        ('portals = ["::1", "[::1]:3260"]', "server.portals: [1] says [::1]:3260 once more"),
        ('runtime_dir = "run"', "server.runtime_dir: must be an absolute path, not 'run'"),
        ("runtime_dir = 1", "server.runtime_dir: must be a string, not a whole number"),
        (f'runtime_dir = "/{"r" * 94}"', "server.runtime_dir: has at most 94 bytes: "
         "a longer path leaves no room for the socket in it"),
        ('state_dir = "a\\u0000b"', "server.state_dir: must be an absolute path, not 'a\\x00b'"),
        ('log_level = "warn"', "server.log_level: must be one of debug, info, warning, error, not 'warn' "
         '(did you mean "warning"?)'),
        ("login_timeout = 0.5", "server.login_timeout: must be from 1 to 3,600, not 0.5"),
        ("login_timeout = nan", "server.login_timeout: must be from 1 to 3,600, not nan"),
        ("login_timeout = inf", "server.login_timeout: must be from 1 to 3,600, not inf"),
        ('login_timeout = "15"', "server.login_timeout: must be a number of seconds, not a string"),
        ("login_timeout = 2026-11-24", "server.login_timeout: must be a number of seconds, not a date or time"),
        ("max_sessions = 65536", "server.max_sessions: must be from 1 to 65,535, not 65,536"),
        ("disabled_plugins = [[]]", "server.disabled_plugins: [0] must be a string, not an array"),
    ],
)  # fmt: skip
def test_bad_line_of_the_server_table_is_told_with_its_reason(line: str, problem: str) -> None:
    assert problems(f"[server]\n{line}\n") == [problem]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lun = -1", "target[0].lun[0].lun: must be from 0 to 16,383, not -1"),
        ("lun = 16384", "target[0].lun[0].lun: must be from 0 to 16,383, not 16,384"),
        ('lun = "0"', "target[0].lun[0].lun: must be a whole number, not a string"),
        ("backend = 1", "target[0].lun[0].backend: must be a string, not a whole number"),
        ('backend = "rom"', 'target[0].lun[0].backend: there is no back end rom (did you mean "ram"?)'),
        ("block_size = 500", "target[0].lun[0].block_size: must be 0 or a power of two from 512 to 65,536, not 500"),
        ("block_size = 131072", "target[0].lun[0].block_size: must be 0 or a power of two from 512 to 65,536, "
         "not 131,072"),
        ('block_size = "4 Kib"', None),
        ("readonly = 1", "target[0].lun[0].readonly: must be true or false, not a whole number"),
        ('vendor = "ELEPHANTS"', "target[0].lun[0].vendor: has at most 8 bytes, this one has 9"),
        ('product = "größe"', "target[0].lun[0].product: may hold printable ASCII only"),
        ('serial = "a\\tb"', "target[0].lun[0].serial: may hold printable ASCII only"),
        ("blocksize = 512", 'target[0].lun[0].blocksize: unknown key (did you mean "block_size"?)'),
        ('sizes = "1 MiB"', 'target[0].lun[0].sizes: unknown key (did you mean "size"?)'),
        ('size = "1 Gig"', "target[0].lun[0].size: '1 Gig' is not a size such as 10 GiB"),
        ("layers = 1", "target[0].lun[0].layers: is written [[target.lun.layers]], once for each"),
        ("layers = [1]", "target[0].lun[0].layers[0]: must be a table, not a whole number"),
        ("layers = [{ iops = 1 }]", "target[0].lun[0].layers[0].layer: is missing"),
        ('layers = [{ layer = "xyz" }]', "target[0].lun[0].layers[0].layer: there is no layer xyz"),
        ('layers = [{ layer = "rate" }]', "target[0].lun[0].layers[0]: needs iops, bytes_per_second or both"),
    ],
)  # fmt: skip
def test_bad_line_of_a_unit_is_told_with_its_reason(line: str, problem: str | None) -> None:
    key = line.partition(" ")[0]
    lines = [old for old in LUN.splitlines() if not old.startswith(f"{key} ")]
    content = "\n".join([TARGET, *lines, line])
    if problem is None:
        parse(content)
    else:
        assert problem in problems(content)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("MaxBurstLenght = 65536", 'is not a key that a target can offer (did you mean "MaxBurstLength"?)'),
        ("TargetName = 'x'", "is not a key that a target can offer"),
        ("AuthMethod = 'None'", "is not a key that a target can offer"),
        ("InitialR2T = 'maybe'", ""),
        ("MaxBurstLength = 1", ""),
        ("MaxBurstLength = 1.5", "must be a number, a string, true, false or an array of strings, not a number"),
        ("MaxBurstLength = 65536", "262144 is greater than MaxBurstLength, 65536"),
        ("FirstBurstLength = '0x200000'", "0x200000 is greater than MaxBurstLength, 1048576"),
        ("HeaderDigest = [1]", "must be a number, a string, true, false or an array of strings, not an array"),
        ("HeaderDigest = 'MD5'", ""),
        ("ErrorRecoveryLevel = 2", "can only be 0 in this version"),
        ("MaxConnections = 4", "can only be 1 in this version"),
        ("DataPDUInOrder = false", "can only be Yes in this version"),
    ],
)
def test_bad_parameter_is_told_with_its_reason(line: str, problem: str) -> None:
    (found,) = problems(f"{TARGET}[target.parameters]\n{line}\n")
    assert found.startswith("target[0].parameters.")
    assert problem in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[sever]\nworkers = 1", ['sever: unknown key (did you mean "server"?)']),
        ("server = 1", ["server: must be a table, not a whole number"]),
        ("[target]\nname = 'x'", ["target: is written [[target]], once for each"]),
        ("target = [1]", ["target[0]: must be a table, not a whole number"]),
        ("[[target]]", ["target[0].name: is missing"]),
        ("[[target]]\nnam = 'x'", ['target[0].nam: unknown key (did you mean "name"?)',
                                   'target[0].name: is missing (is "nam" meant?)']),
        ("[[target]]\nname = 1", ["target[0].name: must be a string, not a whole number"]),
        ("[[target]]\nname = 'disk'", ["target[0].name: an iSCSI name begins with iqn., eui. or naa."]),
        (TARGET + TARGET, ["target[1].name: iqn.2026-11.org.iscsid:disk0 is the name of target[0] too"]),
        (TARGET + TARGET.upper().replace("TARGET", "target").replace("NAME", "name"),
         ["target[1].name: iqn.2026-11.org.iscsid:disk0 is the name of target[0] too"]),
        (TARGET + LUN + LUN, ["target[0].lun[1].lun: 0 is the number of target[0].lun[0] too"]),
        (TARGET + "[target.lun]\nlun = 0", ["target[0].lun: is written [[target.lun]], once for each"]),
        (TARGET + "[[target.lun]]", ["target[0].lun[0].lun: is missing", "target[0].lun[0].backend: is missing"]),
        (TARGET + "parameters = 1", ["target[0].parameters: must be a table, not a whole number"]),
        (TARGET + "alias = 'a\\b'\nalas = 1", ['target[0].alas: unknown key (did you mean "alias"?)']),
        (TARGET + 'alias = "a\\nb"', ["target[0].alias: may not hold control characters"]),
    ],
)  # fmt: skip
def test_bad_shape_is_told_with_its_reason(content: str, expected: list[str]) -> None:
    assert problems(content) == expected


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = problems(
        "[server]\nworkers = 0\nzebra = 1\n[[target]]\nname = 'x'\n[[target.lun]]\nlun = 0\nbackend = 'rom'\n"
    )
    assert [line.partition(": ")[0] for line in found] == [
        "server.zebra",
        "server.workers",
        "target[0].name",
        "target[0].lun[0].backend",
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[server", "is not TOML: "),
        ("a = 1\na = 2", "is not TOML: "),
        ("a = " + "1" * 5000, "is not TOML: "),
        ("a = " + "[" * 100_000, "is not TOML: "),
        ("a = {" * 50_000, "is not TOML: "),
    ],
)
def test_what_is_not_toml_is_refused_as_such(content: str, reason: str) -> None:
    (found,) = problems(content)
    assert found.startswith(reason)


toml_values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["lun", "layer", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from([*sorted(config.SERVER), "x"]), toml_values)
def test_any_value_in_the_server_table_is_read_or_refused(key: str, value: Any) -> None:
    reader = config._Reader()
    read = reader.table("server", {key: value}, config.SERVER)
    assert bool(read) != bool(reader.problems)


@given(st.dictionaries(st.sampled_from([*config.LUN, "size", "x"]), toml_values))
def test_any_unit_is_read_or_refused(table: dict[str, Any]) -> None:
    reader = config._Reader()
    reader.plugins = config.load_plugins(["ram"])
    spec = reader.lun("target[0].lun[0]", table, "iqn.2026-11.org.iscsid:x")
    assert spec is not None or reader.problems


# -- plugins -----------------------------------------------------------------------------------------------------------


def test_back_end_of_a_plugin_folder_checks_its_own_options(plugin_dirs: str) -> None:
    unit = '[[target.lun]]\nlun = 0\nbackend = "tape"\n'
    assert problems(plugin_dirs + TARGET + unit) == [
        "target[0].lun[0]: a tape needs a reel",
        "target[0].lun[0]: and a motor",
    ]
    spec = parse(plugin_dirs + TARGET + unit + "reel = 7\n")
    assert spec.targets[0].luns[0].options == {"reel": 7}


def test_layer_of_a_plugin_folder_has_its_options_checked(plugin_dirs: str) -> None:
    assert problems(plugin_dirs + TARGET + LUN + 'layers = [{ layer = "brake" }]') == [
        "target[0].lun[0].layers[0].iops: missing"
    ]
    assert problems(plugin_dirs + TARGET + LUN + 'layers = [{ layer = "brake", iops = 0 }, { layer = "brak" }]') == [
        "target[0].lun[0].layers[0].iops: 0 is below 1",
        'target[0].lun[0].layers[1].layer: there is no layer brak (did you mean "brake"?)',
    ]
    spec = parse(plugin_dirs + TARGET + LUN + 'layers = [{ layer = "brake", iops = 5 }]')
    assert spec.targets[0].luns[0].layers == (LayerSpec("brake", {"iops": 5}),)


def test_disabled_back_end_is_refused_by_that_reason() -> None:
    (found,) = problems('[server]\ndisabled_plugins = ["ram"]\n' + TARGET + LUN)
    assert found == "target[0].lun[0].backend: the back end ram is disabled"


def test_plugin_that_cannot_be_loaded_is_told_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "tape.py").write_text("1 / 0")
    server = f'[server]\nplugin_dirs = ["{tmp_path}"]\n'
    unit = '[[target.lun]]\nlun = 0\nbackend = "tape"\n'
    (found,) = problems(server + TARGET + unit)
    where = f"target[0].lun[0].backend: the back end tape could not be loaded: {tmp_path / 'tape.py'}"
    assert found.startswith(f"{where}: ZeroDivisionError")
    spec, plugins = config.parse(server + TARGET + LUN)  # who does not use it is served
    assert len(spec.targets) == 1
    assert [failure.plugin for failure in plugins.failures] == ["tape"]


def test_built_ins_that_are_not_used_are_not_imported() -> None:
    asked: list[Any] = []

    def loader(names: Any, plugin_dirs: Any, disabled: Any) -> Any:
        asked.append(names)
        return config.load_plugins(names, plugin_dirs, disabled)

    config.parse(TARGET + LUN, plugins=loader)
    with pytest.raises(ConfigError):
        config.parse(TARGET + LUN.replace("ram", "strange"), plugins=loader)
    assert asked == [{"ram"}, None]


# -- files -------------------------------------------------------------------------------------------------------------


def test_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    with pytest.raises(ConfigError) as caught:
        config.load(missing)
    assert str(caught.value) == f"{missing}: No such file or directory"


def test_file_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(str(tmp_path))


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"is not UTF-8 \(byte 5\)"):
        config.load(str(path))


def test_file_without_end_is_refused_by_its_length() -> None:
    with pytest.raises(ConfigError, match="is larger than 16,777,216 bytes"):
        config.load("/dev/zero")


# -- what is installed -------------------------------------------------------------------------------------------------

SAMPLE = ROOT / "etc/iscsid.toml"


def sample_with_its_examples() -> str:
    """The sample with everything set that it shows commented out: "# " begins prose, "#" alone an option."""
    return re.sub(r"^#(?=[A-Za-z\[])", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_sample_says_the_defaults_of_every_server_option() -> None:
    assert parse(SAMPLE.read_text()) == ServerSpec()
    assert set(tomli.loads(SAMPLE.read_text())["server"]) == set(config.SERVER)


def test_server_options_are_the_fields_of_the_spec() -> None:
    others = {"targets", "discovery_auth"}
    assert set(config.SERVER) == {field.name for field in dataclasses.fields(ServerSpec)} - others
    assert set(config.LUN) == {field.name for field in dataclasses.fields(LunSpec)} - {"options"}
    tables = {"lun": "luns", "portal_group": "portal_groups"}
    assert {tables.get(key, key) for key in config.TARGET} == {field.name for field in dataclasses.fields(TargetSpec)}


def test_sample_shows_the_defaults_of_every_option_of_targets_and_units() -> None:
    document = tomli.loads(sample_with_its_examples())
    (target,) = document["target"]
    (lun,) = target["lun"]
    assert set(target) == set(config.TARGET)
    own = config.load_plugins(["file"]).backends["file"].options
    assert own is not None
    assert set(lun) == set(config.LUN) | {option.name for option in own}
    defaults = {field.name: field.default for field in dataclasses.fields(LunSpec)}
    defaults["io_timeout"] = ServerSpec().io_timeout  # of which a LUN has as a rule that of the server
    for key in set(config.LUN) - {"lun", "backend", "layers"}:
        assert lun[key] == defaults[key], key
    assert target["alias"] == TargetSpec("x").alias


def test_sample_shows_what_a_target_offers_by_default() -> None:
    parameters = tomli.loads(sample_with_its_examples())["target"][0]["parameters"]
    assert {key: config._parameter(key, value) for key, value in parameters.items()} == dict(TARGET_OFFERS)
    assert set(parameters) == set(OFFERABLE)


def test_sample_with_its_examples_loads(tmp_path: Path) -> None:
    content = sample_with_its_examples().replace("/srv/disk0.img", str(tmp_path / "disk0.img"))
    (target,) = parse(content).targets
    assert target.luns[0].options["size"] == 10 << 30
    assert target.luns[0].serial


def test_every_option_of_the_sample_has_its_sentence() -> None:
    lines = SAMPLE.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if re.match(r"#?[A-Za-z_0-9]+ = ", line)]
    bare = [lines[number] for number in options if not lines[number - 1].startswith("# ")]
    assert not bare


def test_every_option_is_in_the_manual() -> None:
    manual = (ROOT / "docs/configuration.md").read_text()
    missing = [key for key in [*config.SERVER, *config.TARGET, *config.LUN, *TARGET_OFFERS] if f"`{key}`" not in manual]
    assert not missing


def test_unit_file_keeps_the_folders_and_names_of_the_server() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "etc/iscsid-server.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert f"/run/{service['RuntimeDirectory']}" == ServerSpec().runtime_dir
    assert f"/var/lib/{service['StateDirectory']}" == ServerSpec().state_dir
    assert not (ROOT / "etc/iscsid.service").exists()  # open-iscsi's


GROUPS = """
[server]
portals = ["192.0.2.1"]
[[portal_group]]
tag = 9
portals = ["192.0.2.2", "192.0.2.3"]
[[target]]
name = "iqn.2026-11.org.example:a"
[[target]]
name = "iqn.2026-11.org.example:b"
[[target.portal_group]]
tag = 9
state = "standby"
preferred = true
"""


def test_portal_groups_become_portals_with_their_tags_and_the_targets_groups() -> None:
    spec = parse(GROUPS)
    assert [(portal.host, portal.portal_group_tag) for portal in spec.portals] == [
        ("192.0.2.1", 1),
        ("192.0.2.2", 9),
        ("192.0.2.3", 9),
    ]
    first, second = spec.targets
    assert spec.access(first) == (AccessSpec(1), AccessSpec(9))
    assert spec.access(second) == (AccessSpec(9, "standby", True),)


def test_portal_groups_take_the_place_of_the_default_portals() -> None:
    spec = parse('[[portal_group]]\ntag = 1\nportals = ["192.0.2.1"]\n')
    assert spec.portals == (PortalSpec("192.0.2.1", 3260, 1),)


@pytest.mark.parametrize(
    ("old", "new", "where", "reason"),
    [
        ("tag = 9\nportals", "tag = 1\nportals", "portal_group[0].tag", "1 is the portal group of [server] too"),
        ('"192.0.2.2",', '"192.0.2.1",', "portal_group[0].portals", "192.0.2.1:3260 is a portal of [server] too"),
        ("tag = 9\nstate", "tag = 8\nstate", "target[1].portal_group[0].tag", "there is no portal group 8"),
        ('"standby"', '"idle"', "target[1].portal_group[0].state", "must be one of active/optimized"),
        ("tag = 9\nportals", "tag = 0\nportals", "portal_group[0].tag", "must be from 1 to 65,535"),
        (
            "preferred = true",
            "[[target.portal_group]]\ntag = 9",
            "target[1].portal_group[1].tag",
            "9 is named twice",
        ),
    ],
)
def test_portal_group_that_cannot_be_is_told(old: str, new: str, where: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GROUPS.replace(old, new))
    found = [(f"{problem.where}.{problem.key}", problem.reason) for problem in caught.value.problems]
    assert any(place == where and text.startswith(reason) for place, text in found), found


def test_states_have_the_names_that_scsi_knows() -> None:
    assert set(STATES) == set(ACCESS_STATES)


GUARDED = """
[discovery.auth]
chap = [{ user = "seeker", secret = "secret of discovery" }]
[[target]]
name = "iqn.2026-11.org.example:a"
initiators = ["iqn.2026-11.org.example:*"]
networks = ["192.0.2.1/24", "2001:db8::/32"]
[target.auth]
chap = [{ user = "alice", secret = "twelve-letters-x" }]
"""


def test_auth_and_guests_become_specs_that_do_not_show_secrets() -> None:
    spec = parse(GUARDED)
    (target,) = spec.targets
    assert target.initiators == ("iqn.2026-11.org.example:*",)
    assert target.networks == ("192.0.2.0/24", "2001:db8::/32")
    assert target.auth is not None and target.auth.source == "chap"
    assert target.auth.options["chap"] == [{"user": "alice", "secret": "twelve-letters-x"}]
    assert spec.discovery_auth is not None
    assert spec.discovery_auth.options["chap"] == [{"user": "seeker", "secret": "secret of discovery"}]
    assert "twelve-letters-x" not in repr(spec) and "secret of discovery" not in repr(spec)


def test_nobody_has_to_prove_anything_by_default() -> None:
    spec = parse(TARGET)
    assert (spec.discovery_auth, spec.targets[0].auth) == (None, None)
    assert (spec.targets[0].initiators, spec.targets[0].networks) == ((), ())


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"192.0.2.1/24"', '"here"', "target[0].networks: [0] must be as in"),
        ('"iqn.2026-11.org.example:*"', "7", "target[0].initiators: [0] must be a string"),
        ("twelve-letters-x", "short", "target[0].auth.chap[0]: the secret has 5 bytes"),
        ('user = "alice"', 'usr = "alice"', "target[0].auth.chap[0]: unknown key usr"),
        ("[target.auth]", '[target.auth]\nsource = "ldap"', "target[0].auth.source: there is no authentication source"),
        ("[target.auth]\nchap", "[target.auth]\nchip", "target[0].auth.chip: unknown key (there are chap"),
        ("[discovery.auth]", "[discovery]\nwho = 1\n[discovery.auth]", "discovery.who: unknown key"),
        ("secret of discovery", "short", "discovery.auth.chap[0]: the secret has 5 bytes"),
    ],
)
def test_bad_line_about_who_may_come_is_told_with_its_reason(old: str, new: str, problem: str) -> None:
    assert old in GUARDED
    found = problems(GUARDED.replace(old, new))
    assert any(text.startswith(problem) for text in found), found
    assert not any("twelve-letters-x" in text or "secret of discovery" in text for text in found)


@pytest.mark.parametrize("key", ["initiators", "networks"])
def test_guest_list_that_is_empty_is_refused_for_it_may_mean_nobody_or_all(key: str) -> None:
    text = TARGET + f"{key} = []\n" + LUN
    assert problems(text) == [
        f"target[0].{key}: cannot be empty: without the key everybody may come, and a target for nobody is left out"
    ]


# -- who has a medium --------------------------------------------------------------------------------------------------


def served(tmp_path: Path, *luns: str, target: str = "") -> list[Problem]:
    """What is wrong with a target of these LUNs, each what stands in its table; ``target``: a second one, with one."""
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    if not (tmp_path / "link").exists():
        (tmp_path / "link").symlink_to(tmp_path / "disk")
    content = '[[target]]\nname = "iqn.2026-11.org.example:a"\n'
    content += "".join(f"[[target.lun]]\nlun = {number}\n{lun}\n" for number, lun in enumerate(luns))
    if target:
        content += f'[[target]]\nname = "iqn.2026-11.org.example:b"\n[[target.lun]]\nlun = 0\n{target}\n'
    try:
        parse(content.replace("DIR", str(tmp_path)))
    except ConfigError as error:
        return list(error.problems)
    return []


DISK = 'backend = "file"\npath = "DIR/disk"'
LINK = 'backend = "file"\npath = "DIR/link"'
OFFSET = 'layers = [{ layer = "offset", size = 4096 }]'
CACHE = 'layers = [{ layer = "cache" }]'
COW = 'layers = [{ layer = "cow", path = "DIR/%s" }]'


def test_medium_of_two_units_is_refused_under_any_name(tmp_path: Path) -> None:
    (problem,) = served(tmp_path, DISK, LINK)
    assert (problem.where, problem.key) == ("target[0].lun[1]", "path")
    assert problem.reason == (
        f"{tmp_path}/link is a medium of target[0].lun[0] already, there {tmp_path}/disk: as two disks they would"
        " destroy each other's data; one disk has one serial number"
    )


@pytest.mark.parametrize(
    "luns",
    [
        (f"{DISK}\nreadonly = true", f"{LINK}\nreadonly = true"),
        (f"{DISK}\nshare = true", f"{LINK}\nshare = true"),
        (f"{DISK}\n{OFFSET}", f'{LINK}\nlayers = [{{ layer = "offset", offset = 4096 }}]'),
        (f"{DISK}\n{COW % 'one'}", f"{LINK}\n{COW % 'two'}"),  # over what both only read
    ],
)
def test_medium_of_two_units_that_do_not_disturb_each_other_is_taken(tmp_path: Path, luns: tuple[str, ...]) -> None:
    assert served(tmp_path, *luns) == []


@pytest.mark.parametrize(
    ("luns", "table"),
    [
        ((DISK, f"{DISK}\nreadonly = true"), "target[0].lun[1]"),
        ((DISK, f"{LINK}\n{OFFSET}"), "target[0].lun[1]"),
        ((DISK, f"{LINK}\n{COW % 'one'}"), "target[0].lun[1]"),
        ((f"{DISK}\n{COW % 'one'}", f'backend = "null"\n{COW % "one"}'), "target[0].lun[1].layers[0]"),
        ((f"{DISK}\nshare = true", LINK), "target[0].lun[1]"),
    ],
)
def test_medium_of_two_units_that_disturb_each_other_is_refused(
    tmp_path: Path, luns: tuple[str, ...], table: str
) -> None:
    (problem,) = served(tmp_path, *luns)
    assert (problem.where, problem.key) == (table, "path")


def test_one_disk_of_two_targets_is_taken_where_several_processes_may_have_it(tmp_path: Path) -> None:
    assert served(tmp_path, f'{DISK}\nserial = "X"', target=f'{DISK}\nserial = "X"') == []
    (problem,) = served(tmp_path, f'{DISK}\nserial = "X"\n{CACHE}', target=f'{DISK}\nserial = "X"\n{CACHE}')
    assert problem.where == "target[1].lun[0]"
    assert problem.reason.endswith("already, and only one LUN can have it")


def test_parts_of_one_medium_may_be_in_one_unit_whoever_has_it(tmp_path: Path) -> None:
    """A mirror has its legs to itself, and so has the disk that it is in: other parts of theirs may be in that, too."""
    (tmp_path / "mirrors").mkdir()
    first, second, third = (
        {"backend": "file", "path": str(tmp_path / name), "size": "2 MiB", "layers": [{"layer": "offset", **part}]}
        for name, part in (
            ("a", {"size": "1 MiB"}),
            ("b", {"size": "1 MiB"}),
            ("a", {"offset": "1 MiB", "size": "1 MiB"}),
        )
    )
    mirror = {"backend": "mirror", "members": [first, second], "state": str(tmp_path / "mirrors" / "m")}
    disk = {"lun": 0, "backend": "concat", "members": [mirror, third]}
    config.read({"target": [{"name": "iqn.2026-11.org.iscsid:a", "lun": [disk]}]})
    with pytest.raises(ConfigError, match="only one LUN can have it"):
        config.read({"target": [{"name": "iqn.2026-11.org.iscsid:a", "lun": [disk, {"lun": 1, **third}]}]})


def test_members_of_one_disk_are_the_same_on_all_its_paths(tmp_path: Path) -> None:
    def disk(name: str) -> dict[str, Any]:
        members = [{"backend": "file", "path": str(tmp_path / file), "size": "1 MiB"} for file in ("a", name)]
        return {"lun": 0, "backend": "concat", "members": members, "serial": "ONE"}

    def targets(*names: str) -> dict[str, Any]:
        return {
            "target": [{"name": f"iqn.2026-11.org.iscsid:{at}", "lun": [disk(name)]} for at, name in enumerate(names)]
        }

    assert len(config.read(targets("b", "b"))[0].targets) == 2
    with pytest.raises(ConfigError, match="another disk"):
        config.read(targets("b", "c"))


def test_medium_that_a_unit_has_twice_is_refused(tmp_path: Path) -> None:
    legs = '[{ backend = "file", path = "DIR/disk" }, { backend = "file", path = "DIR/link" }]'
    (problem,) = served(tmp_path, f'backend = "mirror"\nstate = "DIR/state"\nmembers = {legs}')
    assert (problem.where, problem.key) == ("target[0].lun[0]", "path")
    assert problem.reason.startswith(f"members[1]: {tmp_path}/link is a medium of this LUN already, there ")
