"""The engine people use: text in, text out, one model, any number of callers.

L canvas, V vocabulary.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from jaxtyping import Float
from torch import Tensor

from presswork.config import require
from presswork.engine.adapters import AdapterTable, LoadedAdapter
from presswork.engine.decide import DecideReply, Style, decide
from presswork.engine.edit import EditReply, edit
from presswork.engine.events import Commit, Done, Draft, Reply, TokenLogprob
from presswork.engine.fill import FillReply, fill
from presswork.engine.gaps import GapsReply, fill_gaps
from presswork.engine.intake import Intake
from presswork.engine.loop import EngineLoop
from presswork.engine.params import Mode, SamplingParams, defaults_from_checkpoint, each_params
from presswork.engine.prefix import PrefixCache
from presswork.engine.probe import canvas_logits, causal_logprobs
from presswork.engine.prompts import Messages, PromptReader
from presswork.engine.ranking import check_best_of, likeliest_of_each, seed_of
from presswork.engine.request import Request
from presswork.engine.runner import Runner
from presswork.engine.scheduler import Scheduler
from presswork.engine.streams import EventStream
from presswork.errors import EngineClosedError, NonFiniteError, RequestError
from presswork.grammar.languages import TextLanguage
from presswork.models.transformer import Transformer
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.weights.lora import padded
from presswork.weights.peft_files import load_adapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of one engine.

    Args:
        max_running: requests that share passes; further ones wait.
        max_waiting: requests that may wait; one more is refused.
        prefill_chunk: prompt tokens of one request a pass takes, at most.
        max_rows: rows of one pass, at most (one request may exceed it alone).
        prefix_cache_bytes: memory for reusable prefixes; 0 turns reuse off.
        max_context: positions of a sequence; None is the checkpoint's.
        constraint_folder: where prepared constraints are kept between processes; None keeps them in memory only.
    """

    max_running: int = 32
    max_waiting: int = 1024
    prefill_chunk: int = 256
    max_rows: int = 8192
    prefix_cache_bytes: int = 1 << 30
    max_context: int | None = None
    constraint_folder: Path | None = Path("~/.cache/presswork/constraints")

    def __post_init__(self) -> None:
        for name in ("max_running", "max_waiting", "prefill_chunk", "max_rows"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.prefix_cache_bytes >= 0, f"prefix_cache_bytes must not be negative, got {self.prefix_cache_bytes}")
        require(
            self.max_context is None or self.max_context >= 1, f"max_context must be at least 1, got {self.max_context}"
        )


