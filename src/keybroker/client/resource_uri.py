"""Names of what a broker hands out: ``kbs:///repository/type/tag`` or a plain path.

Specification: Confidential Containers, "KBS Resource URI".
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from keybroker.client.errors import InputError

RESOURCE_PLUGIN = "resource"


@dataclass(frozen=True)
class ResourceUri:
    """What to ask which plugin of the broker for.

    Attributes:
        plugin: ``resource`` unless the scheme says otherwise (``kbs+plugin:///…``).
        segments: of the path, not percent-encoded.
        query: parameters for the plugin.
    """

    plugin: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """The path below ``/kbs/v0/``, percent-encoded."""
        return "/".join(quote(part, safe="") for part in (self.plugin, *self.segments))

    def __str__(self) -> str:
        return "/".join(self.segments)


def parse_resource_uri(text: str) -> ResourceUri:
    """Read a URI or a plain path; a broker's address in the URI is not looked at.

    Raises:
        InputError: another scheme, an empty segment, or one that would climb the path.
    """
    plugin, path, query = RESOURCE_PLUGIN, text, ""
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme:
        if scheme == "kbs":
            pass
        elif scheme.startswith("kbs+") and len(scheme) > len("kbs+"):
            plugin = scheme.removeprefix("kbs+")
        else:
            raise InputError("a resource URI starts with kbs:/// or kbs+PLUGIN:///")
        try:
            parts = urlsplit(text)
        except ValueError:
            raise InputError("the resource URI is malformed") from None
        path, query = parts.path, parts.query
    segments = tuple(path.removeprefix("/").split("/"))
    for segment in (plugin, *segments):
        check_segment(segment)
    return ResourceUri(plugin, segments, tuple(parse_qsl(query, keep_blank_values=True)))


def check_segment(segment: str) -> None:
    """Refuse a path segment that the way to the broker would change.

    Raises:
        InputError: empty, ``.``, ``..``, or with control characters.
    """
    if not segment:
        raise InputError("a resource path is repository/type/tag, without empty segments")
    if segment in (".", "..") or not segment.isprintable():
        raise InputError(f"{segment!r} cannot be part of a resource path")
