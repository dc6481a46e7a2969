"""What is served beside the protocols: health, readiness, metrics, keys, the API's description."""

import html
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from keybroker.api.metrics import Metrics
from keybroker.api.parts import ReadinessCheck

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def routes(
    *,
    metrics: Metrics,
    jwks: Callable[[], Mapping[str, Any]] | None,
    readiness: Mapping[str, ReadinessCheck],
    documents: Mapping[str, str],
    show_metrics: bool,
) -> list[Route]:
    """Make the routes.

    Args:
        metrics: what ``/metrics`` shows.
        jwks: the token signing keys, or None where no attestation service is built in.
        readiness: named checks of ``/readyz``.
        documents: OpenAPI documents, by the path below which each is served (``""`` or ``/v1``).
        show_metrics: whether ``/metrics`` is served at all.
    """

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        problems = {}
        for name, check in readiness.items():
            problem = await check()
            if problem is not None:
                problems[name] = problem
        if problems:
            return JSONResponse({"status": "not ready", "problems": problems}, status_code=503)
        return JSONResponse({"status": "ready"})

    async def exposition(_request: Request) -> Response:
        return Response(metrics.render(), media_type=_METRICS_TYPE)

    async def keys(_request: Request) -> Response:
        if jwks is None:
            return JSONResponse({"keys": []})
        return JSONResponse(dict(jwks()))

    found = [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/.well-known/jwks.json", keys, methods=["GET"]),
    ]
    if show_metrics:
        found.append(Route("/metrics", exposition, methods=["GET"]))
    for prefix, name in documents.items():
        found.append(Route(f"{prefix}/openapi.json", _document(name), methods=["GET"]))
        found.append(Route(f"{prefix}/docs", _page(name), methods=["GET"]))
    return found


@cache
def openapi_document(name: str) -> dict[str, Any]:
    """Load an OpenAPI document that ships with the package.

    Args:
        name: file name without suffix, for example ``kbs``.
    """
    text = resources.files("keybroker.openapi").joinpath(f"{name}.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _document(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return JSONResponse(openapi_document(name))

    return serve


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return HTMLResponse(
            render_page(openapi_document(name)),
            headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    return serve


def render_page(document: Mapping[str, Any]) -> str:
    """Render an OpenAPI document as one HTML page, without scripts and from nowhere else."""
    escape = html.escape
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])}</title><style>{_style()}</style>",
        f"<h1>{escape(info['title'])}</h1><p>version {escape(str(info['version']))}</p>",
        f"<p>{_paragraphs(info.get('description', ''))}</p>",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post", "put", "delete"):
                parts.append(_operation(path, method, operation))
    schemas = document.get("components", {}).get("schemas", {})
    if schemas:
        parts.append("<h2>Schemas</h2>")
    for name, schema in schemas.items():
        parts.append(
            f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
            f"<pre>{escape(json.dumps(schema, indent=2))}</pre></details>"
        )
    return "".join(parts)


@cache
def _style() -> str:
    return resources.files("keybroker.openapi").joinpath("page.css").read_text("utf-8")


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    escape = html.escape
    rows = "".join(
        f"<tr><td>{escape(str(status))}<td>{_paragraphs(answer.get('description', ''))}"
        for status, answer in operation.get("responses", {}).items()
        if isinstance(answer, Mapping)
    )
    body = operation.get("requestBody")
    request = f"<pre>{escape(json.dumps(body, indent=2))}</pre>" if body else ""
    return (
        f"<details><summary><b class={method}>{method.upper()}</b> <code>{escape(path)}</code>"
        f" {escape(operation.get('summary', ''))}</summary>"
        f"<p>{_paragraphs(operation.get('description', ''))}</p>{request}"
        f"<table>{rows}</table></details>"
    )


def _paragraphs(text: str) -> str:
    return html.escape(text.strip()).replace("\n\n", "<p>")