class Engine:
    """Generates with one model. Safe to call from several threads: whoever waits for a reply drives the passes.

    Load one with `presswork.load`. Every request ends in exactly one reply or one error.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        generation_config: Mapping[str, Any] | None = None,
        config: EngineConfig | None = None,
        name: str = "model",
        mode: Mode = "diffusion",
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.name = name
        self._prompts = PromptReader(tokenizer, template, name)
        self.config = config or EngineConfig()
        known = model.config.max_position_embeddings
        self.max_context = self.config.max_context or known
        require(self.max_context <= known, f"max_context must be at most the model's {known}, got {self.max_context}")
        generation_config = dict(generation_config or {})
        self.defaults = defaults_from_checkpoint(generation_config).changed(mode=mode)
        self.prefix = PrefixCache(self.config.prefix_cache_bytes)
        self._adapters = AdapterTable()
        self._intake = Intake(
            model.config, tokenizer, self._adapters, generation_config, name=name, max_context=self.max_context,
            constraint_folder=self.config.constraint_folder,
        )  # fmt: skip
        self._runner = Runner(model)
        self._scheduler = Scheduler(
            model.config,
            self.prefix,
            max_running=self.config.max_running,
            max_waiting=self.config.max_waiting,
            prefill_chunk=self.config.prefill_chunk,
            max_rows=self.config.max_rows,
            max_context=self.max_context,
        )
        self._loop = EngineLoop(self._runner, self._scheduler, self.prefix)
        # Reentrant: the garbage collector may close an abandoned stream in the thread that is in a pass.
        self._lock, self._is_stepping = threading.RLock(), False
        self._closed = False

    # Generating

    @overload
    def generate(self, prompt: str, *, raw: bool = ..., best_of: int = ..., **params: Any) -> Reply: ...
    @overload
    def generate(self, prompt: Sequence[str], *, raw: bool = ..., best_of: int = ..., **params: Any) -> list[Reply]: ...
    @overload
    def generate(self, *, prompt_token_ids: Sequence[int], best_of: int = ..., **params: Any) -> Reply: ...
    @overload
    def generate(
        self, *, prompt_token_ids: Sequence[Sequence[int]], best_of: int = ..., **params: Any
    ) -> list[Reply]: ...

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        raw: bool = False,
        best_of: int = 1,
        **params: Any,
    ) -> Reply | list[Reply]:
        """Complete one prompt or several; several share passes and each equals its solo run.

        Args:
            prompt: a text or a list of texts. Where the checkpoint has a chat template, a text is one user turn.
            prompt_token_ids: token ids instead, one prompt or a list of them; taken as they are.
            raw: encode the text as it stands, without the chat template.
            best_of: replies to write for each prompt, from seeds of their own; the one whose tokens the causal mode
                finds likeliest on average is given back.
            params: fields of SamplingParams; the rest are the checkpoint's defaults. With several prompts `seed`
                and `pins` may be lists, one for each.
        Raises:
            RequestError: a malformed prompt or parameter. GenerationError: a request failed while it ran.
        """
        prompts, is_single = self._prompts.read(prompt, prompt_token_ids, raw)
        each = each_params(self.defaults, len(prompts), is_single, params)
        check_best_of(best_of)
        tries = [sampling.changed(seed=seed_of(sampling.seed, i)) for sampling in each for i in range(best_of)]
        repeated = [ids for ids in prompts for _ in range(best_of)]
        replies = self._replies(repeated, tries)
        replies = likeliest_of_each(self, prompts, replies, [sampling.adapter for sampling in each])
        return replies[0] if is_single else replies

    def _replies(self, prompts: Sequence[Sequence[int]], each: Sequence[SamplingParams]) -> list[Reply]:
        """The replies to several requests that share passes."""
        requests: list[Request] = []
        try:
            for ids, sampling in zip(prompts, each, strict=True):
                # Our own queue is no reason to refuse our own list.
                while requests and self.num_waiting >= self.config.max_waiting:
                    self.step()
                requests.append(self.submit(ids, sampling))
            return [self.reply(request) for request in requests]
        finally:
            for request in requests:
                self.cancel(request)

    def stream(
        self,
        prompt: str | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        raw: bool = False,
        drafts: bool = False,
        **params: Any,
    ) -> EventStream:
        """One prompt's events as they happen; closing the iterator cancels the request.

        Args: as generate; drafts: also yield a Draft after every denoise step.
        """
        sampling = self.defaults.changed(**params)
        prompts, is_single = self._prompts.read(prompt, prompt_token_ids, raw)
        if not is_single:
            raise RequestError("stream takes one prompt, got several; use generate or one stream each")
        return self.events(self.submit(prompts[0], sampling, wants_drafts=drafts))

    def chat(
        self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None, **params: Any,
    ) -> Reply:  # fmt: skip
        """Answer a conversation; reasoning and tool calls are split off the text.

        Args:
            messages: role and content of each turn. tools: function declarations the template understands.
            template_variables: further values for the template, such as enable_thinking.
        Raises: RequestError, UnsupportedError (no chat template), TemplateError.
        """
        ids = self.encode_chat(messages, tools=tools, template_variables=template_variables)
        return self.parse_chat(self.generate(prompt_token_ids=ids, **params))

    def parse_chat(self, reply: Reply) -> Reply:
        """The reply with reasoning and tool calls taken out of its text."""
        return self._prompts.parse(reply)

    def encode_prompt(self, text: str, *, raw: bool = False) -> list[int]:
        """Token ids of a text prompt: one user turn where there is a chat template, unless raw."""
        return self._prompts.encode(text, raw=raw)

    def encode_chat(
        self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[int]:  # fmt: skip
        """Prompt ids of a conversation, through the checkpoint's own chat template."""
        return self._prompts.chat(messages, tools, template_variables)

    def fill(
        self, prefix: str, suffix: str, *, max_tokens: int | None = None, lengths: Sequence[int] | None = None,
        **params: Any,
    ) -> FillReply:  # fmt: skip
        """Fill the gap between two texts; both come back as they are, byte for byte. No chat template is applied.

        Args:
            max_tokens: of the gap, at most; None is half a canvas. lengths: gap lengths to try, instead.
            params: fields of SamplingParams, but for those that the gap decides.
        Raises: RequestError, UnsupportedError, GenerationError.
        """
        return fill(self, prefix, suffix, max_tokens=max_tokens, lengths=lengths, **params)

    def fill_gaps(
        self, fixed: Sequence[str], *, max_tokens: int | None = None, gap: TextLanguage | None = None,
        indent: int = 0, num_candidates: int | None = None, **params: Any,
    ) -> GapsReply:  # fmt: skip
        """Fill the gaps between texts, which all come back byte for byte; each gap takes what it needs.

        One gap that fits a canvas is written as `fill` does, at several lengths. Where there are several gaps, or one
        is longer than a canvas or kept to a language, the text behind each floats.

        Args:
            fixed: the texts around the gaps, the first and last possibly empty.
            max_tokens: of all gaps together, at most; None is half a canvas for each.
            gap: what each gap may hold, such as Regex; None is any text.
            indent: spaces that every line a gap begins has at least, unless it is blank; for code.
            num_candidates: ways to fill them; the one the causal mode finds likeliest comes first. None is up to 8
                lengths of a single gap, and 4 of gaps that float; 1 lets a single gap float too.
            params: fields of SamplingParams, but for those that the gaps decide.
        Raises: RequestError, UnsupportedError, GenerationError.
        """
        return fill_gaps(
            self, fixed, max_tokens=max_tokens, gap=gap, indent=indent, num_candidates=num_candidates, **params
        )

    def edit(
        self, text: str, instruction: str = "", *, spans: Sequence[tuple[int, int]] | None = None,
        strength: float = 0.5, max_changes: int | None = None, num_candidates: int = 4, **params: Any,
    ) -> EditReply:  # fmt: skip
        """Change parts of a text in place, starting from what stands there; outside of them nothing changes.

        Args:
            instruction: what to do, told in a user turn before the text; needs a chat template.
            spans: characters (start, stop) that may change; None is the whole text.
            strength: 0 to 1, the share of a part's tokens that starts as noise. 0 without an instruction changes
                nothing.
            max_changes: tokens that may change, each for one other; None lets parts grow and shrink.
            num_candidates: ways to write each stretch; the one the causal mode finds likeliest is taken.
            params: fields of SamplingParams, but for those that the text decides.
        Raises: RequestError, UnsupportedError, GenerationError.
        """
        return edit(
            self, text, instruction, spans=spans, strength=strength, max_changes=max_changes,
            num_candidates=num_candidates, **params,
        )  # fmt: skip

    def decide(
        self, state: object, questions: Mapping[str, Any], *, style: Style = "letters", steps: int = 2,
        calibrate: bool = False, seed: int = 0, adapter: str | None = None,
    ) -> DecideReply:  # fmt: skip
        """Answer questions with given options about a state, from short canvases in one or two denoise passes.

        Args:
            state: a text, or JSON. questions: {name: {"type", "instructions", "criteria"}}; a "choice" has criteria
                {option: description or None}, a "score" a list of 2 to 10 level descriptions, lowest first, a "noul"
                (yes or no) possibly {"true": ..., "false": ...}.
            style: "letters" lists the options before the canvas and reads a letter for each question; "texts" reads
                each option as it would be written, which asks less of a model.
            steps: denoise passes, 1 or 2.
            calibrate: divide each option's probability by what it is without a state, at twice the work.
            seed: of the noise the answers start from. adapter: name of a loaded adapter.
        Raises: RequestError, UnsupportedError.
        """
        return decide(self, state, questions, style=style, steps=steps, calibrate=calibrate, seed=seed, adapter=adapter)

    # Requests one by one, for servers and schedulers of their own

    def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, *, wants_drafts: bool = False,
        banned: Mapping[int, Tensor] | None = None,
    ) -> Request:  # fmt: skip
        """Queue a prompt. Raises RequestError, QueueFullError, EngineClosedError; nothing has run yet.

        Args: as stream; banned: token ids ruled out at single positions of the generated text.
        """
        if self._closed:
            raise EngineClosedError("the engine is closed; load the model again")
        request = self._intake.request(prompt_ids, params or self.defaults, wants_drafts, banned or {})
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine is closed; load the model again")
            self._scheduler.add(request)
        return request

    def is_prepared(self, params: SamplingParams) -> bool:
        """Whether a request with these parameters can be submitted without preparing a language first."""
        return self._intake.is_prepared(params)

    def step(self) -> bool:
        """One model pass over all running requests. Returns whether there is more to do."""
        with self._lock:
            self._is_stepping = True
            try:
                return self._loop.step()
            finally:
                self._is_stepping = False

    def events(self, request: Request) -> EventStream:
        """A submitted request's events, driving passes while there are none. Closing or dropping it cancels it."""
        return EventStream(self, request)

    def wait(self, request: Request) -> None:
        """Return once the request has an event to read or has ended, driving one pass if it takes one."""
        with self._lock:
            if not request.events and not request.ended:
                self.step()

    def cancel(self, request: Request) -> None:
        """Drop a request; what it holds is freed before the next pass."""
        if request.ended:
            return
        request.cancelled = True
        with self._lock:
            if not self._is_stepping:
                self._scheduler.drop_cancelled()

    def close(self) -> None:
        """Refuse new requests and end the ones in flight with EngineClosedError."""
        with self._lock:
            self._closed = True
            for request in (*self._scheduler.waiting, *self._scheduler.running):
                request.fail(EngineClosedError("the engine was closed while the request ran"))
                self._scheduler.retire(request)
            self._scheduler.waiting.clear()
            self.prefix.clear()

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return self._intake.end_ids

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def num_cache_bytes(self) -> int:
        """Bytes of keys and values that running requests hold, those they share counted once."""
        caches = [request.cache for request in list(self._scheduler.running)]
        return sum({k: v for cache in caches if cache is not None for k, v in cache.buffers().items()}.values())

    # Adapters

    @property
    def adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return self._adapters.names

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Read an adapter that peft or `presswork train` saved; requests use it as `adapter=name` from now on.

        Requests that run keep what they started with, also where the name was another adapter's.

        Raises:
            RequestError: a name that cannot be one. CheckpointError: no adapter for this model in the folder.
        """
        adapter = padded(load_adapter(folder, self.model.config)).to(self.model.head.device, self.model.dtype)
        with self._lock:
            self._adapters.add(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that use it end as they would have. Raises RequestError for an unknown name."""
        with self._lock:
            self._adapters.remove(name)

    # Looking at the model

    def score(
        self, prompt: str | Sequence[int], completion: str | Sequence[int], *, adapter: str | None = None
    ) -> list[float]:
        """Causal log-probability of each completion token given all before it, in nats; their sum is the likelihood.

        Args:
            prompt, completion: texts, encoded apart (the prompt with special tokens, nothing templated), or token ids.
            adapter: name of a loaded adapter; None is the model as it is.
        """
        under = self._adapters.find(adapter)
        prompt_ids = self._intake.checked_ids(self._prompts.ids(prompt, add_special_tokens=True))
        completion_ids = self._intake.checked_ids(self._prompts.ids(completion, add_special_tokens=False))
        if not prompt_ids or not completion_ids:
            raise RequestError("score needs at least one prompt token and one completion token")
        return [one.logprob for one in self._causal(prompt_ids + completion_ids, len(prompt_ids), under, 0)]

    def prompt_logprobs(
        self, prompt: str | Sequence[int], *, num_top: int = 0, adapter: str | None = None
    ) -> list[TokenLogprob]:
        """Causal log-probability of each token of a prompt given all before it; the first has none, and is left out.

        Args:
            prompt: a text, encoded with special tokens, nothing templated; or token ids.
            num_top: most likely tokens that are told beside each, 20 at most.
            adapter: name of a loaded adapter; None is the model as it is.
        """
        under = self._adapters.find(adapter)
        ids = self._intake.checked_ids(self._prompts.ids(prompt, add_special_tokens=True))
        if type(num_top) is not int or not 0 <= num_top <= 20:
            raise RequestError(f"num_top must be an integer in 0..20, got {num_top!r}")
        return self._causal(ids, 1, under, num_top)

    def _causal(self, ids: list[int], num_prompt: int, under: LoadedAdapter, num_top: int) -> list[TokenLogprob]:
        self._intake.check_room(len(ids))
        with self._lock:
            cache = self.prefix.longest(ids, num_prompt - 1, under.number)
        found = causal_logprobs(
            self._runner, self._lock, ids, num_prompt, self.config.prefill_chunk, under.adapter, cache, num_top
        )
        if any(one.logprob != one.logprob for one in found):
            raise NonFiniteError("the model produced NaN or infinite logits; check the weights")
        return found

    def canvas_logits(
        self,
        prompt_token_ids: Sequence[int],
        canvas_token_ids: Sequence[int],
        self_conditioning_logits: Float[Tensor, "L V"] | None = None,
        *,
        adapter: str | None = None,
    ) -> Float[Tensor, "L V"]:
        """Float32 logits of one canvas after a prompt, softcapped, for parity checks and research.

        The only place that forms a [L, V] tensor.

        Args:
            self_conditioning_logits: the previous step's temperature-divided logits; None is a first step.
            adapter: name of a loaded adapter; None is the model as it is.
        """
        under = self._adapters.find(adapter)
        prompt, canvas_ids = self._intake.checked_ids(prompt_token_ids), self._intake.checked_ids(canvas_token_ids)
        if not canvas_ids:
            raise RequestError("canvas_token_ids must hold at least one token, got none")
        self._intake.check_room(len(prompt) + len(canvas_ids))
        wanted = (len(canvas_ids), self.model.config.vocab_size)
        if self_conditioning_logits is not None and tuple(self_conditioning_logits.shape) != wanted:
            raise RequestError(
                f"self_conditioning_logits must be {list(wanted)}, got {list(self_conditioning_logits.shape)}"
            )
        return canvas_logits(
            self._runner, self._lock, prompt, canvas_ids, self_conditioning_logits, self.config.prefill_chunk,
            under.adapter,
        )  # fmt: skip

    def reply(self, request: Request) -> Reply:
        """A submitted request's reply, driving passes until there is one. Raises what ended it without one."""
        for event in self.events(request):
            if isinstance(event, Done):
                return event.reply
        raise AssertionError("a request ends in a reply or an error")


__all__ = ["Commit", "Draft", "Engine", "EngineConfig", "Messages"]
