"""OpenAI's chat completions."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from presswork.engine.events import Done, Draft, Reply, TokenLogprob
from presswork.engine.params import SamplingParams
from presswork.errors import RequestError
from presswork.server.constraints import form_and_calls, of_response_format, of_structured_outputs, only_one
from presswork.server.frames import frame
from presswork.server.generation import (
    Ask,
    Bit,
    Logprobs,
    State,
    Written,
    bits,
    fitted,
    num_reasoning_tokens,
    prediction_counts,
    several,
    warm,
)
from presswork.server.registry import Lease
from presswork.server.routes.common import checked_effort, counted, new_id, now, server_of, streamed, timings, whole
from presswork.server.sse import DONE, event, readable
from presswork.server.turns import chat_tools, chat_turns, one_system
from presswork.server.wire import CanvasFields, Listed, Wire, biases, or_none, refuse, sampling, time_limit
from presswork.text.parsers import ToolCall
from presswork.text.parts import Piece
from presswork.text.tokenizer import Tokenizer

router = APIRouter()

MAX_CHOICES = 32


class StreamOptions(Wire):
    """What a stream holds beside its text."""

    include_usage: bool = False
    include_obfuscation: bool = False
    drafts: bool = False


class Prediction(Wire):
    """A text that the reply is expected to be much like: canvases start from it."""

    type: Literal["content"]
    content: str | Listed[dict[str, Any]]


class ChatRequest(CanvasFields):
    """A body of POST /v1/chat/completions."""

    messages: Listed[dict[str, Any]]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusing: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Listed[str] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Listed[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    prediction: Prediction | None = None
    start_noise: float | None = None
    reasoning_effort: str | None = None
    think: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Honoured by doing nothing: they are about whoever sends the request, or about a service that this is not.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    store: bool | None = None
    realtime: bool | None = None
    reasoning_summary: bool | None = None
    reasoning_summary_wait: bool | None = None
    verbosity: str | None = None
    nextEdit: bool | None = None  # Continue marks its requests with it
    cache_prompt: bool | None = None
    id_slot: int | None = None
    min_p: float | None = None
    samplers: str | Listed[str] | None = None
    t_max_predict_ms: int | None = None
    # llama.cpp's: 0 only reads the prompt, so that the next request finds it.
    n_predict: int | None = None
    response_fields: Listed[str] | None = None
    service_tier: str | None = None
    # Refused where they ask for anything.
    modalities: Listed[str] | None = None
    audio: dict[str, Any] | None = None
    functions: Listed[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],), "audio": (),
    "functions": ([],), "function_call": ("none", "auto"), "web_search_options": (),
    "service_tier": ("auto", "default"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk:
    """A chat request as the engine takes it, and how its answer is told.

    Args:
        num_predicted: tokens of the prediction, None where there is none.
    """

    asks: list[Ask]
    model: str
    num_predicted: int | None
    include_usage: bool
    has_drafts: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=now)

    @property
    def is_full_text(self) -> bool:
        """Whether every event of a stream holds the whole text so far, drafts included."""
        return self.asks[0].wants_states


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    refuse(body, _NEUTRAL)
    server = server_of(request)
    if body.stream:
        return await streamed(request, _streamed(request, body))

    async def answer() -> Response:
        async with server.registry.use(body.model) as lease:
            asked = await lease.read(read_chat, body, lease)
            found: list[Written] = []
            if body.n_predict == 0:
                await warm(lease, asked.asks[0].prompt_ids)
            else:
                found = await counted(request, lease, asked.asks)
            told = _completion(asked, found, lease)
            kept = body.response_fields or list(told)
            return JSONResponse({name: told[name] for name in kept if name in told})

    return await whole(request, answer())


def read_chat(body: ChatRequest, lease: Lease) -> ChatAsk:
    """Check a body against a model. Raises RequestError."""
    num = checked_choices(body.n)
    options = body.stream_options or StreamOptions()
    if body.response_fields and body.stream:
        raise RequestError("response_fields pick from a whole answer; leave them out of a stream")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options are for streams; leave them out, or set stream")
    if body.n_predict == 0 and body.stream:
        raise RequestError("n_predict: 0 only reads the prompt, which streams nothing; leave out stream")
    if body.diffusing and not body.stream:
        raise RequestError("diffusing is for streams; leave it out, or set stream")
    tools = chat_tools(body.tools or [])
    params = _params(body, lease, tools)
    if params.mode == "ar" and (options.drafts or body.diffusing):
        raise RequestError("mode ar has no drafts; leave out stream_options.drafts and diffusing")
    variables = dict(body.chat_template_kwargs or {})
    thinks = checked_effort("reasoning_effort", body.reasoning_effort)
    thinks = body.think if thinks is None else thinks
    if thinks is not None:
        # A form leaves no room for thoughts before it.
        variables.setdefault("enable_thinking", thinks and params.constraint is None)
    shown = [] if body.tool_choice == "none" else tools
    turns = one_system(chat_turns(body.messages))
    ids = lease.model.encode_chat(turns, tools=shown or None, template_variables=variables)
    predicted = None
    if body.prediction is not None:
        assert lease.model.tokenizer is not None
        predicted = len(lease.model.tokenizer.encode(_prediction(body.prediction), add_special_tokens=False))
    has_drafts = bool(options.drafts or body.diffusing)
    return ChatAsk(
        asks=several(
            Ask(
                prompt_ids=ids,
                params=fitted(params, len(ids), lease),
                wants_drafts=has_drafts,
                wants_states=bool(body.diffusing),
                max_calls=1 if body.parallel_tool_calls is False else None,
            ),
            num,
        ),
        model=body.model or lease.name,
        num_predicted=predicted,
        include_usage=options.include_usage,
        has_drafts=options.drafts,
    )


def checked_choices(num: int | None) -> int:
    """How many choices a body asks for. Raises RequestError."""
    found = 1 if num is None else num
    if not 1 <= found <= MAX_CHOICES:
        raise RequestError(f"n must be an integer in 1..{MAX_CHOICES}, got {found}")
    return found


def _params(body: ChatRequest, lease: Lease, tools: Sequence[Mapping[str, Any]]) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true")
    limits = {n for n in (body.max_tokens, body.max_completion_tokens, body.n_predict or None) if n is not None}
    if len(limits) > 1:
        raise RequestError("max_tokens, max_completion_tokens and n_predict differ; give one of them")
    is_parallel = body.parallel_tool_calls is not False
    form = only_one({
        "response_format": of_response_format(body.response_format),
        "structured_outputs": of_structured_outputs(body.structured_outputs),
    })  # fmt: skip
    constraint = form_and_calls("response_format", form, tools, body.tool_choice, is_parallel=is_parallel)
    if body.max_time is not None and body.t_max_predict_ms:
        raise RequestError("max_time and t_max_predict_ms both bound the time; give one of them")
    start = None if body.prediction is None else _prediction(body.prediction)
    if body.start_noise is not None and start is None:
        raise RequestError("start_noise is about a prediction; give one, or leave it out")
    return sampling(
        body,
        lease.model.defaults,
        max_tokens=or_none(next(iter(limits), None)),
        seed=or_none(body.seed),
        temperature=body.temperature,
        top_p=body.top_p,
        stop=body.stop,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logit_bias=biases(body.logit_bias),
        constraint=constraint,
        start=start,
        start_noise=body.start_noise,
        trace=True if start is not None else None,
        adapter=lease.adapter,
        **time_limit(body.t_max_predict_ms),
    )


def _prediction(prediction: Prediction) -> str:
    if isinstance(prediction.content, str):
        return prediction.content
    texts = [part.get("text") for part in prediction.content if part.get("type") == "text"]
    if len(texts) < len(prediction.content) or not all(isinstance(text, str) for text in texts):
        raise RequestError("prediction.content must be a text, or a list of parts of type text")
    return "".join(text for text in texts if text is not None)


def _completion(asked: ChatAsk, found: Sequence[Written], lease: Lease) -> dict[str, Any]:
    replies = [one.reply for one in found if one.reply is not None]
    return {
        "id": asked.id,
        "object": "chat.completion",
        "created": asked.created,
        "model": asked.model,
        "choices": [_choice(asked, number, one, lease) for number, one in enumerate(found)],
        "usage": usage(asked, found, lease),
        "timings": timings(replies[0].stats) if replies else None,
    }


def _choice(asked: ChatAsk, number: int, found: Written, lease: Lease) -> dict[str, Any]:
    reply = found.finished
    message: dict[str, Any] = {
        "role": "assistant",
        "content": found.text or (None if found.calls else ""),
        "refusal": None,
    }
    if found.reasoning:
        message["reasoning_content"] = found.reasoning
    if found.calls:
        message["tool_calls"] = [tool_call(asked.id, number, i, call) for i, call in enumerate(found.calls)]
    listed = None
    if asked.asks[0].params.logprobs is not None:
        listed = {"content": chat_logprobs(found.logprobs, lease.model.tokenizer), "refusal": None}
    return {
        "index": number,
        "message": message,
        "logprobs": listed,
        "finish_reason": finish_reason(reply, has_calls=bool(found.calls)),
    }


def tool_call(reply_id: str, choice: int, number: int, call: ToolCall) -> dict[str, Any]:
    """A whole tool call; its id says which reply, choice and place it is of."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    name = f"call_{reply_id.rpartition('-')[2]}_{choice}_{number}"
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def finish_reason(reply: Reply, *, has_calls: bool) -> str:
    """Why a reply ended, in OpenAI's words."""
    if reply.finish_reason == "length":
        return "length"
    return "tool_calls" if has_calls else "stop"


