"""Who may use the server: with a token, only those who send it as `Authorization: Bearer TOKEN`.

Open to all are the page, which asks for the token, the description of the interface, and /health, which load balancers
ask without one.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import answer_error

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
OPEN_FOLDER = "/static-offline-docs/"  # scripts and styles of /docs


class TokenGuard:
    """ASGI middleware that answers 401 to requests without `token`, before their body is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            await self.app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        is_sent = scheme.lower() == "bearer" and given != ""
        if is_sent and hmac.compare_digest(given.encode("latin-1"), self.token):
            await self.app(scope, receive, send)
            return
        found = "the token is wrong" if is_sent else "the token is missing"
        answer = answer_error(
            401, f"{found}: send Authorization: Bearer TOKEN, that of the server", {"WWW-Authenticate": "Bearer"}
        )
        await answer(scope, receive, send)
