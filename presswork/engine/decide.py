"""Decisions: questions with given options, answered from one short canvas in one or two denoise passes.

    letters    the options are listed before the canvas        1: [A|B|C] \\n 2: [A|B] \\n <eos> ...     many questions
    texts      each option is read as it would be written      [the option's own tokens] <eos> ...       one question

Only the places in brackets are free. An option's probability is its share among the question's options of the product
of its tokens' probabilities; what the model would rather have written there is reported as `none`.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from presswork.diffusion.noise import CounterNoise
from presswork.engine.adapters import LoadedAdapter
from presswork.engine.probe import prefilled
from presswork.engine.questions import LETTERS, Kind, Question, read_questions
from presswork.errors import NonFiniteError, RequestError, UnsupportedError
from presswork.text.tokenizer import Tokenizer, with_token_texts

if TYPE_CHECKING:
    from presswork.engine.engine import Engine

Style = Literal["letters", "texts"]

_NO_STATE = "N/A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one question.

    Args:
        probabilities: of each option among the options.
        choice: the likeliest option. confidence: its probability.
        score: for "score", the expected level, 1 for the lowest; None otherwise.
        none: probability that the model would have written none of the options.
        entropy: of the probabilities, in nats.
    """

    kind: Kind
    probabilities: dict[str, float]
    choice: str
    confidence: float
    score: float | None
    none: float
    entropy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideReply:
    """Answers by question, in the order of the questions.

    Args:
        num_passes: denoise passes; num_prompt_tokens: of one canvas's prompt.
    """

    answers: dict[str, Answer]
    num_passes: int
    num_prompt_tokens: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A question in a canvas: where its answer stands, and the tokens of each option there."""

    name: str
    places: list[int]
    options: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sheet:
    """A prompt and the canvas behind it; tokens at the places of answers are still to be drawn."""

    prompt: list[int]
    tokens: list[int]
    asked: list[_Asked]


def decide(
    engine: "Engine",
    state: object,
    questions: Mapping[str, Any],
    *,
    style: Style = "letters",
    steps: int = 2,
    calibrate: bool = False,
    seed: int = 0,
    adapter: str | None = None,
) -> DecideReply:
    """Answer questions about a state.

    Args: as Engine.decide.
    Raises: RequestError, UnsupportedError.
    """
    started = time.perf_counter()
    asked = read_questions(questions)
    if style not in ("letters", "texts"):
        raise RequestError(f"style must be 'letters' or 'texts', got {style!r}")
    if type(steps) is not int or not 1 <= steps <= 2:
        raise RequestError(f"steps must be 1 or 2, got {steps!r}")
    under = engine._adapters.find(adapter)
    tokenizer, text = with_token_texts(engine.tokenizer, "a decision needs", engine.name), state_text(state)
    answers: dict[str, Answer] = {}
    num_passes = num_prompt = 0
    make = _letter_sheets if style == "letters" else _text_sheets
    for sheet in make(engine, tokenizer, text, asked):
        found, num_prompt = _read_sheet(engine, sheet, steps, seed, under), len(sheet.prompt)
        num_passes += steps
        if calibrate:
            blank = {}
            for plain in make(engine, tokenizer, _NO_STATE, {one.name: asked[one.name] for one in sheet.asked}):
                blank |= _read_sheet(engine, plain, steps, seed, under)
                num_passes += steps
            found = {name: (scores - blank[name][0], none) for name, (scores, none) in found.items()}
        for name, (scores, none) in found.items():
            answers[name] = _answer(asked[name], scores, none)
    return DecideReply(
        answers=answers, num_passes=num_passes, num_prompt_tokens=num_prompt, wall_s=time.perf_counter() - started
    )


def state_text(state: object) -> str:
    """A state as text: a text itself, anything else as JSON. Raises RequestError."""
    if isinstance(state, str):
        return state
    try:
        return json.dumps(state, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"state must be a text or JSON, got what is neither: {error}") from error


def _letter_sheets(
    engine: "Engine", tokenizer: Tokenizer, state: str, asked: Mapping[str, Question]
) -> Iterator[_Sheet]:
    """As many questions a canvas as it has room for, and no more than the context has room for their options."""
    canvas, letters = engine.model.config.canvas_length, _letter_tokens(tokenizer)
    names, most = list(asked), len(asked)
    while names:
        tokens: list[int] = []
        taken: list[_Asked] = []
        for number, name in enumerate(names, start=1):
            line = tokenizer.encode(f"{number}:", add_special_tokens=False)
            end = tokenizer.encode("\n", add_special_tokens=False)
            if len(tokens) + len(line) + 1 + len(end) >= canvas or number > most:
                break
            places = [len(tokens) + len(line)]
            taken.append(_Asked(name=name, places=places, options=[[i] for i in letters[: len(asked[name].options)]]))
            tokens += [*line, letters[0], *end]
        if not taken:
            raise UnsupportedError(f"a canvas of {canvas} tokens has no room for an answer; give a larger model")
        text = _with_options(state, [asked[one.name] for one in taken])
        ids = engine.encode_prompt(text)
        if len(taken) > 1 and len(ids) > _room(engine):
            most = len(taken) // 2
            continue
        yield _Sheet(prompt=_checked(engine, ids), tokens=_ended(engine, tokens), asked=taken)
        names = names[len(taken) :]


def _text_sheets(engine: "Engine", tokenizer: Tokenizer, state: str, asked: Mapping[str, Question]) -> Iterator[_Sheet]:
    """One question a canvas, whose answer is the option itself and the end of the text."""
    canvas, end = engine.model.config.canvas_length, engine.model.config.eos_token_id
    for name, question in asked.items():
        options = [tokenizer.encode(option, add_special_tokens=False) for option in question.options]
        length = max(map(len, options)) + 1
        if length > canvas:
            raise RequestError(f"question {name!r} has an option of {length - 1} tokens; a canvas takes {canvas - 1}")
        padded = [[*ids, *[end] * (length - len(ids))] for ids in options]
        notes = zip(question.options, question.notes, strict=True)
        listed = "\n".join(f"{option}: {note}" for option, note in notes if note)
        text = "\n\n".join(part for part in (state, question.instructions, listed) if part)
        one = _Asked(name=name, places=list(range(length)), options=padded)
        yield _Sheet(prompt=_checked(engine, engine.encode_prompt(text)), tokens=_ended(engine, padded[0]), asked=[one])


def takes_letters(tokenizer: Tokenizer | None) -> bool:
    """Whether questions can be answered by letters."""
    try:
        return tokenizer is not None and bool(_letter_tokens(tokenizer))
    except UnsupportedError:
        return False


def _letter_tokens(tokenizer: Tokenizer) -> list[int]:
    """The token of each letter behind a colon: with a space before it where there are such tokens."""
    for space in (" ", ""):
        ids = [tokenizer.encode(space + letter, add_special_tokens=False) for letter in LETTERS]
        if all(len(one) == 1 and tokenizer.all_token_bytes[one[0]] == f"{space}{letter}".encode()
               for one, letter in zip(ids, LETTERS, strict=True)):  # fmt: skip
            return [one[0] for one in ids]
    raise UnsupportedError("decisions by letters need a token for each letter; use style='texts'")


def _with_options(state: str, questions: Sequence[Question]) -> str:
    """The state, and every question with its options by letter."""
    parts = [state, ""] if state else []
    for number, question in enumerate(questions, start=1):
        parts.append(f"{number}. {question.instructions}".rstrip())
        for letter, option, note in zip(LETTERS, question.options, question.notes, strict=False):
            parts.append(f"{letter}: {option} - {note}" if note else f"{letter}: {option}")
    parts += ["", "Answer each question with its number, a colon and one letter."]
    return "\n".join(parts)


def _checked(engine: "Engine", ids: list[int]) -> list[int]:
    """A prompt's tokens. Raises RequestError where there are none, or too many."""
    if not ids:
        raise RequestError("a decision needs a state or instructions: this model has no begin token to start from")
    room = _room(engine)
    if len(ids) > room:
        raise RequestError(f"the state and its questions take {len(ids)} tokens, and {room} fit; shorten the state")
    return ids


