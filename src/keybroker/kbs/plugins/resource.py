"""The resource plugin: secrets under ``<repository>/<type>/<tag>``.

Guests read (``GET``), and what they read is sealed to their TEE; administrators write (``POST``),
delete (``DELETE``) and list (``GET`` without a path).
"""

import re
from typing import NewType

import msgspec

from keybroker.kbs.plugins.interface import Access, PluginAnswer, PluginRequest
from keybroker.model.errors import MalformedError, MethodNotAllowedError, NotFoundError
from keybroker.storage.interface import MAX_KEY_LENGTH, KeyValueStore

#: A checked ``repository/type/tag``.
ResourcePath = NewType("ResourcePath", str)

#: The same shape for each of the three segments as in Trustee's ``ResourceDesc``.
_SEGMENT = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_\-.]*")


def parse_resource_path(segments: tuple[str, ...]) -> ResourcePath:
    """Check the three segments of a resource's path.

    Raises:
        NotFoundError: not three segments, or one that no resource can have. It is "not found"
            and not "malformed", since such a resource cannot exist.
    """
    path = "/".join(segments)
    if (
        len(segments) != 3
        or len(path) > MAX_KEY_LENGTH
        or not all(_SEGMENT.fullmatch(segment) for segment in segments)
    ):
        raise NotFoundError(
            "not a resource path",
            detail="a resource path is <repository>/<type>/<tag>, of a-z A-Z 0-9 - _ and .",
        )
    return ResourcePath(path)


class ResourcePlugin:
    """Secrets in the storage namespace ``repository``."""

    name = "resource"

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def access(self, request: PluginRequest) -> Access:
        """Guests read one resource; everything else is the administrator's."""
        allowed = ("GET", "POST", "DELETE") if request.path else ("GET",)
        if request.method not in allowed:
            raise MethodNotAllowedError(f"{request.method} on a resource", allowed=allowed)
        if request.method == "GET" and request.path:
            return Access.ATTESTED
        return Access.ADMINISTRATOR

    async def handle(self, request: PluginRequest) -> PluginAnswer:
        """Read, write, delete or list.

        Raises:
            NotFoundError: no such resource, or not a resource path.
            MalformedError: an empty secret.
        """
        if request.method == "GET" and not request.path:
            return await self._list(request.query.get("repository"))
        path = parse_resource_path(request.path)
        if request.method == "GET":
            secret = await self._store.get(path)
            if secret is None:
                raise NotFoundError("no such resource", detail="no such resource")
            return PluginAnswer(secret, sealed=True)
        if request.method == "POST":
            if not request.body:
                raise MalformedError("a resource must not be empty")
            await self._store.set(path, request.body)
            return PluginAnswer()
        if not await self._store.delete(path):
            raise NotFoundError("no such resource", detail="no such resource")
        return PluginAnswer()

    async def _list(self, repository: str | None) -> PluginAnswer:
        names = await self._store.keys()
        if repository is not None:
            names = [name for name in names if name.startswith(f"{repository}/")]
        return PluginAnswer(msgspec.json.encode({"resources": names}), "application/json")
