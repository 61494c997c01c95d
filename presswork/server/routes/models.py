"""Which models there are."""

from typing import Any

from fastapi import APIRouter, Request

from presswork.engine.decide import takes_letters
from presswork.server.registry import ServedModel
from presswork.server.routes.common import server_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Every model, and every adapter as MODEL:ADAPTER; in Anthropic's shape for its clients."""
    found = []
    for model in server_of(request).registry.models:
        found.append(_entry(request, model, model.name))
        found += [_entry(request, model, f"{model.name}:{adapter}") for adapter in model.adapters]
    if _is_anthropic(request):
        return {"data": found, "has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}
    return {"object": "list", "data": found}


@router.get("/v1/models/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    model, _ = server_of(request).registry.find(name)
    return _entry(request, model, name)


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _entry(request: Request, model: ServedModel, name: str) -> dict[str, Any]:
    length = server_of(request).registry.context_length(model)
    if _is_anthropic(request):
        known = {} if length is None else {"max_input_tokens": length}
        stamp = "1970-01-01T00:00:00Z"  # asked for, and not known
        return {
            "type": "model", "id": name, "display_name": name, "created_at": stamp, "lifecycle": "active", **known,
        }  # fmt: skip
    known = {} if length is None else {"context_length": length, "max_model_len": length}
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "presswork",
        # Agents look for either, and take the smallest default they know where there is none.
        **known,
        "architecture": {"input_modalities": ["text"], "output_modalities": _modalities(model)},
        "loaded": model.engine is not None,
    }


def _modalities(model: ServedModel) -> list[str]:
    """What clients of /v1/systemone look for among them is known of a model that is loaded."""
    tokenizer = None if model.engine is None else model.engine.engine.tokenizer
    return ["text", "decisions"] if takes_letters(tokenizer) else ["text"]