def _room(engine: "Engine") -> int:
    return engine.max_context - engine.model.config.canvas_length


def _ended(engine: "Engine", tokens: Sequence[int]) -> list[int]:
    """A canvas that ends behind these tokens; a quarter more than they take, for canvases are never cut short."""
    canvas = engine.model.config.canvas_length
    length = min(canvas, len(tokens) + max(1, len(tokens) // 4))
    return [*tokens, *[engine.model.config.eos_token_id] * (length - len(tokens))]


@torch.no_grad()
def _read_sheet(
    engine: "Engine", sheet: _Sheet, steps: int, seed: int, under: LoadedAdapter
) -> dict[str, tuple[Float[Tensor, "M"], float]]:
    """Of each question (log-probabilities of its options, probability of none of them)."""
    runner, embedding = engine._runner, engine.model.decoder.embedding
    tokens = torch.tensor(sheet.tokens)
    places = torch.tensor([place for one in sheet.asked for place in one.places])
    noise = CounterNoise(seed).initial_canvas(0, len(tokens), engine.model.config.vocab_size)
    tokens[places] = noise[places]
    belief: Tensor | None = None
    found: dict[str, tuple[Tensor, float]] = {}
    with prefilled(engine, sheet.prompt, under) as (cache, _):
        for _ in range(steps):
            with engine._lock:
                hidden = runner.canvas_hidden(cache, tokens, belief, under.adapter)
                logprobs = runner.reader.read_choices(hidden[places], _option_rows(sheet))
            if not bool(logprobs.isfinite().all()):
                raise NonFiniteError("decide failed: the model produced NaN or infinite logits; check the weights")
            belief = embedding[tokens.to(embedding.device)].clone()
            found, row = {}, 0
            for one in sheet.asked:
                options = torch.tensor(one.options)
                own = logprobs[row : row + len(one.places), : len(one.options)].double().cpu()
                scores = own.sum(dim=0)
                found[one.name] = (scores, float(1 - scores.logsumexp(0).exp().clamp(max=1.0)))
                shares = scores.softmax(0).to(embedding.dtype).to(embedding.device)
                tokens[torch.tensor(one.places)] = options[int(scores.argmax())]
                for n, place in enumerate(one.places):
                    belief[place] = shares @ embedding[options[:, n].to(embedding.device)]
                row += len(one.places)
    return found


def _option_rows(sheet: _Sheet) -> Int[Tensor, "R M"]:
    """The tokens of all options at each place, filled up with the first where a question has fewer."""
    most = max(len(one.options) for one in sheet.asked)
    rows = []
    for one in sheet.asked:
        for n in range(len(one.places)):
            ids = [option[n] for option in one.options]
            rows.append([*ids, *[ids[0]] * (most - len(ids))])
    return torch.tensor(rows)


def _answer(question: Question, scores: Float[Tensor, "M"], none: float) -> Answer:
    shares = scores.softmax(0).tolist()
    best = max(range(len(shares)), key=shares.__getitem__)
    is_score = question.kind == "score"
    return Answer(
        kind=question.kind,
        probabilities=dict(zip(question.options, shares, strict=True)),
        choice=question.options[best],
        confidence=shares[best],
        score=sum(level * share for level, share in enumerate(shares, start=1)) if is_score else None,
        none=none,
        entropy=-sum(share * math.log(share) for share in shares if share > 0),
    )
