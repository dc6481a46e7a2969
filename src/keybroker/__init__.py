"""keybroker hands a secret to a workload only after remote attestation has proved what it is."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("keybroker")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"
