"""The resource policies that ship decide what their names say."""

from importlib import resources
from typing import Any

import pytest

from keybroker.policy.engine import CompiledPolicy

ALLOW = "policy/allow"

SNP = {"ear.status": "affirming", "ear.veraison.annotated-evidence": {"snp": {"measurement": "aa"}}}
SAMPLE = {"ear.status": "affirming", "ear.veraison.annotated-evidence": {"sample": {"svn": "1"}}}
WARNED = {**SNP, "ear.status": "warning"}
NO_STATUS = {"ear.veraison.annotated-evidence": {"snp": {}}}


def decide(name: str, submods: Any, plugin: str = "resource") -> Any:
    source = resources.files("keybroker.kbs.policies").joinpath(f"{name}.rego").read_text("utf-8")
    policy = CompiledPolicy(source, entrypoints=[ALLOW], name=name)
    assert policy.deterministic
    request = {"plugin": plugin, "resource-path": ["a", "b", "c"], "query": {}, "method": "GET"}
    claims = {} if submods is None else {"submods": submods}
    return policy.evaluate(claims, request=request).get(ALLOW)


@pytest.mark.parametrize(
    ("name", "submods", "plugin", "allowed"),
    [
        ("default", {"cpu0": SNP}, "resource", True),
        ("default", {"cpu0": WARNED}, "resource", True),
        ("default", {"cpu0": SNP}, "nebula-ca", False),
        ("default", {"cpu0": SAMPLE}, "resource", False),
        ("affirming", {"cpu0": SNP}, "resource", True),
        ("affirming", {"cpu0": SNP, "gpu0": SNP}, "nebula-ca", True),
        ("affirming", {"cpu0": SNP, "gpu0": WARNED}, "resource", False),
        ("affirming", {"cpu0": NO_STATUS}, "resource", False),
        ("affirming", {}, "resource", False),
        ("affirming", None, "resource", False),
        ("allow_all", {"cpu0": SAMPLE}, "anything", True),
        ("allow_all", None, "resource", True),
        ("deny_all", {"cpu0": SNP}, "resource", False),
    ],
)
def test_a_shipped_policy_decides_as_its_name_says(
    name: str, submods: Any, plugin: str, allowed: bool
) -> None:
    assert decide(name, submods, plugin) is allowed
