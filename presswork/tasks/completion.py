"""Plain continuations of texts, as every evaluation that goes from left to right needs them."""

from collections.abc import Sequence
from typing import Any

from presswork.engine.borders import cut_after
from presswork.engine.engine import Engine
from presswork.engine.events import Reply
from presswork.text.tokenizer import with_token_texts


def complete(engine: Engine, prefixes: Sequence[str], seeds: Sequence[int], **params: Any) -> list[tuple[str, Reply]]:
    """Write behind prefixes, without a chat template; the token at the border may hold some of a prefix's end.

    Args: seeds: one for each prefix. params: of the requests, fields of SamplingParams.
    Returns: of each (what was written, bytes that are no UTF-8 replaced; the reply).
    Raises: RequestError, UnsupportedError, GenerationError.
    """
    tokenizer = with_token_texts(engine.tokenizer, "continuing a text needs", engine.name)
    cuts = [cut_after(tokenizer, prefix, engine.model.config.vocab_size) for prefix in prefixes]
    requests = []
    try:
        for (ids, border), seed in zip(cuts, seeds, strict=True):
            banned = {} if border.banned is None else {0: border.banned}
            requests.append(engine.submit(ids, engine.defaults.changed(seed=seed, **params), banned=banned))
        replies = [engine.reply(request) for request in requests]
    finally:
        for request in requests:
            engine.cancel(request)
    written = []
    for (_, border), reply in zip(cuts, replies, strict=True):
        parts = b"".join(tokenizer.all_token_bytes[i] for i in reply.token_ids if i < tokenizer.vocab_size)
        written.append((parts[len(border.given) :].decode("utf-8", "replace"), reply))
    return written
