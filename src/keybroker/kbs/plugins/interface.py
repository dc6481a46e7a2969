"""What a plugin is: a name, who may call what, and an answer.

A plugin never checks who asks: it says for each request whether an administrator or an attested
guest is needed, and the broker sees to that before it is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class Access(Enum):
    """Who may make a request."""

    ADMINISTRATOR = "administrator"
    ATTESTED = "attested"


@dataclass(frozen=True, slots=True)
class PluginRequest:
    """One request to a plugin.

    Attributes:
        method: GET, POST, PUT or DELETE.
        path: the segments behind the plugin's name.
        query: query parameters, each once.
        body: the body as it came.
        init_data: the guest's verified init-data claims, for requests of attested guests.
    """

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str]
    body: bytes = field(repr=False, default=b"")
    init_data: Any = None


@dataclass(frozen=True, slots=True)
class PluginAnswer:
    """What a plugin gives back.

    Attributes:
        body: the plain bytes.
        media_type: their type when they are not sealed.
        sealed: whether the broker must encrypt the body to the TEE of the guest that asked.
    """

    body: bytes = field(repr=False, default=b"")
    media_type: str = "application/octet-stream"
    sealed: bool = False


class Plugin(Protocol):
    """Something that answers below its name."""

    @property
    def name(self) -> str:
        """First path segment below ``/kbs/v0``."""
        ...

    def access(self, request: PluginRequest) -> Access:
        """Say who may make this request; looks at nothing that needs I/O.

        Raises:
            MethodNotAllowedError: the plugin does not know the method.
        """
        ...

    async def handle(self, request: PluginRequest) -> PluginAnswer:
        """Answer a request that was let through.

        Raises:
            NotFoundError: there is nothing under that path.
            MalformedError: the path or the body cannot be used.
        """
        ...
