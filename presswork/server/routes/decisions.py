"""Questions with given options, in System One's shape."""

from typing import Any

from fastapi import APIRouter, Request

from presswork.engine.decide import Answer
from presswork.errors import RequestError, UnsupportedError
from presswork.server.errors import HttpError
from presswork.server.routes.common import server_of, whole
from presswork.server.wire import Wire

router = APIRouter()

_MOST_QUESTIONS = 256


class DecisionRequest(Wire):
    """A body of POST /v1/systemone."""

    state: Any
    questions: dict[str, dict[str, Any]]
    model: str | None = None
    style: str = "letters"
    steps: int = 2
    calibrate: bool = False
    seed: int = 0
    files: list[Any] | None = None
    images: list[Any] | None = None


@router.post("/v1/systemone")
async def systemone(request: Request, body: DecisionRequest) -> dict[str, Any]:
    """Answer questions about a state from short canvases."""
    if len(body.questions) > _MOST_QUESTIONS:
        raise RequestError(f"questions may be {_MOST_QUESTIONS} at most, got {len(body.questions)}; ask in parts")
    if body.files or body.images:
        raise RequestError("files and images are not supported; put what matters into state")

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            try:
                reply = await lease.run(
                    lease.model.decide, body.state, body.questions, style=body.style, steps=body.steps,
                    calibrate=body.calibrate, seed=body.seed, adapter=lease.adapter,
                )  # fmt: skip
            except UnsupportedError as error:
                raise HttpError(501, str(error)) from error
            server_of(request).metrics.count_tokens(lease.name, reply.num_prompt_tokens, 0)
            return {
                "model": body.model or lease.name,
                "answers": {name: _told(body.questions[name], one) for name, one in reply.answers.items()},
                "usage": {"input_tokens": reply.num_prompt_tokens, "output_tokens": 0},
            }

    return await whole(request, answer())


def _told(question: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """An answer in the shape of its kind; `none` and `entropy` are our own."""
    own = {"none": answer.none, "entropy": answer.entropy}
    if answer.kind == "noul":
        return {"type": "noul", "noul": answer.probabilities["true"], **own}
    common = {"probabilities": answer.probabilities, "confidence": answer.confidence, **own}
    if answer.kind == "score":
        return {"type": "score", "score": answer.score, "legend": question["criteria"], **common}
    return {"type": "choice", "choice": answer.choice, **common}
