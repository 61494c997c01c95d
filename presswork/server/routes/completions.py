"""OpenAI's completions: plain text behind plain text, or between two of them."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.engine import Engine
from presswork.engine.events import Done, TokenLogprob
from presswork.engine.params import SamplingParams
from presswork.errors import RequestError
from presswork.server.constraints import of_response_format, of_structured_outputs, only_one
from presswork.server.gaps import Gap, stops_of, suffix_of
from presswork.server.generation import Ask, Bit, Logprobs, Written, bits, fitted, several
from presswork.server.registry import Lease
from presswork.server.routes.chat import StreamOptions, checked_choices, finish_reason
from presswork.server.routes.common import counted, counted_gap, new_id, now, server_of, streamed, timings, whole
from presswork.server.sse import DONE, event, readable
from presswork.server.wire import (
    CanvasFields,
    Listed,
    biases,
    bounded,
    gap_tokens,
    may_stop,
    or_none,
    own_fields,
    sampling,
)
from presswork.text.parts import Piece
from presswork.text.tokenizer import Tokenizer

router = APIRouter()

_MAX_TOKENS = 16  # OpenAI's default
MAX_PROMPTS = 64


class CompletionRequest(CanvasFields):
    """A body of POST /v1/completions."""

    prompt: str | Listed[str] | Listed[int] | Listed[Listed[int]]
    model: str | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Listed[str] | None = None
    logprobs: int | None = None
    echo: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    user: str | None = None
    logit_bias: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionAsk:
    """A request as the engine takes it: so many choices of each prompt, and what stands before each text.

    Args: has_echo: each text begins with its prompt. is_only_echo: and ends with it; nothing is written.
    """

    asks: list[Ask]
    echoes: list[str]
    has_echo: bool
    is_only_echo: bool
    num_prompts: int
    model: str
    include_usage: bool
    id: str = field(default_factory=lambda: new_id("cmpl"))
    created: int = field(default_factory=now)


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Write on from each prompt, or between it and a suffix."""
    if body.stream_options is not None and (not body.stream or body.stream_options.drafts):
        raise RequestError("stream_options are for streams, and drafts for chat completions; leave them out")
    server = server_of(request)
    if body.stream:
        return await streamed(request, _streamed(request, body))

    async def answer() -> Response:
        async with server.registry.use(body.model) as lease:
            if suffix_of(body.suffix):
                return JSONResponse(await filled(request, body, lease))
            asked = await lease.read(_read, body, lease)
            listed = await _echoed_logprobs(asked, lease)
            if asked.is_only_echo:
                return JSONResponse(_only_echo(asked, listed))
            return JSONResponse(_completion(asked, await counted(request, lease, asked.asks), listed, lease))

    return await whole(request, answer())


def _read(body: CompletionRequest, lease: Lease) -> CompletionAsk:
    """Check a body against a model. Raises RequestError."""
    num = _num_choices(body)
    if body.logprobs is not None and lease.model.tokenizer is None:
        raise RequestError(f"model {lease.name!r} has no tokenizer to name tokens with; leave out logprobs")
    prompts = _prompts(body.prompt, lease.model)
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(f"prompt must hold 1 to {MAX_PROMPTS} prompts, got {len(prompts)}")
    if len(prompts) * num > lease.model.config.max_waiting:
        raise RequestError(f"{len(prompts)} prompts of {num} choices are more than this server queues; ask for fewer")
    is_only_echo = body.max_tokens == 0 and body.echo is True
    if is_only_echo and body.stream:
        raise RequestError("max_tokens: 0 writes nothing, so there is nothing to stream; leave out stream")
    params = params_of(body.model_copy(update={"max_tokens": 1}) if is_only_echo else body, lease)
    asks = [
        several(Ask(prompt_ids=ids, params=fitted(params, len(ids), lease), is_chat=False), num) for ids, _ in prompts
    ]
    return CompletionAsk(
        asks=[ask for group in asks for ask in group],
        echoes=[text if body.echo else "" for _, text in prompts for _ in range(num)],
        has_echo=body.echo is True,
        is_only_echo=is_only_echo,
        num_prompts=len(prompts),
        model=body.model or lease.name,
        include_usage=_wants_usage(body),
    )


def _num_choices(body: CompletionRequest) -> int:
    """Texts to write for each prompt. Raises RequestError."""
    num = checked_choices(body.n)
    if body.best_of not in (None, num):
        raise RequestError(f"best_of must be n, which is {num}, or left out, got {body.best_of}")
    return num


