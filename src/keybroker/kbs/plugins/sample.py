"""The sample plugin: an administrator asks, a fixed text answers. For trying plugins out."""

from keybroker.kbs.plugins.interface import Access, PluginAnswer, PluginRequest


class SamplePlugin:
    """Answers every administrator's request with one line."""

    name = "sample"

    def access(self, request: PluginRequest) -> Access:  # noqa: ARG002 - part of the interface
        """Administrators only, as in Trustee."""
        return Access.ADMINISTRATOR

    async def handle(self, request: PluginRequest) -> PluginAnswer:  # noqa: ARG002
        """Return the line."""
        return PluginAnswer(b"sample plugin response", "text/plain; charset=utf-8")
