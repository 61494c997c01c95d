"""From a request to what it gives, bit by bit: the same for every protocol, streamed or not."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from presswork.engine.events import Commit, Done, Draft, Event, Reply, TokenLogprob, TokenTrace
from presswork.engine.params import SamplingParams
from presswork.engine.ranking import seed_of
from presswork.errors import ContextLengthError
from presswork.server.registry import Lease
from presswork.text.parsers import ToolCall
from presswork.text.parts import PartReader, Piece
from presswork.text.pieces import until_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be written.

    Args:
        is_chat: reasoning and tool calls are split off.
        wants_drafts: drafts are given out too.
        max_calls: tool calls that are given on, None for all; of a model that calls more the first ones count.
        wants_states: behind every draft, the text as it would be if the canvas stayed as it is.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    is_chat: bool = True
    wants_drafts: bool = False
    wants_states: bool = False
    max_calls: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """The whole text so far, with the present draft behind it; at the end the whole text."""

    text: str


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of more tokens of the text; of a reply without parts, of all that were committed."""

    tokens: list[TokenLogprob]


Bit = Piece | ToolCall | Draft | State | Logprobs | Done


@dataclass(slots=True)
class Written:
    """A whole reply, put together from its bits.

    Args: parts: reasoning, texts and calls in their order, neighbours of a kind joined.
    """

    parts: list[Piece | ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reply: Reply | None = None

    @property
    def finished(self) -> Reply:
        """The engine's reply, once it is there."""
        assert self.reply is not None
        return self.reply

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Piece) and part.kind == "text")

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Piece) and part.kind == "reasoning")

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]

    def add(self, bit: Bit) -> None:
        """Take in one more bit. Mutates self."""
        if isinstance(bit, Piece):
            last = self.parts[-1] if self.parts else None
            if isinstance(last, Piece) and last.kind == bit.kind:
                self.parts[-1] = Piece(bit.kind, last.text + bit.text)
            elif bit.text:
                self.parts.append(bit)
        elif isinstance(bit, ToolCall):
            self.parts.append(bit)
        elif isinstance(bit, Logprobs):
            self.logprobs += bit.tokens
        elif isinstance(bit, Done):
            self.reply = bit.reply


def several(ask: Ask, num: int) -> list[Ask]:
    """The same request so many times, from seeds of their own."""
    return [replace(ask, params=ask.params.changed(seed=seed_of(ask.params.seed, i))) for i in range(num)]


async def bits(lease: Lease, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, Bit], None]:
    """The bits of all replies as they come, each with its request's number; the last of each is its Done.

    Closing it, or being cancelled, cancels the requests. Raises the first error of any.
    """
    if len(asks) == 1:
        async with aclosing(_bits(lease, asks[0])) as found:
            async for bit in found:
                yield 0, bit
        return
    queue: asyncio.Queue[tuple[int, Bit] | BaseException] = asyncio.Queue()

    async def forward(number: int) -> None:
        try:
            async with aclosing(_bits(lease, asks[number])) as found:
                async for bit in found:
                    queue.put_nowait((number, bit))
        except Exception as error:  # noqa: BLE001 - handed to whoever reads
            queue.put_nowait(error)

    tasks = [asyncio.ensure_future(forward(number)) for number in range(len(asks))]
    try:
        num_done = 0
        while num_done < len(asks):
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            num_done += isinstance(found[1], Done)
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_late(
    coming: AsyncGenerator[tuple[int, Bit], None], patience_s: float
) -> AsyncGenerator[tuple[int, Bit] | None, None]:
    """The same bits, with None before the first where that takes longer than so many seconds."""
    async with aclosing(coming):
        first = asyncio.ensure_future(anext(coming))
        try:
            await asyncio.wait({first}, timeout=patience_s)
            if not first.done():
                yield None
            yield await first
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        async for one in coming:
            yield one