def params_of(body: CompletionRequest, lease: Lease) -> SamplingParams:
    """The sampling parameters of a body. Raises RequestError."""
    constraint = only_one({
        "response_format": of_response_format(body.response_format),
        "structured_outputs": of_structured_outputs(body.structured_outputs),
    })  # fmt: skip
    return sampling(
        body,
        lease.model.defaults,
        max_tokens=_MAX_TOKENS if body.max_tokens is None else or_none(body.max_tokens),
        seed=or_none(body.seed),
        temperature=body.temperature,
        top_p=body.top_p,
        stop=body.stop,
        logprobs=body.logprobs,
        logit_bias=biases(body.logit_bias),
        constraint=constraint,
        adapter=lease.adapter,
    )


def _prompts(given: Any, engine: Engine) -> list[tuple[list[int], str]]:
    """(token ids, text) of each prompt; no chat template is applied."""
    several = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    found = []
    for one in several:
        if isinstance(one, str):
            found.append((engine.encode_prompt(one, raw=True), one))
        else:
            found.append((one, "" if engine.tokenizer is None else engine.tokenizer.decode(one)))
    return found


async def filled(request: Request, body: CompletionRequest, lease: Lease) -> dict[str, Any]:
    """The text between prompt and suffix; both stay as they are. Raises RequestError."""
    if not isinstance(body.prompt, str):
        raise RequestError("with a suffix, prompt must be one text")
    for name in ("logprobs", "echo", "response_format"):
        value = getattr(body, name)
        if value is not None and value is not False:
            raise RequestError(f"{name} cannot be kept together with a suffix; leave one of them out")
    params = {
        **own_fields(body),
        "seed": or_none(body.seed),
        "temperature": body.temperature,
        "top_k": None,  # a gap's end decides which tokens may stand in it
        "logit_bias": biases(body.logit_bias),
    }
    language = of_structured_outputs(body.structured_outputs)
    gap = Gap(
        prefix=body.prompt,
        suffix=suffix_of(body.suffix),
        max_tokens=gap_tokens(body.max_tokens, _MAX_TOKENS),
        stop=stops_of(body.stop) if may_stop(language) else (),
        language=language,
        params=bounded(params),
    )
    found = await counted_gap(request, lease, gap, _num_choices(body))
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": now(),
        "model": body.model or lease.name,
        "choices": [
            {"index": i, "text": text, "logprobs": None, "finish_reason": reason}
            for i, (text, reason) in enumerate(zip(found.texts, found.reasons, strict=True))
        ],
        "usage": found.usage(),
    }


async def _echoed_logprobs(asked: CompletionAsk, lease: Lease) -> list[dict[str, Any] | None]:
    """Log-probabilities of what stands before each text, where they are asked for; the first token of all has none."""
    num_top = asked.asks[0].params.logprobs
    if num_top is None or not asked.has_echo:
        return [None] * len(asked.asks)
    known: dict[tuple[int, ...], dict[str, Any]] = {}
    for ask in asked.asks:
        ids = tuple(ask.prompt_ids)
        if ids not in known:
            read = await lease.run(lease.model.prompt_logprobs, list(ids), num_top=num_top, adapter=lease.adapter)
            known[ids] = _with_first(ids, completion_logprobs(read, lease.model.tokenizer), lease.model.tokenizer)
    return [known[tuple(ask.prompt_ids)] for ask in asked.asks]


