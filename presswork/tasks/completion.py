"""Plain continuations of texts, as every evaluation that goes from left to right needs them."""

from collections.abc import Sequence
from typing import Any

from presswork.engine.borders import cut_after
from presswork.engine.engine import Engine
from presswork.engine.events import Reply
from presswork.engine.ranking import likeliest_of_each, seed_of
from presswork.text.tokenizer import with_token_texts


def complete(
    engine: Engine, prefixes: Sequence[str], seeds: Sequence[int], *, best_of: int = 1, **params: Any
) -> list[tuple[str, Reply]]:
    """Write behind prefixes, without a chat template; the token at the border may hold some of a prefix's end.

    Args:
        seeds: one for each prefix.
        best_of: replies to write for each, as `Engine.generate` takes it.
        params: of the requests, fields of SamplingParams.
    Returns: of each (what was written, bytes that are no UTF-8 replaced; the reply).
    Raises: RequestError, UnsupportedError, GenerationError.
    """
    tokenizer = with_token_texts(engine.tokenizer, "continuing a text needs", engine.name)
    cuts = [cut_after(tokenizer, prefix, engine.model.config.vocab_size) for prefix in prefixes]
    requests = []
    try:
        for (ids, border), seed in zip(cuts, seeds, strict=True):
            banned = {} if border.banned is None else {0: border.banned}
            for number in range(best_of):
                sampling = engine.defaults.changed(**params, seed=seed_of(seed, number))
                requests.append(engine.submit(ids, sampling, banned=banned))
        replies = [engine.reply(request) for request in requests]
    finally:
        for request in requests:
            engine.cancel(request)
    adapters = [engine.defaults.changed(**params).adapter] * len(cuts)
    replies = likeliest_of_each(engine, [ids for ids, _ in cuts], replies, adapters)
    written = []
    for (_, border), reply in zip(cuts, replies, strict=True):
        parts = b"".join(tokenizer.all_token_bytes[i] for i in reply.token_ids if i < tokenizer.vocab_size)
        written.append((parts[len(border.given) :].decode("utf-8", "replace"), reply))
    return written
