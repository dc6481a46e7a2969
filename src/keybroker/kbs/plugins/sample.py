"""The sample plugin: an administrator asks, a fixed text answers. For trying plugins out."""

from keybroker.kbs.plugins.interface import Access, PluginAnswer, PluginRequest
from keybroker.model.errors import MethodNotAllowedError


class SamplePlugin:
    """Answers every administrator's request with one line."""

    name = "sample"

    def access(self, request: PluginRequest) -> Access:
        """Administrators only, as in Trustee."""
        allowed = ("GET", "POST", "PUT", "DELETE")
        if request.method not in allowed:
            raise MethodNotAllowedError(f"{request.method} on a plugin", allowed=allowed)
        return Access.ADMINISTRATOR

    async def handle(self, request: PluginRequest) -> PluginAnswer:  # noqa: ARG002
        """Return the line."""
        return PluginAnswer(b"sample plugin response", "text/plain; charset=utf-8")