def _with_first(ids: Sequence[int], listed: dict[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A prompt's lists with its first token before them, unless that is no text."""
    assert tokenizer is not None
    if not ids or ids[0] in tokenizer.special_ids:
        return listed
    text = tokenizer.token_text(ids[0])
    first = {"tokens": [text], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    later = {**listed, "text_offset": [len(text) + offset for offset in listed["text_offset"]]}
    return {name: first[name] + later[name] for name in first}


def _joined(before: dict[str, Any] | None, behind: dict[str, Any] | None) -> dict[str, Any] | None:
    if before is None or behind is None:
        return before or behind
    return {name: before[name] + behind[name] for name in before}


def _only_echo(asked: CompletionAsk, listed: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    choices = [
        {"index": number, "text": echo, "logprobs": found, "finish_reason": "length"}
        for number, (echo, found) in enumerate(zip(asked.echoes, listed, strict=True))
    ]
    prompt = sum(len(ask.prompt_ids) for ask in asked.asks[:: len(asked.asks) // asked.num_prompts])
    usage = {"prompt_tokens": prompt, "completion_tokens": 0, "total_tokens": prompt}
    return {**_head(asked), "choices": choices, "usage": usage}


def _completion(
    asked: CompletionAsk, found: Sequence[Written], echoed: Sequence[dict[str, Any] | None], lease: Lease
) -> dict[str, Any]:
    made = []
    for number, one in enumerate(found):
        reply, listed = one.finished, None
        if reply.logprobs is not None:
            listed = completion_logprobs(one.logprobs, lease.model.tokenizer, start=len(asked.echoes[number]))
        reason = finish_reason(reply, has_calls=False)
        text = asked.echoes[number] + one.text
        listed = _joined(echoed[number], listed)
        made.append({"index": number, "text": text, "logprobs": listed, "finish_reason": reason})
    told_timings = timings(found[0].finished.stats)
    return {**_head(asked), "choices": made, "usage": _usage(asked, found), "timings": told_timings}


def _usage(asked: CompletionAsk, found: Sequence[Written]) -> dict[str, Any]:
    replies = [one.reply for one in found if one.reply is not None]
    firsts = replies[:: len(replies) // asked.num_prompts]  # a prompt counts once, however many choices it has
    prompt = sum(reply.usage.prompt_tokens for reply in firsts)
    completion = sum(reply.usage.completion_tokens for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(reply.usage.cached_tokens for reply in firsts)},
    }


def completion_logprobs(
    tokens: Sequence[TokenLogprob], tokenizer: Tokenizer | None, *, start: int = 0
) -> dict[str, Any]:
    """OpenAI's older shape: parallel lists."""
    assert tokenizer is not None
    shown = [token for token in tokens if token.token_id not in tokenizer.special_ids]
    texts = [tokenizer.token_text(token.token_id) for token in shown]
    offsets = [start]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in shown],
        "top_logprobs": [{tokenizer.token_text(i): logprob for i, logprob in token.top} for token in shown],
        "text_offset": offsets[:-1],
    }


async def _streamed(request: Request, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    server = server_of(request)
    async with server.registry.use(body.model) as lease:
        if suffix_of(body.suffix):
            for one in _filled_chunks(await filled(request, body, lease), with_usage=_wants_usage(body)):
                yield one
            return
        asked = await lease.read(_read, body, lease)
        found = [Written() for _ in asked.asks]
        echoes = dict(enumerate(zip(asked.echoes, await _echoed_logprobs(asked, lease), strict=True)))
        offsets = [len(echo) for echo in asked.echoes]
        async with aclosing(bits(lease, asked.asks)) as coming:
            async for number, bit in coming:
                echo, listed = echoes.pop(number, ("", None))
                if echo:
                    yield _chunk(asked, number, echo, logprobs=listed)
                found[number].add(bit)
                for one in _chunks(asked, number, bit, offsets, lease):
                    yield one
                if isinstance(bit, Done):
                    server.metrics.count(lease.name, bit.reply)
        if asked.include_usage:
            yield event({**_head(asked), "choices": [], "usage": _usage(asked, found)})
        yield DONE


def _chunks(asked: CompletionAsk, number: int, bit: Bit, offsets: list[int], lease: Lease) -> list[bytes]:
    """The events that one more bit of a choice makes.

    Args: offsets: of each choice, characters up to the next token whose log-probability is told. Mutated.
    """
    if isinstance(bit, Piece):
        return [_chunk(asked, number, piece) for piece in readable(bit.text)]
    if isinstance(bit, Logprobs):
        listed = completion_logprobs(bit.tokens, lease.model.tokenizer, start=offsets[number])
        offsets[number] += sum(map(len, listed["tokens"]))
        return [_chunk(asked, number, "", logprobs=listed)]
    assert isinstance(bit, Done)
    return [_chunk(asked, number, "", finish=finish_reason(bit.reply, has_calls=False))]


def _wants_usage(body: CompletionRequest) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _filled_chunks(found: dict[str, Any], *, with_usage: bool) -> Iterator[bytes]:
    """A filled gap as a stream."""
    head = {name: found[name] for name in ("id", "object", "created", "model")}
    for choice in found["choices"]:
        for piece in readable(choice["text"]):
            yield event({**head, "choices": [{**choice, "text": piece, "finish_reason": None}]})
        yield event({**head, "choices": [{**choice, "text": ""}]})
    if with_usage:
        yield event({**head, "choices": [], "usage": found["usage"]})
    yield DONE


def _head(asked: CompletionAsk) -> dict[str, Any]:
    return {"id": asked.id, "object": "text_completion", "created": asked.created, "model": asked.model}


def _chunk(
    asked: CompletionAsk, index: int, text: str, *, finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> bytes:
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
    return event({**_head(asked), "choices": [choice]})
