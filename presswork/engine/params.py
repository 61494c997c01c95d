"""What a caller may ask of one request, checked before any work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from presswork.diffusion.accept import AcceptRule, ConfidenceRule, EntropyBoundRule
from presswork.diffusion.sampler import DiffusionRules
from presswork.diffusion.schedule import MIN_TEMPERATURE, TemperatureSchedule
from presswork.diffusion.stopping import StableAndConfidentRule
from presswork.errors import ConfigError, RequestError
from presswork.grammar.languages import Language

Mode = Literal["diffusion", "ar"]

CHECKPOINT_FIELDS = (
    "max_denoising_steps", "t_min", "t_max", "entropy_bound", "stability_threshold", "confidence_threshold",
)  # fmt: skip
"""What a checkpoint may have its own defaults of."""

_MAX_ID = 2**31 - 1
_MIN_PENALTY = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request.

    Args:
        mode: "diffusion" writes canvases; "ar" writes one token at a time with the same weights.
        max_tokens: exact upper bound of generated tokens; None is what the context has left.
        min_tokens: end tokens and stop strings are ruled out before this many tokens.
        seed: 64-bit; the same request with the same seed gives the same text.
        temperature: scales the schedule (diffusion) or is the temperature (ar). At 0 every sample is the arg-max; the
            schedule then still shapes entropies and self-conditioning.
        top_k: sample among the k most likely tokens; 0 is off.
        top_p: sample among the fewest tokens that hold this probability; 1 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before; 1 is off.
        presence_penalty: taken once from the logits of tokens that were written before. Of a canvas's own tokens it
            knows nothing: only those of earlier canvases count.
        frequency_penalty: taken from them as often as they were written.
        logit_bias: a mapping of token ids to what is added to their logits; kept as pairs in order.
        allowed_token_ids: only these are written, and what ends the text; none given is all.
        banned_token_ids: these are never written.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: further token ids that end it, beside the checkpoint's end tokens.
        ignore_eos: treat the checkpoint's end tokens as any other.
        max_denoising_steps: step budget of each canvas.
        t_min, t_max: the temperature schedule of a canvas.
        entropy_bound: acceptance budget of a step, in nats.
        accept_threshold: accept by confidence instead of by entropy; None keeps the entropy bound.
        stability_threshold: arg-max canvases that must agree before an early stop; None turns early stop off.
        confidence_threshold: mean entropy below which a stable canvas stops; None turns early stop off.
        commit_after: steps without a change after which the beginning of a canvas becomes text, as far as none of its
            positions is above entropy_bound; it is held from then on while the rest goes on, and an end in it ends the
            reply. None commits canvases when all of them has settled.
        pins: a mapping of positions, counted from the first generated token, to the token ids they are held to; kept
            as pairs in order. End tokens and stop strings are ruled out before the last of them.
        start: what the canvases start from in place of noise: a text, or token ids from the first generated one on.
        start_noise: share of the start that gives way to noise, drawn token by token; 1 is all of it. A canvas that
            starts from a text skips that part of its steps which would have undone more noise.
        canvas_length: positions denoised together; None is the checkpoint's, or less where less is left to write.
        constraint: the language the text is kept to, such as Regex or JsonSchema; None leaves it free.
        logprobs: None, or how many alternatives to report beside each token's log-probability.
        trace: report how each token of a canvas came about.
        max_time: seconds from submission after which a request takes what it has: its canvas becomes text after the
            step it is in, and the reply ends. What is kept to a constraint or has pins is still written to its end, a
            step for each further canvas. None is no limit. Such a reply depends on how fast it was written, not on the
            seed alone.
        adapter: name of a loaded adapter to write with; None is the model as it is.
    """

    mode: Mode = "diffusion"
    max_tokens: int | None = None
    min_tokens: int = 0
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_denoising_steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    accept_threshold: float | None = None
    stability_threshold: int | None = 1
    confidence_threshold: float | None = 0.005
    commit_after: int | None = None
    pins: tuple[tuple[int, int], ...] = ()
    start: str | tuple[int, ...] = ()
    start_noise: float = 0.5
    canvas_length: int | None = None
    constraint: Language | None = None
    logprobs: int | None = None
    trace: bool = False
    max_time: float | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("diffusion", "ar"):
            raise RequestError(f"mode must be 'diffusion' or 'ar', got {self.mode!r}")
        _check_count("max_tokens", self.max_tokens, 1, optional=True)
        _check_count("min_tokens", self.min_tokens, 0)
        _check_count("seed", self.seed, 0, 2**64 - 1)
        _check_count("top_k", self.top_k, 0, _MAX_ID)
        _check_count("max_denoising_steps", self.max_denoising_steps, 1)
        _check_count("canvas_length", self.canvas_length, 1, optional=True)
        _check_count("commit_after", self.commit_after, 1, _MAX_ID, optional=True)
        _check_count("logprobs", self.logprobs, 0, 20, optional=True)
        _check_real("temperature", self.temperature, 0.0, 100.0)
        _check_real("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_real("repetition_penalty", self.repetition_penalty, _MIN_PENALTY, 100.0)
        _check_real("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_real("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        if self.max_time is not None:
            _check_real("max_time", self.max_time, 0.0, 1e9)
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise RequestError(f"adapter must be the name of a loaded adapter, got {self.adapter!r}")
        object.__setattr__(self, "stop", _strings(self.stop))
        for name in ("stop_token_ids", "allowed_token_ids", "banned_token_ids"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        object.__setattr__(self, "pins", _pairs(self.pins))
        _check_real("start_noise", self.start_noise, 0.0, 1.0)
        if not isinstance(self.start, str):
            object.__setattr__(self, "start", _token_ids("start", self.start))
        if self.pins and self.max_tokens is not None and self.pins[-1][0] >= self.max_tokens:
            raise RequestError(
                f"pins reach position {self.pins[-1][0]}, but max_tokens is {self.max_tokens}; positions count from 0"
            )
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise RequestError(f"temperature must be 0 or at least {MIN_TEMPERATURE:g}, got {self.temperature!r}")
        if self.constraint is not None:
            self._check_constraint()
        self._check_ar()
        self.rules()

    def _check_ar(self) -> None:
        if self.mode != "ar":
            return
        for name in ("pins", "start"):
            if getattr(self, name):
                raise RequestError(f"mode 'ar' has no canvas: leave out {name}, or use mode 'diffusion'")
        for name in ("canvas_length", "accept_threshold", "commit_after"):
            if getattr(self, name) is not None:
                raise RequestError(f"mode 'ar' has no canvas: {name} must be none, got {getattr(self, name)!r}")

    def _check_constraint(self) -> None:
        if not isinstance(self.constraint, Language):
            got = type(self.constraint).__name__
            raise RequestError(
                f"constraint must be a Regex, Choices, JsonSchema, ToolCalls, Either, Both or Without, got {got}"
            )
        # The constraint decides where the text ends; a filter of tokens could leave none of its texts.
        neutral = {"min_tokens": 0, "top_k": 0, "top_p": 1.0, "ignore_eos": False}
        for name, value in neutral.items():
            if getattr(self, name) != value:
                raise RequestError(f"{name} cannot be kept together with a constraint; leave one of them out")

    def rules(self) -> DiffusionRules:
        """The schedule, accept rule and stop rule these parameters stand for."""
        try:
            accept: AcceptRule
            if self.accept_threshold is None:
                accept = EntropyBoundRule(self.entropy_bound)
            else:
                accept = ConfidenceRule(self.accept_threshold)
            schedule = TemperatureSchedule(num_steps=self.max_denoising_steps, t_min=self.t_min, t_max=self.t_max)
            stop = None
            if self.stability_threshold is not None and self.confidence_threshold is not None:
                stop = StableAndConfidentRule(
                    stability_threshold=self.stability_threshold, confidence_threshold=self.confidence_threshold
                )
        except (ConfigError, TypeError) as error:
            raise RequestError(str(error)) from error
        return DiffusionRules(schedule=schedule, accept=accept, stop=stop)

    def changed(self, **changes: Any) -> "SamplingParams":
        """These parameters with some replaced. Raises RequestError for an unknown name."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise RequestError(f"unknown sampling parameter {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return replace(self, **changes)


def defaults_from_checkpoint(generation_config: dict[str, Any]) -> SamplingParams:
    """The checkpoint's own defaults.

    `max_new_tokens` is left out on purpose: the released value of 256 would cut the answers of clients that send none.
    """
    found = {name: generation_config[name] for name in CHECKPOINT_FIELDS if generation_config.get(name) is not None}
    return SamplingParams(**found)


def refuse_decided(who: str, decided: Sequence[str], params: Mapping[str, Any]) -> None:
    """Raises RequestError where a caller gives a parameter that `who` sets itself."""
    given = [name for name in decided if name in params]
    if given:
        raise RequestError(f"{who} decides {given[0]} itself; leave it out")


def each_params(defaults: SamplingParams, num: int, is_single: bool, params: Mapping[str, Any]) -> list[SamplingParams]:
    """The parameters of each prompt; `seed` and `pins` may be a list, one for each of several.

    Raises: RequestError for a list of another length, and what SamplingParams refuses.
    """
    listed = {name: params[name] for name in ("seed", "pins") if isinstance(params.get(name), Sequence)}
    if is_single or not listed:
        return [defaults.changed(**params)] * num
    for name, values in listed.items():
        if len(values) != num:
            one = "number" if name == "seed" else "mapping"
            raise RequestError(f"{name} has {len(values)} values for {num} prompts; give one for each, or one {one}")
    return [defaults.changed(**{**params, **{name: values[i] for name, values in listed.items()}}) for i in range(num)]


def _check_count(name: str, value: object, low: int, high: int | None = None, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    wanted = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        raise RequestError(f"{name} must be {wanted}{' or none' if optional else ''}, got {value!r}")


def _check_real(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not (low <= number <= high) or (open_low and number == low):
        bracket = "(" if open_low else "["
        raise RequestError(f"{name} must be a number in {bracket}{low:g}, {high:g}], got {value!r}")


def _strings(value: object) -> tuple[str, ...]:
    listed = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    strings = tuple(text for text in listed if isinstance(text, str) and text)
    if len(strings) < len(listed):
        raise RequestError(f"stop must be one or more non-empty strings, got {value!r}")
    return strings


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be a list of token ids, got {value!r}")
    ids = tuple(value)
    for token in ids:
        _check_count(name, token, 0, _MAX_ID)
    return ids


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """Tokens and what is added to their logits, in order of ids."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise RequestError(f"logit_bias must map token ids to numbers, such as {{17: -5.0}}; got {value!r}")
    for token, bias in pairs:
        _check_count("a token id of logit_bias", token, 0, _MAX_ID)
        _check_real(f"the bias of token {token}", bias, -1000.0, 1000.0)
    if len({token for token, _ in pairs}) < len(pairs):
        raise RequestError(f"logit_bias must name each token once, got {value!r}")
    return tuple(sorted((token, float(bias)) for token, bias in pairs))


def _pairs(value: object) -> tuple[tuple[int, int], ...]:
    """Positions and tokens of pins, in order of position."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, Sequence) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise RequestError(f"pins must map positions to token ids, such as {{0: 17}}; got {value!r}")
    for position, token in pairs:
        _check_count("a position of pins", position, 0)
        _check_count(f"the token pinned at position {position}", token, 0, _MAX_ID)
    if len({position for position, _ in pairs}) < len(pairs):
        raise RequestError(f"pins must name each position once, got {value!r}")
    return tuple(sorted(pairs))
