"""Every refusal has the shape that OpenAI's clients expect: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}
USUAL_TYPE = "invalid_request_error"
# llama.cpp's answers to fields of another type, and to messages and tools that it cannot read
_WRONG_TYPE = re.compile(rb'"(?:\[json\.exception\.|Failed to parse )')
_TOO_LONG = re.compile("maximum context length")  # vLLM has no code for it
TOO_LONG = "context_length_exceeded"


class ApiError(Exception):
    """An answer with an HTTP status, for whoever asked."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self._headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """The body of the answer, and the last event of a stream that breaks off."""
        kind = TYPES.get(self.status, USUAL_TYPE)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What belongs to the status."""
        return {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(self.status, {}) | self._headers


def from_engine(status: int, body: bytes) -> ApiError:
    """An engine's refusal in this shape. What an engine says about itself in a 5xx is not passed on."""
    if status == 500 and _WRONG_TYPE.search(body):
        return ApiError(400, "A field of the request has a type or a value that the engine cannot read.")
    if status >= 500:
        return ApiError(*((503, "The model is loading.") if status == 503 else (502, "The engine failed.")))
    try:
        error = json.loads(body)["error"]
        kind, message = error.get("type"), str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, message = None, "The engine refused the request without a reason."
    is_too_long = kind == "exceed_context_size_error" or _TOO_LONG.search(message)
    return ApiError(400 if is_too_long else status, message, TOO_LONG if is_too_long else None)
