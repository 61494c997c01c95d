"""Which models there are."""

from typing import Any

from fastapi import APIRouter, Request

from presswork.server.registry import ServedModel
from presswork.server.routes.common import server_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model, and every adapter as MODEL:ADAPTER."""
    found = []
    for model in server_of(request).registry.models:
        found.append(_entry(request, model, model.name))
        found += [_entry(request, model, f"{model.name}:{adapter}") for adapter in model.adapters]
    return {"object": "list", "data": found}


@router.get("/v1/models/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    model, _ = server_of(request).registry.find(name)
    return _entry(request, model, name)


def _entry(request: Request, model: ServedModel, name: str) -> dict[str, Any]:
    length = server_of(request).registry.context_length(model)
    known = {} if length is None else {"context_length": length, "max_model_len": length}
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "presswork",
        # Agents look for either, and take the smallest default they know where there is none.
        **known,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text", "decisions"]},
        "loaded": model.engine is not None,
    }
