"""What is checked before any route: the host name, the page that calls, the key, and the size of the body.

A page on the Internet can make a browser send requests to this machine, under this machine's name (cross-site requests)
or under a name of its own that points here (DNS rebinding). The first have a foreign `Origin`, the second a foreign
`Host`; both are refused. A key makes the check of `Host` needless: a browser does not send it for another page.
"""

import base64
import binascii
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latent_diffusion.server.limits import MAX_BODY, ServeSettings
from latent_diffusion.server.refusals import Refusal, answer

__all__ = ["Guard"]

OPEN = ("/", "/docs", "/favicon.ico")
"""Paths that need no key: the page itself, which asks for it."""


class Guard:
    """ASGI middleware that refuses a request before its body is read."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the refusal."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            if scope["method"] != "OPTIONS":  # a browser asks without a key whether it may call
                self._check_key(scope["path"], headers)
            self._check_length(headers.get("content-length"))
        except Refusal as refusal:
            await answer(scope["path"], refusal)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise _too_large(f"more than {MAX_BODY}")
            return message

        await self.app(scope, counted, send)

    def _check_host(self, headers: Headers) -> None:
        host = _name(f"//{headers.get('host', '')}")
        if not self.settings.api_key and host not in self.settings.names:
            raise Refusal(403, f"host {host!r:.60} is not one of {', '.join(sorted(self.settings.names))}")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors or "*" in self.settings.cors:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refusal(403, f"origin {origin!r:.80} may not call; allow it with --cors")

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self.settings.api_key
        if key is None or path in OPEN or path.startswith("/page/"):
            return
        if not secrets.compare_digest(_given_key(headers).encode(), key.encode()):
            raise Refusal(401, "the API key is missing or wrong; send it as a bearer token", www_authenticate="Basic")

    def _check_length(self, length: str | None) -> None:
        if length is not None and int(length) > MAX_BODY:  # uvicorn refuses what is no number
            raise _too_large(length)


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return url[:60]


def _given_key(headers: Headers) -> str:
    """Return the key of "Bearer KEY", of "Basic" (as the password of any user) or of "x-api-key"; "" for none."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key", "")


def _too_large(found: str) -> Refusal:
    return Refusal(413, f"the body has {found} bytes; at most {MAX_BODY} are read")
