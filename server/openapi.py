"""The endpoint as OpenAPI 3.1: what server/validation.py lets through, with its bounds, and the shape of every answer.

A test asks for every generated body that schema and validation agree; another asks the running server.
"""

from __future__ import annotations

from typing import Any

from server.errors import TYPES, USUAL_TYPE
from server.validation import MAX_PROMPTS, RANGES, TOKEN_LIMIT_FIELDS, Limits

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_TOKEN: Schema = {"type": "integer", "minimum": 0}
_REFUSALS = {
    400: "A field is missing, out of bounds or unreadable; `param` names it.",
    401: "No valid API key, where the server has keys.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The key's limits are used up.",
    500: "The server failed.",
    502: "The engine failed.",
    503: "Starting or overloaded. Ask again.",
}


def description(limits: Limits, needs_key: bool) -> Schema:
    """The whole document, for a server with these limits, and with keys or without."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tuneship server",
            "version": "1",
            "description": "A fine-tuned model and its base. Fields that are not named here are passed to the engine.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _completion("chat", chat_request(limits), _CHAT_CHOICE)},
            "/v1/completions": {"post": _completion("complete", text_request(limits), _TEXT_CHOICE)},
            "/v1/models": {"get": _models()},
            "/health": {"get": _get("health", "The server lives.", _object(status={"const": "ok"}))},
            "/ready": {"get": _ready()},
            "/metrics": {"get": _get("metrics", "For Prometheus.", _TEXT, "text/plain")},
            "/openapi.json": {"get": _get("description", "This document.", {"type": "object"})},
        },
        "security": [{"key": []}] if needs_key else [],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {"Error": _ERROR}},
    }


def chat_request(limits: Limits) -> Schema:
    """What POST /v1/chat/completions accepts."""
    part = _object(type={"const": "text"}, text=_TEXT)
    content = {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": part}]}
    message = {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": content}}
    tools = {"type": ["array", "null"], "items": {"type": "object"}}
    fields = {"messages": {"type": "array", "minItems": 1, "items": message}, "tools": tools}
    return {"type": "object", "required": ["messages"], "properties": fields | _common(limits)}


def text_request(limits: Limits) -> Schema:
    """What POST /v1/completions accepts."""
    text, filled = {"type": "string", "minLength": 1}, {"type": "array", "minItems": 1}
    tokens = filled | {"items": _TOKEN}
    several = filled | {"maxItems": MAX_PROMPTS, "items": {"anyOf": [text, _TOKEN, tokens]}}
    prompt = {"anyOf": [text, tokens, several]}
    return {"type": "object", "required": ["prompt"], "properties": {"prompt": prompt} | _common(limits)}


def _common(limits: Limits) -> Schema:
    integer, number = {"type": ["integer", "null"], "minimum": 1}, {"type": ["number", "null"]}
    bounds = {name: {**number, "minimum": least, "maximum": most} for name, (least, most) in RANGES.items()}
    return {
        "model": {"type": ["string", "null"], "examples": ["tuned", "base"], "description": "Without one: tuned."},
        **{name: {**integer, "maximum": limits.context_tokens} for name in TOKEN_LIMIT_FIELDS},
        "n": {**integer, "maximum": limits.slots},
        **bounds,
        "stream": {"type": ["boolean", "null"]},
        "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT}]},
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


_ERROR = _object(
    error=_object(
        message={"type": "string", "minLength": 1},
        type={"enum": sorted({USUAL_TYPE, *TYPES.values()})},
        param={"type": ["string", "null"]},
        code={"type": ["string", "null"]},
    )
    | {"additionalProperties": False}
)
_MODELS = _object(
    object={"const": "list"},
    data={
        "type": "array",
        "items": _object(id=_TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=_TEXT),
    },
)
_CHAT_CHOICE = _object(
    message=_object(role={"const": "assistant"}, content={"type": ["string", "null"]}), finish_reason=_TEXT
)
_TEXT_CHOICE = _object(text=_TEXT, finish_reason=_TEXT)


def _completion(name: str, request: Schema, choice: Schema) -> Schema:
    counts = _object(prompt_tokens=_TOKEN, completion_tokens=_TOKEN, total_tokens=_TOKEN)
    answer = _object(model=_TEXT, choices={"type": "array", "minItems": 1, "items": choice}, usage=counts)
    content = {"application/json": {"schema": answer}, "text/event-stream": {"schema": _object(data=_TEXT)}}
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "An answer; a stream of its pieces on `stream`.", "content": content}}
        | _refused(*_REFUSALS),
    }


def _get(name: str, what: str, answer: Schema, kind: str = "application/json") -> Schema:
    """A GET that needs no key."""
    answers: Schema = {"200": {"description": what, "content": {kind: {"schema": answer}}}}
    return {"operationId": name, "security": [], "responses": answers}


def _models() -> Schema:
    models = _get("models", "The names that `model` may have.", _MODELS)
    return {"operationId": "models", "responses": models["responses"] | _refused(401, 503)}


def _ready() -> Schema:
    ready = _get("ready", "Both models generate.", _object(status={"const": "ready"}, run=_TEXT))
    reasons = {"type": "object", "additionalProperties": _TEXT}
    waiting = _object(status={"const": "not ready"}, why=reasons)
    answer = {"description": "One does not, and why.", "content": {"application/json": {"schema": waiting}}}
    return ready | {"responses": ready["responses"] | {"503": answer}}


def _refused(*statuses: int) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": _REFUSALS[status], "content": content} for status in statuses}
