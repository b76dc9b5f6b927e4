"""The command ``iscsid import-targets``."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from iscsid import config
from iscsid.cli import Exit, main


def test_targets_file_is_written_as_toml_and_notes_are_told(tmp_path: Path) -> None:
    source, output = tmp_path / "targets", tmp_path / "out.toml"
    source.write_text(f"extent0 {tmp_path}/a 0 1MB\ntarget0 rw extent0 any\ntarget1 rw extent9 any\n")
    result = CliRunner().invoke(main, ["import-targets", str(source), "-o", str(output)])
    assert result.exit_code == Exit.OK, result.output
    assert f"{source}:3: Error: no extent or device found for `target1'" in result.stderr
    assert f"# - {source}:3: Error" in output.read_text()
    assert output.stat().st_mode & 0o777 == 0o600
    assert len(config.load(str(output))[0].targets) == 1


def test_toml_goes_to_stdout(tmp_path: Path) -> None:
    source = tmp_path / "ctl.conf"
    source.write_text(
        "target iqn.2012-06.com.example:x {\n auth-group no-authentication\n"
        f" lun 0 {{ path {tmp_path}/a; size 1M }}\n}}\n"
    )
    result = CliRunner().invoke(main, ["import-targets", str(source)])
    assert result.exit_code == Exit.OK, result.output
    assert len(config.parse(result.stdout)[0].targets) == 1


def test_what_check_refuses_is_written_and_told(tmp_path: Path) -> None:
    source, output = tmp_path / "targets.conf", tmp_path / "out.toml"
    source.write_text("<target iqn.2001-04.com.example:one>\n backing-store /nowhere/at/all\n</target>\n")
    result = CliRunner().invoke(main, ["import-targets", str(source), "-o", str(output)])
    assert result.exit_code == Exit.CONFIG
    assert "/nowhere/at/all" in result.stderr
    assert output.exists()


def test_format_that_is_not_recognised_can_be_named(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_text("nothing\n")
    result = CliRunner().invoke(main, ["import-targets", str(source)])
    assert result.exit_code == Exit.CONFIG
    assert "--from" in result.stderr
    result = CliRunner().invoke(main, ["import-targets", "--from", "lio", str(source)])
    assert result.exit_code == Exit.CONFIG
    assert "saveconfig.json" in result.stderr


def test_file_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    for content, word in ((None, "No such file"), (b"\xff target0 rw x any\n", "utf-8"), (b"a\0b", "not a text file")):
        source = tmp_path / "f"
        if content is not None:
            source.write_bytes(content)
        result = CliRunner().invoke(main, ["import-targets", "--from", "targets", str(source)])
        assert result.exit_code == Exit.CONFIG
        assert word in result.stderr
