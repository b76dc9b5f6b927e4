"""The contract of a device as checks for all: the author of a back end, ``iscsid plugin check``, our own tests.

    @pytest.mark.parametrize("check", CHECKS, ids=name_of)
    def test_contract(check, tmp_path):
        plugins = load_file("my_backend.py")
        with Medium(plugins, "mine", {"path": str(tmp_path / "disk")}) as medium:
            check(medium)

A check raises :class:`Violation` where the device breaks the contract, and :class:`NotApplicable`, which test runners
take as a skip, where the contract has nothing to say about it.
"""

from __future__ import annotations

from iscsid.contract.checks import CHECKS, name_of
from iscsid.contract.expect import NotApplicable, Violation
from iscsid.contract.medium import SMALLEST, Medium
from iscsid.plugin.manager import load_file

__all__ = ["CHECKS", "SMALLEST", "Medium", "NotApplicable", "Violation", "load_file", "name_of"]