async def written(lease: Lease, asks: Sequence[Ask]) -> list[Written]:
    """All replies, whole."""
    found = [Written() for _ in asks]
    async with aclosing(bits(lease, asks)) as coming:
        async for number, bit in coming:
            found[number].add(bit)
    return found


async def _bits(lease: Lease, ask: Ask) -> AsyncGenerator[Bit, None]:
    num_calls = 0
    async with aclosing(_all_bits(lease, ask)) as found:
        async for bit in found:
            num_calls += isinstance(bit, ToolCall)
            if not isinstance(bit, ToolCall) or ask.max_calls is None or num_calls <= ask.max_calls:
                yield bit


async def _all_bits(lease: Lease, ask: Ask) -> AsyncGenerator[Bit, None]:
    reader = _reader(lease, ask)
    events = lease.engine.stream(ask.prompt_ids, ask.params, drafts=ask.wants_drafts)
    found = _plain_bits(events) if reader is None else _parts(events, reader, ask, lease)
    try:
        async for bit in found:
            yield bit
    finally:
        await found.aclose()
        await events.aclose()


async def _plain_bits(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Bit, None]:
    async for event in events:
        if not isinstance(event, Commit):
            yield event
            continue
        if event.logprobs:
            yield Logprobs(event.logprobs)
        if event.text:
            yield Piece("text", event.text)


async def _parts(
    events: AsyncGenerator[Event, None], reader: PartReader, ask: Ask, lease: Lease
) -> AsyncGenerator[Bit, None]:
    text, logprobs = "", list[TokenLogprob]()
    async for event in events:
        if isinstance(event, Draft):
            yield event
            if ask.wants_states:
                coming = until_end(event.token_ids, lease.model.end_ids)[event.num_committed :]
                yield State(text + reader.preview(coming))
            continue
        found = reader.flush() if isinstance(event, Done) else reader.push(event.token_ids)
        places = reader.text_places()
        if isinstance(event, Commit) and event.logprobs:
            logprobs += event.logprobs
            if places:
                yield Logprobs([logprobs[place] for place in places])
        for bit in found:
            text += bit.text if isinstance(bit, Piece) and bit.kind == "text" else ""
            yield bit
        if isinstance(event, Done):
            if ask.wants_states:
                yield State(text)
            yield event


def fitted(params: SamplingParams, num_prompt: int, lease: Lease) -> SamplingParams:
    """The parameters with max_tokens no more than the context has left: agents ask for the most they would take.

    Raises: ContextLengthError.
    """
    room = lease.model.max_context - num_prompt
    if room < 1:
        raise ContextLengthError(num_prompt, lease.model.max_context)
    if params.max_tokens is None or params.max_tokens <= room:
        return params
    return params.changed(max_tokens=room, min_tokens=min(params.min_tokens, room))


def _reader(lease: Lease, ask: Ask) -> PartReader | None:
    tokenizer = lease.model.tokenizer
    if not ask.is_chat or tokenizer is None:
        return None
    return PartReader(tokenizer, ask.params.stop, is_continuation=ask.params.constraint is not None)


async def warm(lease: Lease, prompt_ids: Sequence[int]) -> None:
    """Compute a prompt, so that the next request finds it."""
    params = lease.model.defaults.changed(max_tokens=1, max_denoising_steps=1)
    await written(lease, [Ask(prompt_ids=prompt_ids, params=params, is_chat=False)])


def num_reasoning_tokens(lease: Lease, found: Written) -> int:
    """Tokens that a reply's reasoning has by itself."""
    tokenizer = lease.model.tokenizer
    return len(tokenizer.encode_plain(found.reasoning)) if found.reasoning and tokenizer is not None else 0


def prediction_counts(trace: Sequence[TokenTrace] | None, num_predicted: int) -> tuple[int, int]:
    """(tokens of a prediction that stand in the reply where they were, those that do not)."""
    kept = sum(token.is_kept for token in trace or ())
    return kept, max(0, num_predicted - kept)
