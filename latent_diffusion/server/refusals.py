"""Errors of a request: a status and one line, in the form that the caller's kind of client reads."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from latent_diffusion.errors import CheckpointError, LatentDiffusionError, ResourceError, describe

__all__ = ["Refusal", "answer", "install", "refusal_of"]

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
OUT_OF_MEMORY = "ask for a smaller or a single picture"


class Refusal(HTTPException):
    """A request that is not carried out: an HTTP status, one line, and the field it is about."""

    def __init__(self, status: int, message: str, field: str | None = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, " ".join(message.split()), named)
        self.field = field


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that stands for an error of the package: a wrong value is the caller's, a bug is ours."""
    if isinstance(error, Refusal):
        return error
    line = describe(error, out_of_memory=OUT_OF_MEMORY)[1]
    if isinstance(error, CheckpointError | ResourceError) or not isinstance(error, LatentDiffusionError):
        return Refusal(503 if "out of memory" in line else 500, line)
    return Refusal(400, line)  # options that do not fit, pictures that cannot be read, a picture that diverged


def answer(path: str, refusal: Refusal) -> JSONResponse:
    """Return the refusal as the API at `path` writes errors: OpenAI's, A1111's or this package's own."""
    status, message = refusal.status_code, refusal.detail
    kind = KINDS.get(status, "server_error" if status >= 500 else KINDS[400])
    body: dict[str, Any]
    if path.startswith("/v1/"):
        status = 400 if status == 422 else status
        code = "model_not_found" if status == 404 and refusal.field == "model" else None
        body = {"error": {"message": message, "type": kind, "param": refusal.field, "code": code}}
    elif path.startswith("/sdapi/"):
        body = {"error": kind, "detail": message, "body": "", "errors": message}
    else:
        body = {"error": message, "field": refusal.field}
    headers = dict(refusal.headers or {})
    if status >= 500:
        headers["x-should-retry"] = "false"  # OpenAI's clients would draw the same picture two times more
    return JSONResponse(body, status, headers)


def install(app: FastAPI) -> None:
    """Make the app answer every error with one line."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError | ValidationError):
            error = _of_validation(error)
        elif isinstance(error, HTTPException) and not isinstance(error, Refusal):
            error = Refusal(error.status_code, str(error.detail), **dict(error.headers or {}))
        return answer(request.url.path, refusal_of(error))

    for kind in (Refusal, LatentDiffusionError, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)


def _of_validation(error: RequestValidationError | ValidationError) -> Refusal:
    """Return the first fault of a body as one line, with the field's name and the value that was found."""
    faults = error.errors()
    fault: Any = faults[0]
    place = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    field = ".".join(place)[:100]
    if fault["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON: {fault['ctx']['error']}")
    found = fault.get("input")
    quiet = isinstance(found, dict | list) or fault["type"] in ("missing", "value_error")
    shown = "" if quiet else f", found {found!r:.60}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = fault["msg"].removeprefix("Value error, ")
    return Refusal(422, f"{field or 'body'}: {message[:1].lower() + message[1:]}{shown}{more}", field or None)
