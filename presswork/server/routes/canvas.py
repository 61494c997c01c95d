"""The canvas itself over HTTP: gaps and edits with everything that the engine takes."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from presswork.errors import RequestError
from presswork.grammar.languages import TextLanguage
from presswork.server.constraints import of_structured_outputs
from presswork.server.routes.common import server_of, whole
from presswork.server.wire import Listed, Wire, bounded

router = APIRouter()


class FillRequest(Wire):
    """A body of POST /v1/canvas/fill: the texts around the gaps, and what each gap may hold."""

    texts: Listed[str]
    model: str | None = None
    max_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    num_candidates: int | None = None
    seed: int = 0
    temperature: float | None = None
    max_denoising_steps: int | None = None
    max_time: float | None = None


class CanvasEditRequest(Wire):
    """A body of POST /v1/canvas/edit: a text, and which parts of it may change."""

    text: str
    instruction: str = ""
    spans: Listed[Listed[int]] | None = None
    model: str | None = None
    strength: float = 0.5
    max_changes: int | None = None
    num_candidates: int = 4
    seed: int = 0
    temperature: float | None = None
    max_denoising_steps: int | None = None
    max_time: float | None = None


@router.post("/v1/canvas/fill")
async def fill(request: Request, body: FillRequest) -> dict[str, Any]:
    """Fill the gaps between texts, which all come back byte for byte."""
    gap = of_structured_outputs(body.structured_outputs)
    if gap is not None and not isinstance(gap, TextLanguage):
        raise RequestError("structured_outputs of a gap must be json, regex or choice")

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            reply = await lease.run(
                lease.model.fill_gaps, body.texts, max_tokens=body.max_tokens, gap=gap,
                num_candidates=body.num_candidates, seed=body.seed, adapter=lease.adapter, **_given(body),
            )  # fmt: skip
            candidates = [
                {"gaps": list(one.texts), "score": one.score, "denoise_steps": one.num_denoise_steps}
                for one in reply.candidates
            ]
            return {
                "model": body.model or lease.name,
                "text": reply.completed,
                "gaps": list(reply.texts),
                "candidates": candidates,
                "wall_s": reply.wall_s,
            }

    return await whole(request, answer())


@router.post("/v1/canvas/edit")
async def edit(request: Request, body: CanvasEditRequest) -> dict[str, Any]:
    """Change parts of a text in place; outside of them nothing changes."""

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            reply = await lease.run(
                lease.model.edit, body.text, body.instruction, spans=body.spans, strength=body.strength,
                max_changes=body.max_changes, num_candidates=body.num_candidates, seed=body.seed,
                adapter=lease.adapter, **_given(body),
            )  # fmt: skip
            return {
                "model": body.model or lease.name,
                "text": reply.text,
                "diff": await lease.read(reply.diff),
                "spans": [asdict(one) for one in reply.spans],
                "changes": [asdict(one) for one in reply.changes],
                "denoise_steps": reply.num_denoise_steps,
                "wall_s": reply.wall_s,
            }

    return await whole(request, answer())


def _given(body: FillRequest | CanvasEditRequest) -> dict[str, Any]:
    fields = ("temperature", "max_denoising_steps", "max_time")
    return bounded({name: getattr(body, name) for name in fields})
