"""What a client is told when something goes wrong: a status, and a body in its protocol's shape."""

import logging
from dataclasses import dataclass
from typing import Any

from presswork.errors import (
    CheckpointError,
    ContextLengthError,
    EngineClosedError,
    GenerationError,
    ModelNotFoundError,
    OutOfMemoryError,
    PressworkError,
    QueueFullError,
    RequestError,
)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class HttpError(Exception):
    """A request that ends in an error.

    Args:
        param: the field at fault, where one is.
        retry_after_s: seconds after which trying again makes sense.
        overflow: (tokens of the prompt, positions there are) where it does not fit.
    """

    status: int
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    overflow: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.message


def as_http(error: BaseException) -> HttpError:
    """What an error is to a client; of faults that are not its own it learns no more than that."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, ContextLengthError):
        return HttpError(400, str(error), overflow=(error.num_tokens, error.max_context))
    if isinstance(error, RequestError):
        return HttpError(400, str(error))
    if isinstance(error, ModelNotFoundError):
        return HttpError(404, str(error), param="model")
    if isinstance(error, QueueFullError):
        return HttpError(429, str(error), retry_after_s=1)
    if isinstance(error, OutOfMemoryError):
        return HttpError(503, "the key-value memory for this request cannot be had; try a shorter one", retry_after_s=5)
    if isinstance(error, EngineClosedError):
        return HttpError(503, "the model was unloaded or the server is stopping; try again", retry_after_s=1)
    if isinstance(error, TimeoutError):
        return HttpError(504, "the request took longer than this server allows; ask for less")
    if isinstance(error, CheckpointError):
        return HttpError(500, "the model cannot be loaded; the server's log says why")
    if isinstance(error, (GenerationError, PressworkError)):
        return HttpError(500, "the request failed while it ran; the server's log says why")
    return HttpError(500, "the server failed; its log says why")


def logged(found: HttpError, cause: BaseException, request_id: str) -> HttpError:
    """The same error; those that are the server's fault are put in its log first."""
    if found.status >= 500 and found is not cause:
        logger.error("%s failed: %s", request_id, cause, exc_info=cause)
    return found


_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    413: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error", 501: "not_implemented_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def headers_of(error: HttpError) -> dict[str, str]:
    """What clients are told about trying again: by themselves they would repeat whatever is 500 or above."""
    if error.retry_after_s is not None:
        return {"retry-after": str(error.retry_after_s)}
    return {"x-should-retry": "false"} if error.status >= 500 and error.status != 503 else {}


def openai_body(error: HttpError) -> dict[str, Any]:
    """The error as OpenAI's clients read it; agents know a prompt that is too long by its code or its words."""
    kind, message, code = _KINDS.get(error.status, "server_error"), error.message, None
    if error.overflow is not None:
        num, most = error.overflow
        message = f"This model's maximum context length is {most} tokens, but the prompt has {num}; shorten the prompt"
        code = "context_length_exceeded"
    return {"error": {"message": message, "type": kind, "param": error.param, "code": code}}


def anthropic_body(error: HttpError, request_id: str) -> dict[str, Any]:
    """The error as Anthropic's clients read it; Claude Code makes room where it reads that a prompt is too long."""
    message = error.message
    if error.overflow is not None:
        message = f"prompt is too long: {error.overflow[0]} tokens > {error.overflow[1]} maximum"
    kinds = {413: "request_too_large", 405: "invalid_request_error"}
    kind = kinds.get(error.status, _KINDS.get(error.status, "api_error"))
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def body_for(path: str, error: HttpError, request_id: str) -> dict[str, Any]:
    """The error in the shape of the protocol that a path belongs to."""
    return anthropic_body(error, request_id) if path.startswith("/v1/messages") else openai_body(error)
