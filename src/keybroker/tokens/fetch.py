"""Fetch small public documents (JWK sets, PEM keys, certificate chains) over HTTPS.

The addresses come from the configuration, and one more from a discovery document; whoever answers
there must not be able to turn the broker against its own network or fill its memory: HTTPS only,
also after a redirect, with a limit on size, redirects and time.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass

from keybroker.model.errors import KeybrokerError

#: Largest document. The largest JWK sets of identity providers are some 20 KiB.
MAX_DOCUMENT_BYTES = 256 * 1024

#: Redirects followed; providers use at most one or two.
MAX_REDIRECTS = 3

#: Time for the whole fetch, so that a server that hangs holds nothing up for long.
FETCH_SECONDS = 5.0

_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])")


class FetchError(KeybrokerError):
    """The document could not be fetched; said to the administrator."""

    type = "FetchError"
    status = 502
    default_detail = "a document that the broker needs could not be fetched"


@dataclass(frozen=True, slots=True)
class Document:
    """A fetched document.

    Attributes:
        body: as it was sent.
        max_age: seconds for which the server lets it be kept, or None where it does not say.
    """

    body: bytes
    max_age: int | None


async def fetch(url: str, *, tls: ssl.SSLContext | None = None) -> Document:
    """Fetch a document.

    Args:
        url: ``https://…``.
        tls: whom to trust; None: the authorities of the system.

    Raises:
        FetchError: another scheme, no connection, a certificate that is not trusted, a status
            other than 200, too large, too many redirects, or too slow.
    """
    # Imported here: brokers that fetch nothing start without an HTTP client.
    import httpx

    context = tls if tls is not None else ssl.create_default_context()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx.AsyncClient(verify=context, timeout=FETCH_SECONDS) as client,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                if not url.lower().startswith("https://"):
                    raise FetchError("only https:// addresses are fetched")
                # An encoded body could be small on the wire and huge in memory.
                headers = {"Accept-Encoding": "identity"}
                async with client.stream("GET", url, headers=headers) as response:
                    if response.has_redirect_location:
                        url = str(response.url.join(response.headers["Location"]))
                        continue
                    if response.status_code != httpx.codes.OK:
                        raise FetchError(f"the server answered {response.status_code}")
                    if response.headers.get("Content-Encoding", "identity") != "identity":
                        raise FetchError("the server compressed its answer though told not to")
                    body = bytearray()
                    async for chunk in response.aiter_raw():
                        body += chunk
                        if len(body) > MAX_DOCUMENT_BYTES:
                            raise FetchError("the document is too large")
                    found = _MAX_AGE.search(response.headers.get("Cache-Control", "").lower())
                    return Document(bytes(body), int(found[1]) if found else None)
    except TimeoutError:
        raise FetchError("the server took too long") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        raise FetchError(f"{type(error).__name__}: {error}") from None
    raise FetchError("the server redirects too often")
