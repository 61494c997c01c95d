"""Whether the server is well, what it is, and tokens."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork import __version__
from presswork.errors import RequestError
from presswork.server.registry import Lease
from presswork.server.routes.common import server_of
from presswork.server.turns import chat_tools, chat_turns, one_system
from presswork.server.wire import Listed, Wire
from presswork.text.tokenizer import Tokenizer

router = APIRouter()


class TokenizeRequest(Wire):
    """A text to cut: llama.cpp says `content`, vLLM `prompt` or `messages`."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Listed[dict[str, Any]] | None = None
    add_special: bool = False
    add_special_tokens: bool = True
    parse_special: bool = True
    with_pieces: bool = False


class TemplateRequest(Wire):
    """A conversation to render."""

    messages: Listed[dict[str, Any]]
    model: str | None = None
    tools: Listed[dict[str, Any]] | None = None


class DetokenizeRequest(Wire):
    """Tokens to put together."""

    model: str | None = None
    tokens: Listed[int]


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 once the default model is there, 503 with the share that is loaded before."""
    server = server_of(request)
    if server.is_ready:
        return JSONResponse({"status": "ok"})
    if server.has_failed:
        return JSONResponse({"status": "failed", "error": "the model cannot be loaded; the server's log says why"}, 503)
    said = {"status": "loading", "model": server.registry.default.name, "progress": server.registry.default.progress}
    return JSONResponse(said, 503, {"retry-after": "1"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    server = server_of(request)
    for model in server.registry.models:
        engine = None if model.engine is None else model.engine.engine
        server.metrics.running.labels(model.name).set(0 if engine is None else engine.num_running)
        server.metrics.waiting.labels(model.name).set(0 if engine is None else engine.num_waiting)
        server.metrics.cache_bytes.labels(model.name).set(0 if engine is None else engine.num_cache_bytes)
        server.metrics.loaded_bytes.labels(model.name).set(0 if engine is None else model.num_bytes)
        server.metrics.prefix_bytes.labels(model.name).set(0 if engine is None else engine.prefix.num_bytes)
    server.metrics.waiting_edits.set(server.registry.workers.num_waiting)
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/version")
async def version() -> dict[str, str]:
    """What runs here."""
    return {"version": __version__}


@router.get("/props")
@router.get("/v1/props")
async def props(request: Request) -> dict[str, Any]:
    """What llama.cpp's clients ask of a server: the window, and the model's name."""
    server = server_of(request)
    length = server.registry.context_length(server.registry.default)
    return {
        "default_generation_settings": {"n_ctx": length},
        "model_alias": server.registry.default.name,
        "total_slots": server.config.engine.max_running,
        "build_info": f"presswork {__version__}",
    }


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
    """Token ids of a text or a conversation."""
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise RequestError("give one of content, prompt and messages")
    async with server_of(request).registry.use(body.model) as lease:
        return await lease.read(_tokenized, body, lease)


def _tokenized(body: TokenizeRequest, lease: Lease) -> dict[str, Any]:
    engine, tokenizer = lease.model, _tokenizer(lease)
    if body.messages is not None:
        ids = engine.encode_chat(one_system(chat_turns(body.messages)))
    else:
        text = body.content if body.content is not None else body.prompt or ""
        is_marked = body.add_special if body.content is not None else body.add_special_tokens
        ids = tokenizer.encode(text, is_marked) if body.parse_special else tokenizer.encode_plain(text)
    tokens: list[Any] = ids
    if body.with_pieces:
        tokens = [{"id": i, "piece": tokenizer.token_text(i)} for i in ids]
    return {"tokens": tokens, "count": len(ids), "max_model_len": engine.max_context}


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, str]:
    """The text of token ids; llama.cpp reads `content`, vLLM `prompt`."""
    async with server_of(request).registry.use(body.model) as lease:
        text = await lease.read(lambda: _tokenizer(lease).decode(body.tokens, skip_special_tokens=False))
        return {"content": text, "prompt": text}


@router.post("/apply-template")
async def apply_template(request: Request, body: TemplateRequest) -> dict[str, str]:
    """A conversation as the model reads it."""
    async with server_of(request).registry.use(body.model) as lease:

        def rendered() -> str:
            turns = one_system(chat_turns(body.messages))
            ids = lease.model.encode_chat(turns, tools=chat_tools(body.tools or []) or None)
            return _tokenizer(lease).decode(ids, skip_special_tokens=False)

        return {"prompt": await lease.read(rendered)}


def _tokenizer(lease: Lease) -> Tokenizer:
    if lease.model.tokenizer is None:
        raise RequestError(f"model {lease.name!r} has no tokenizer")
    return lease.model.tokenizer
