"""From a prompt and parameters to a request: every check that can be made before any work."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from presswork.config import ModelConfig
from presswork.engine.adapters import AdapterTable
from presswork.engine.constraints import ConstraintState, ConstraintTable, check_room
from presswork.engine.output import OutputText
from presswork.engine.params import SamplingParams
from presswork.engine.pins import with_ends_held_off
from presswork.engine.request import Request
from presswork.errors import ContextLengthError, RequestError, UnsupportedError
from presswork.text.tokenizer import Tokenizer


class Intake:
    """Makes requests for one model, or says why it cannot."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer | None, adapters: AdapterTable,
        generation_config: Mapping[str, Any], *, name: str, max_context: int, constraint_folder: Path | None,
    ):  # fmt: skip
        self._config, self._tokenizer, self._adapters = config, tokenizer, adapters
        self._name, self._max_context = name, max_context
        ends = _end_ids(generation_config, config.eos_token_id)
        self.end_ids = frozenset(token for token in ends if token < config.vocab_size)
        pad = generation_config.get("pad_token_id")
        self._pad_id = pad if isinstance(pad, int) and 0 <= pad < config.vocab_size else None
        folder = None if constraint_folder is None else constraint_folder.expanduser()
        self._constraints = ConstraintTable(tokenizer, config.vocab_size, name, folder, self.end_ids)

    def request(
        self, prompt_ids: Sequence[int], params: SamplingParams, wants_drafts: bool, banned: Mapping[int, Tensor]
    ) -> Request:
        """A request that may run. Raises RequestError; args as Engine.submit."""
        ids = self.checked_ids(prompt_ids)
        max_tokens = self._max_tokens(len(ids), params)
        adapter = self._adapters.find(params.adapter)
        self._check_mode(ids, params, wants_drafts)
        vocab = self._config.vocab_size
        for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
            unknown = [token for token in getattr(params, name) if token >= vocab]
            if unknown:
                raise RequestError(f"{name} must lie in 0..{vocab - 1}, got {unknown[0]}")
        unknown = [token for token, _ in params.logit_bias if token >= vocab]
        if unknown:
            raise RequestError(f"logit_bias must name tokens in 0..{vocab - 1}, got {unknown[0]}")
        ends = self._ends(params)
        params = with_ends_held_off(params, ends, max_tokens, vocab)
        never = _never(params, ends, vocab)
        return Request(
            prompt_ids=ids,
            params=params,
            max_tokens=max_tokens,
            output=OutputText(self._tokenizer, params, ends, max_tokens),
            end_ids=ends,
            wants_drafts=wants_drafts,
            adapter=adapter,
            banned=banned,
            never=never,
            start_ids=self._start_ids(params),
            constraint=self._constraint(params, ends, max_tokens, never),
        )

    def is_prepared(self, params: SamplingParams) -> bool:
        """Whether the language that these parameters keep to, if any, is ready for use."""
        language = params.constraint
        return language is None or self._constraints.is_prepared(language, self._ends(params), self._pad_id)

    def _ends(self, params: SamplingParams) -> frozenset[int]:
        return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.end_ids)

    def checked_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids of this model, as a list. Raises RequestError."""
        vocab = self._config.vocab_size
        for position, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise RequestError(f"token id {token!r} at position {position} is not an integer in 0..{vocab - 1}")
        return list(ids)

    def check_room(self, num: int) -> None:
        """Raises RequestError where so many tokens do not fit the context."""
        if num > self._max_context:
            raise RequestError(f"{num} tokens do not fit the context of {self._max_context}; shorten the text")

    def _check_mode(self, ids: Sequence[int], params: SamplingParams, wants_drafts: bool) -> None:
        if params.mode == "ar" and not ids:
            raise RequestError("mode 'ar' needs at least one prompt token, got none; start from the bos token")
        if params.mode == "ar" and wants_drafts:
            raise RequestError("mode 'ar' has no drafts; ask for them in mode 'diffusion'")
        if params.stop and self._tokenizer is None:
            raise UnsupportedError("stop strings need a tokenizer, and this model has none; use stop_token_ids")
        left = self._max_context - len(ids)
        if params.canvas_length is not None and params.canvas_length > left:
            raise RequestError(
                f"canvas_length is {params.canvas_length}, but the prompt's {len(ids)} tokens leave "
                f"{left} of the context of {self._max_context}; lower canvas_length"
            )

    def _max_tokens(self, num_prompt: int, params: SamplingParams) -> int:
        left = self._max_context - num_prompt
        if left < 1:
            raise ContextLengthError(num_prompt, self._max_context)
        if params.max_tokens is None:
            return left
        if params.max_tokens > left:
            raise RequestError(
                f"max_tokens is {params.max_tokens}, but the prompt's {num_prompt} tokens leave {left} of the context "
                f"of {self._max_context}; lower max_tokens or shorten the prompt"
            )
        return params.max_tokens

    def _start_ids(self, params: SamplingParams) -> list[int]:
        if not isinstance(params.start, str):
            return self.checked_ids(params.start)
        if self._tokenizer is None:
            raise UnsupportedError(f"model {self._name!r} has no tokenizer; give start as token ids")
        return self._tokenizer.encode(params.start, add_special_tokens=False)

    def _constraint(
        self, params: SamplingParams, ends: frozenset[int], max_tokens: int, never: Tensor
    ) -> ConstraintState | None:
        if params.constraint is None:
            return None
        if not ends:
            raise UnsupportedError(f"a constraint needs an end token, and model {self._name!r} has none")
        state = ConstraintState(constraint=self._constraints.find(params.constraint, ends, self._pad_id, never.numpy()))
        check_room(state, max_tokens, dict(params.pins))
        return state


def _end_ids(generation_config: Mapping[str, Any], fallback: int) -> frozenset[int]:
    """generation_config's list is longer than the model config's, and is the one to use."""
    found = generation_config.get("eos_token_id")
    if found is None:
        return frozenset({fallback})
    return frozenset({found} if isinstance(found, int) else found)


def _never(params: SamplingParams, ends: AbstractSet[int], vocab_size: int) -> Tensor:
    """The token ids that a request rules out everywhere, ascending. Raises RequestError where its pins are among them.

    What ends the text is written all the same where only the tokens of the text are named.
    """
    if not params.allowed_token_ids:
        never = torch.tensor(sorted(set(params.banned_token_ids)), dtype=torch.int64)
    else:
        is_ruled_out = torch.ones(vocab_size, dtype=torch.bool)
        is_ruled_out[list({*params.allowed_token_ids, *ends})] = False
        is_ruled_out[list(params.banned_token_ids)] = True
        never = is_ruled_out.nonzero()[:, 0]
    if len(never) == vocab_size:
        raise RequestError("allowed_token_ids and banned_token_ids leave no token to write; allow some")
    pinned = [token for _, token in params.pins if (never == token).any()]
    if pinned:
        raise RequestError(f"pins hold token {pinned[0]}, which may not be written; allow it, or leave out the pin")
    return never
