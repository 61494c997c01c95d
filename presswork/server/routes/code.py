"""What editors ask for: the middle of a file, the next edit, a change worked in.

Gaps and edits run in threads: they are several requests of the engine each, which share passes with all others.
"""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.edit import EditReply
from presswork.errors import RequestError
from presswork.server.errors import HttpError
from presswork.server.gaps import Filled, Gap, stops_of, suffix_of
from presswork.server.generation import warm
from presswork.server.registry import Lease
from presswork.server.routes.chat import checked_choices
from presswork.server.routes.common import counted_gap, new_id, now, server_of, streamed, whole
from presswork.server.sse import DONE, event, readable
from presswork.server.tagged import NextEdit, Sketch, read_next_edit, read_sketch
from presswork.server.wire import Listed, Wire, bounded, gap_tokens, or_none, refuse, time_limit

router = APIRouter()

_FIM_TOKENS, _INFILL_TOKENS = 128, 128
_EDIT_STRENGTH = 0.5
_HURRIED_WAYS = 6


class FimRequest(Wire):
    """A body of POST /v1/fim/completions, as Mistral and Inception have it."""

    prompt: str
    model: str | None = None
    suffix: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | Listed[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    random_seed: int | None = None
    seed: int | None = None
    max_denoising_steps: int | None = None
    num_candidates: int | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class InfillRequest(Wire):
    """A body of POST /infill, as llama.vim and llama.vscode send it."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Listed[dict[str, Any]] | None = None
    prompt: str | None = None
    model: str | None = None
    n_predict: int | None = None
    n_indent: int | None = None
    stop: Listed[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    stream: bool | None = None
    response_fields: Listed[str] | None = None
    id_slot: int | None = None
    n_cmpl: int | None = None
    lora: Listed[dict[str, Any]] | None = None
    t_max_predict_ms: int | None = None
    # Caches and samplers of another engine: they change no text here.
    cache_prompt: bool | None = None
    t_max_prompt_ms: int | None = None
    n_prefix: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    samplers: Listed[str] | str | None = None


class EditRequest(Wire):
    """A body of POST /v1/edit/completions and /v1/apply/completions: one user message of tagged blocks.

    `stop` changes nothing: what comes back takes the place of a text, and cut short it would delete the rest.
    """

    messages: Listed[dict[str, Any]]
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Listed[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    strength: float | None = None
    max_time: float | None = None
    stream: bool | None = None


class ApplyRequest(Wire):
    """A body of POST /v1/apply: a file, and a sketch of what it should become."""

    initialCode: str
    editSnippet: str
    instruction: str | None = None
    model: str | None = None
    strength: float | None = None
    seed: int | None = None
    max_time: float | None = None
    stream: bool | None = None
    files: list[Any] | None = None


@router.post("/v1/fim/completions")
@router.post("/fim/completions")
async def fim(request: Request, body: FimRequest) -> Response:
    """Write the middle of a text; the answer is chat-shaped, and has the text where completions have it too."""
    refuse(body, {"min_tokens": (0,)})
    if None not in (body.seed, body.random_seed) and body.seed != body.random_seed:
        raise RequestError(f"seed is {body.seed} and random_seed {body.random_seed}; give one of them")

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            params = _given(
                seed=or_none(body.random_seed if body.seed is None else body.seed), temperature=body.temperature,
                max_denoising_steps=body.max_denoising_steps, num_candidates=body.num_candidates,
                presence_penalty=body.presence_penalty, frequency_penalty=body.frequency_penalty,
            )  # fmt: skip
            gap = Gap(
                prefix=body.prompt, suffix=suffix_of(body.suffix), stop=stops_of(body.stop), params=params,
                max_tokens=gap_tokens(body.max_tokens, _FIM_TOKENS),
            )  # fmt: skip
            found = await counted_gap(request, lease, gap)
            return _chat(body.model or lease.name, found.texts[0], found.reasons[0], found.usage())

    if body.stream:
        return await streamed(request, _chat_chunks(answer))
    return JSONResponse(await whole(request, answer()))


@router.post("/infill")
async def infill(request: Request, body: InfillRequest) -> Response:
    """Write the middle of a file, with others beside it; n_predict 0 only reads what stands before."""
    refuse(body, {"lora": ([],)})
    prefix = _with_extra(body.input_extra or [], body.input_prefix + (body.prompt or ""))
    num = _INFILL_TOKENS if body.n_predict is None or body.n_predict < 0 else body.n_predict
    num_wanted = checked_choices(body.n_cmpl)

    async def answer() -> list[dict[str, Any]]:
        started = time.perf_counter()
        async with server_of(request).registry.use(body.model) as lease:
            params = _given(seed=or_none(body.seed), temperature=body.temperature) | _hurried(body)
            if num:
                gap = Gap(
                    prefix=prefix, suffix=body.input_suffix, max_tokens=num, stop=stops_of(body.stop),
                    indent=body.n_indent or 0, params=params,
                )  # fmt: skip
                found = await counted_gap(request, lease, gap, num_wanted)
            else:
                ids = await lease.read(lambda: lease.model.encode_prompt(prefix, raw=True))
                room = lease.model.max_context - lease.model.model.config.canvas_length
                await warm(lease, ids[-room:])
                found = Filled([""], ["stop"], min(len(ids), room), 0, is_cut=len(ids) > room)
                server_of(request).metrics.count_tokens(lease.name, found.prompt_tokens, 0)
            took_ms = 1000 * (time.perf_counter() - started)
            return [_infilled(body, lease, found, number, took_ms) for number in range(len(found.texts))]

    if not body.stream:
        told = await whole(request, answer())
        return JSONResponse(told if num_wanted > 1 else told[0])

    async def events() -> AsyncGenerator[bytes, None]:
        for one in await answer():
            for piece in readable(one.get("content", "")):
                yield event({"index": one.get("index", 0), "content": piece, "stop": False})
            yield event({**one, "content": ""})

    return await streamed(request, events())


def _hurried(body: InfillRequest) -> dict[str, Any]:
    """Where the time is bounded, fewer lengths, so that each gets more steps of it."""
    limit = time_limit(body.t_max_predict_ms)
    return {**limit, "num_candidates": _HURRIED_WAYS} if limit else {}


def _infilled(body: InfillRequest, lease: Lease, found: Filled, number: int, took_ms: float) -> dict[str, Any]:
    """One text for a gap, as llama.cpp tells it."""
    told = {
        "index": number,
        "content": found.texts[number],
        "stop": True,
        "stop_type": "eos" if found.reasons[number] == "stop" else "limit",
        "truncated": found.is_cut,
        "model": body.model or lease.name,
        "tokens_predicted": found.completion_tokens,
        "tokens_evaluated": found.prompt_tokens,
        "tokens_cached": 0,
        "generation_settings": {"n_ctx": lease.model.max_context},
        "timings": _timings(found, took_ms),
    }
    if not body.response_fields:
        return told
    kept: dict[str, Any] = {}
    for path in body.response_fields:
        value: Any = told
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            kept[path] = value
    return kept


def _timings(found: Filled, took_ms: float) -> dict[str, float]:
    """llama.cpp's figures; reading the prompt shares its passes with the writing, so all time counts as writing."""

    def rates(kind: str, num: int, ms: float) -> dict[str, float]:
        per_token, per_second = (ms / num, 1000 * num / ms) if num and ms else (0.0, 0.0)
        return {f"{kind}_n": num, f"{kind}_ms": ms, f"{kind}_per_token_ms": per_token, f"{kind}_per_second": per_second}

    return rates("prompt", found.prompt_tokens, 0.0) | rates("predicted", found.completion_tokens, took_ms)


@router.post("/v1/edit/completions")
@router.post("/edit/completions")
async def edit(request: Request, body: EditRequest) -> Response:
    """Rewrite the marked region of a file; the answer is the region in a code fence."""
    asked = read_next_edit(_only_message(body))
    return await _edited(request, body, lambda lease, params: _edited_region(lease, asked, params), "```\n{}\n```")


@router.post("/v1/apply/completions")
@router.post("/apply/completions")
async def apply_in_blocks(request: Request, body: EditRequest) -> Response:
    """Work a sketched change into a text; the answer is the whole text."""
    sketch = read_sketch(_only_message(body))
    return await _edited(request, body, lambda lease, params: _worked_in(lease, sketch, None, params).text, "{}")


async def _edited(
    request: Request, body: EditRequest, edit: Callable[[Lease, dict[str, Any]], str], shown_as: str
) -> Response:
    """The text that an edit gives, chat-shaped."""

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            params = _given(
                seed=body.seed,
                temperature=body.temperature,
                presence_penalty=body.presence_penalty,
                frequency_penalty=body.frequency_penalty,
                strength=_EDIT_STRENGTH if body.strength is None else body.strength,
                max_time=body.max_time,
            )
            text = await lease.run(edit, lease, params)
            usage = await _counted_usage(request, lease, _only_message(body), text)
            return _chat(body.model or lease.name, shown_as.format(text), "stop", usage)

    if body.stream:
        return await streamed(request, _chat_chunks(answer))
    return JSONResponse(await whole(request, answer()))


def _only_message(body: EditRequest) -> str:
    """The user's message. Editors put a system message before it, or begin the answer behind it."""
    found = [message.get("content") for message in body.messages if message.get("role") == "user"]
    if len(found) != 1 or not isinstance(found[0], str):
        raise RequestError("an edit takes exactly one message of role user, with a text")
    return found[0]


@router.post("/v1/apply")
@router.post("/v1/code/apply")
async def apply(request: Request, body: ApplyRequest) -> dict[str, Any]:
    """Work a sketched change into a file, starting from what stands there."""
    refuse(body, {"stream": (False,), "files": ([],)})

    async def answer() -> dict[str, Any]:
        async with server_of(request).registry.use(body.model) as lease:
            strength = _EDIT_STRENGTH if body.strength is None else body.strength
            params = _given(seed=body.seed, strength=strength, max_time=body.max_time)
            sketch = Sketch(body.initialCode, body.editSnippet)
            reply = await lease.run(_worked_in, lease, sketch, body.instruction, params)
            usage = await _counted_usage(request, lease, body.initialCode + body.editSnippet, reply.text)
            return {"mergedCode": reply.text, "usage": usage}

    return await whole(request, answer())


@router.post("/v1/embeddings")
@router.post("/v1/rerank")
@router.post("/v1/images/generations")
@router.post("/v1/audio/speech")
@router.post("/v1/audio/transcriptions")
async def not_made_here(request: Request) -> Response:
    """What a model that writes text has no answer to."""
    what = request.url.path.removeprefix("/v1/")
    raise HttpError(501, f"{what}: these models write text and have no such output; use a model made for it")


def _given(**params: Any) -> dict[str, Any]:
    return bounded(params)


def _with_extra(extra: list[dict[str, Any]], prefix: str) -> str:
    """Other files before this one, each with its name."""
    parts = []
    for number, one in enumerate(extra):
        name, text = one.get("filename", ""), one.get("text")
        if not isinstance(text, str) or not isinstance(name, str):
            raise RequestError(f"input_extra[{number}] must have a filename and a text")
        parts.append(f"# {name}\n{text}\n\n" if name else f"{text}\n\n")
    return "".join(parts) + prefix


def _worked_in(lease: Lease, sketch: Sketch, instruction: str | None, params: Mapping[str, Any]) -> EditReply:
    """The text with a sketched change worked in."""
    told = f"{instruction or 'Work this change into the code.'}\n\n{sketch.update}"
    return lease.model.edit(sketch.original, told, adapter=lease.adapter, **params)


def _edited_region(lease: Lease, asked: NextEdit, params: Mapping[str, Any]) -> str:
    """The region as it should be next; what was looked at and changed lately stands before the file."""
    if not asked.region:
        return asked.region
    head = f"{asked.context}\n\n" if asked.context else ""
    text = head + asked.before + asked.region + asked.after
    start = len(head) + len(asked.before)
    reply = lease.model.edit(text, spans=[(start, start + len(asked.region))], adapter=lease.adapter, **params)
    return reply.spans[0].new


async def _counted_usage(request: Request, lease: Lease, before: str, text: str) -> dict[str, int]:
    """Tokens read and written, taken into the server's figures."""
    tokenizer = lease.model.tokenizer
    assert tokenizer is not None
    prompt, completion = [len(await lease.read(tokenizer.encode_plain, one)) for one in (before, text)]
    server_of(request).metrics.count_tokens(lease.name, prompt, completion)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chat(model: str, text: str, reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": new_id("fim"),
        "object": "chat.completion",
        "created": now(),
        "model": model,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": reason}
        ],
        "usage": usage,
    }


async def _chat_chunks(answer: Any) -> AsyncGenerator[bytes, None]:
    """A chat-shaped answer as a stream."""
    told = await answer()
    (choice,) = told.pop("choices")
    usage = told.pop("usage")
    head = {**told, "object": "chat.completion.chunk"}
    for piece in readable(choice["message"]["content"]):
        delta = {"role": "assistant", "content": piece}
        yield event({**head, "choices": [{"index": 0, "delta": delta, "text": piece, "finish_reason": None}]})
    last = {"index": 0, "delta": {"content": ""}, "text": "", "finish_reason": choice["finish_reason"]}
    yield event({**head, "choices": [last], "usage": usage})
    yield DONE