def usage(asked: ChatAsk, found: Sequence[Written], lease: Lease) -> dict[str, Any]:
    """Tokens read and written, of all choices."""
    replies = [one.reply for one in found if one.reply is not None]
    completion = sum(reply.usage.completion_tokens for reply in replies)
    prompt = len(asked.asks[0].prompt_ids)
    details: dict[str, int] = {"reasoning_tokens": sum(num_reasoning_tokens(lease, one) for one in found)}
    if asked.num_predicted is not None:
        counts = [prediction_counts(reply.trace, asked.num_predicted) for reply in replies]
        details["accepted_prediction_tokens"] = sum(kept for kept, _ in counts)
        details["rejected_prediction_tokens"] = sum(lost for _, lost in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min((reply.usage.cached_tokens for reply in replies), default=0)},
        "completion_tokens_details": details,
    }


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """OpenAI's list, without special tokens; each also says how and when it settled."""
    assert tokenizer is not None

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    return [
        {
            **one(t.token_id, t.logprob),
            "top_logprobs": [one(token, logprob) for token, logprob in t.top],
            "entropy": t.entropy,
            "settled_step": t.settled_step,
            "num_steps": t.num_steps,
        }
        for t in tokens
        if t.token_id not in tokenizer.special_ids
    ]


async def _streamed(request: Request, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    server = server_of(request)
    async with server.registry.use(body.model) as lease:
        asked = await lease.read(read_chat, body, lease)
        found = [Written() for _ in asked.asks]
        begun: set[int] = set()
        async with aclosing(bits(lease, asked.asks)) as coming:
            async for number, bit in coming:
                # Not before there is something to say: until then an error can still be a status of its own.
                if number not in begun:
                    begun.add(number)
                    yield _chunk(asked, number, {"role": "assistant", "content": ""})
                found[number].add(bit)
                for one in _chunks(asked, number, bit, found[number], lease):
                    yield one
                if isinstance(bit, Done):
                    server.metrics.count(lease.name, bit.reply)
        if asked.include_usage:
            last = {**_head(asked), "choices": [], "usage": usage(asked, found, lease)}
            assert found[0].reply is not None
            yield event({**last, "timings": timings(found[0].reply.stats)})
        yield DONE


def _chunks(asked: ChatAsk, number: int, bit: Bit, so_far: Written, lease: Lease) -> list[bytes]:
    """The events that one more bit of a choice makes."""
    if isinstance(bit, Draft):
        return [_chunk(asked, number, {}, extra=frame(bit, lease.model))] if asked.has_drafts else []
    if isinstance(bit, State):
        return [_chunk(asked, number, {"content": bit.text})]
    if isinstance(bit, Piece):
        if bit.kind == "reasoning":
            return [_chunk(asked, number, {"reasoning_content": piece}) for piece in readable(bit.text)]
        if asked.is_full_text:
            return []  # the next state has it
        return [_chunk(asked, number, {"content": piece}) for piece in readable(bit.text)]
    if isinstance(bit, ToolCall):
        return _call_chunks(asked, number, len(so_far.calls) - 1, bit)
    if isinstance(bit, Logprobs):
        listed = {"content": chat_logprobs(bit.tokens, lease.model.tokenizer), "refusal": None}
        return [_chunk(asked, number, {}, logprobs=listed)]
    reason = finish_reason(bit.reply, has_calls=bool(so_far.calls))
    return [_chunk(asked, number, {}, finish=reason)]


def _call_chunks(asked: ChatAsk, number: int, place: int, call: ToolCall) -> list[bytes]:
    """The call's name, then its arguments in pieces that together are their JSON."""
    told = tool_call(asked.id, number, place, call)
    arguments = told["function"]["arguments"]
    told["function"] = {"name": call.name, "arguments": ""}
    made = [_chunk(asked, number, {"tool_calls": [{"index": place, **told}]})]
    for piece in readable(arguments):
        delta = {"tool_calls": [{"index": place, "function": {"arguments": piece}}]}
        made.append(_chunk(asked, number, delta))
    return made


def _head(asked: ChatAsk) -> dict[str, Any]:
    head = {"id": asked.id, "object": "chat.completion.chunk", "created": asked.created, "model": asked.model}
    return {**head, "usage": None} if asked.include_usage else head


def _chunk(
    asked: ChatAsk, number: int, delta: dict[str, Any], *, finish: str | None = None,
    logprobs: dict[str, Any] | None = None, extra: dict[str, Any] | None = None,
) -> bytes:  # fmt: skip
    choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return event({**_head(asked), "choices": [choice], **(extra or {})})
