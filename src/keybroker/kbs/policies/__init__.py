"""Resource policies that ship with the broker, as readable Rego files."""

from functools import cache
from importlib import resources

#: ``default``: attested guests read resources, the sample TEE does not; ``affirming``: only guests
#: whose every device is affirmed; ``allow_all`` and ``deny_all``: what they say.
RESOURCE_POLICIES = ("default", "affirming", "allow_all", "deny_all")


@cache
def resource_policy(name: str) -> str:
    """Return the text of a policy, one of :data:`RESOURCE_POLICIES`."""
    if name not in RESOURCE_POLICIES:
        raise ValueError(f"no built-in resource policy {name!r}")
    return resources.files(__name__).joinpath(f"{name}.rego").read_text("utf-8")
