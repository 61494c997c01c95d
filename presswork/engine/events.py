"""What a request tells the outside: drafts while a canvas settles, commits of final text, and one end."""

from dataclasses import dataclass, field
from typing import Literal

from presswork.text.parsers import ToolCall

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One committed token's log-probability under the untempered model at the step that committed it.

    Args:
        entropy: of its position in that step, in nats, under the step's temperature.
        settled_step: denoise step (1, 2, ...) since which the position's arg-max had not changed; 1 in ar mode.
        num_steps: denoise steps its canvas had taken by then; 1 in ar mode.
        top: the most likely tokens and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    entropy: float
    settled_step: int
    num_steps: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """How one committed token of a canvas came about.

    Args:
        settled_step: denoise step (1, 2, ...) since which the position's arg-max had not changed.
        num_steps: denoise steps its canvas had taken when it was committed.
        entropy: of its position in that step, in nats, under the step's temperature.
        is_pinned: it was held there.
        start_id: the token its position started from, None where it started from noise alone.
    """

    token_id: int
    settled_step: int
    num_steps: int
    entropy: float
    is_pinned: bool
    start_id: int | None

    @property
    def is_kept(self) -> bool:
        """Whether the text it started from stands there."""
        return self.start_id == self.token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The provisional canvas after one denoise step; every list has one entry per position.

    Under a constraint a canvas gets shorter once its text is certain to end in its first half.

    Args:
        token_ids: the arg-max canvas, which becomes the text if this is the last step.
        entropy: in nats; accepted: positions whose sample was kept for the next step.
        num_committed: leading positions that are text already (`SamplingParams.commit_after`).
    """

    canvas_index: int
    step: int
    max_steps: int
    token_ids: list[int]
    entropy: list[float]
    accepted: list[bool]
    num_committed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Final tokens: a canvas, the part of one that settled early, or one token in ar mode.

    Texts of all commits joined are the reply's text.

    Args: num_steps: denoise steps that the canvas had taken.
    """

    canvas_index: int
    token_ids: list[int]
    text: str
    num_steps: int
    logprobs: list[TokenLogprob] | None = None
    trace: list[TokenTrace] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts; cached prompt tokens came out of the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How a request went.

    Args:
        num_passes: model passes the request took part in, prefill included.
        num_denoise_steps: over all canvases.
        wall_s: from submission to the end; first_text_s: to the first committed text.
    """

    num_canvases: int
    num_denoise_steps: int
    num_passes: int
    wall_s: float
    first_text_s: float | None
    completion_tokens: int

    @property
    def steps_per_canvas(self) -> float:
        return self.num_denoise_steps / self.num_canvases if self.num_canvases else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return self.completion_tokens / self.num_passes if self.num_passes else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Delivered tokens over wall time, prefill included."""
        return self.completion_tokens / self.wall_s if self.wall_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The whole answer. `token_ids` includes the end token where one was written; `text` does not."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    stats: Stats
    stop_match: str | int | None = None
    logprobs: list[TokenLogprob] | None = None
    trace: list[TokenTrace] | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The end of a request that did not fail."""

    reply: Reply


Event = Draft | Commit | Done
