"""Decisions are the model's own probabilities at the places of answers."""

import math

import pytest
import torch

from presswork.diffusion.noise import CounterNoise
from presswork.engine.engine import Engine, EngineConfig
from presswork.errors import RequestError, UnsupportedError
from presswork.models.adapters import LoraConfig
from presswork.tasks.code.tokenizer import EOS_ID, TEMPLATE, train_tokenizer
from presswork.tasks.molecules.smiles import EOS_ID as SMILES_EOS
from presswork.tasks.molecules.smiles import VOCAB_SIZE, build_tokenizer
from presswork.testing import fixture_config, fixture_model
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.weights.lora import new_adapter
from presswork.weights.peft_files import save_adapter

QUESTIONS = {
    "colour": {"type": "choice", "instructions": "Which colour?", "criteria": {"red": "like blood", "blue": None}},
    "size": {"type": "score", "instructions": "How large?", "criteria": ["tiny", "middling", "huge"]},
    "alive": {"type": "noul", "instructions": "Is it alive?"},
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    source = "def add(a, b):\n    total = a + b\n    return total\n"
    tokenizer = Tokenizer(train_tokenizer([source] * 4, vocab_size=300), named={"eos_token": "<eos>"})
    config = fixture_config(vocab_size=tokenizer.vocab_size + 3, eos_token_id=EOS_ID, canvas_length=24)
    return Engine(fixture_model(config, peak=2.0, width=2.0), tokenizer=tokenizer, template=ChatTemplate(TEMPLATE))


def sheet_of(engine, text: str) -> tuple[list[int], list[int], list[int]]:
    """(prompt, canvas, places of the letters) as documented: numbered letters, then ends."""
    tokenizer = engine.tokenizer
    tokens, places = [], []
    for number in "123":
        tokens += tokenizer.encode(f"{number}:", add_special_tokens=False)
        places.append(len(tokens))
        tokens += [0, *tokenizer.encode("\n", add_special_tokens=False)]
    tokens += [EOS_ID] * (len(tokens) // 4)
    fresh = CounterNoise(0).initial_canvas(0, len(tokens), engine.model.config.vocab_size)
    for place in places:
        tokens[place] = int(fresh[place])
    return engine.encode_prompt(text), tokens, places


PROMPT = (
    "A dog.\n\n1. Which colour?\nA: red - like blood\nB: blue\n2. How large?\nA: 1 - tiny\nB: 2 - middling\n"
    "C: 3 - huge\n3. Is it alive?\nA: true\nB: false\n\nAnswer each question with its number, a colon and one letter."
)


def test_letters_have_the_probabilities_of_their_tokens_on_the_canvas(engine):
    reply = engine.decide("A dog.", QUESTIONS, steps=1)
    prompt, tokens, places = sheet_of(engine, PROMPT)
    letters = [engine.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABC"]
    p = engine.canvas_logits(prompt, tokens).double().softmax(-1)
    assert list(reply.answers) == list(QUESTIONS) and reply.num_passes == 1 and reply.num_prompt_tokens == len(prompt)
    for place, (name, count) in zip(places, {"colour": 2, "size": 3, "alive": 2}.items(), strict=True):
        answer, shares = reply.answers[name], p[place, letters[:count]]
        assert answer.none == pytest.approx(1 - float(shares.sum()), abs=1e-5)
        assert list(answer.probabilities.values()) == pytest.approx((shares / shares.sum()).tolist(), abs=1e-5)
        assert answer.confidence == max(answer.probabilities.values()) == answer.probabilities[answer.choice]
        entropy = -sum(v * math.log(v) for v in answer.probabilities.values())
        assert answer.entropy == pytest.approx(entropy)
    size = reply.answers["size"]
    assert size.score == pytest.approx(sum(n * v for n, v in enumerate(size.probabilities.values(), start=1)))
    assert list(reply.answers["alive"].probabilities) == ["true", "false"] and reply.answers["alive"].score is None


def test_the_second_pass_believes_the_first(engine):
    once, twice = engine.decide("A dog.", QUESTIONS, steps=1), engine.decide("A dog.", QUESTIONS)
    assert twice.num_passes == 2
    prompt, tokens, places = sheet_of(engine, PROMPT)
    letters = [engine.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABC"]
    believed = torch.full((len(tokens), engine.model.config.vocab_size), -torch.inf)
    believed[torch.arange(len(tokens)), torch.tensor(tokens)] = 0.0
    for place, answer in zip(places, once.answers.values(), strict=True):
        shares = list(answer.probabilities.values())
        believed[place] = -torch.inf
        believed[place, letters[: len(shares)]] = torch.tensor(shares).log()
        tokens[place] = letters[shares.index(max(shares))]
    p = engine.canvas_logits(prompt, tokens, believed).double().softmax(-1)
    for place, answer in zip(places, twice.answers.values(), strict=True):
        wanted = p[place, letters[: len(answer.probabilities)]]
        assert list(answer.probabilities.values()) == pytest.approx((wanted / wanted.sum()).tolist(), abs=1e-4)


def test_texts_are_read_as_they_would_be_written(engine):
    question = {"next": {"type": "choice", "instructions": "", "criteria": {"total = a": None, "pass": None}}}
    reply = engine.decide("def add(a, b):\n    ", question, style="texts", steps=1)
    tokenizer = engine.tokenizer
    options = [tokenizer.encode(text, add_special_tokens=False) for text in ("total = a", "pass")]
    length = max(map(len, options)) + 1
    padded = [ids + [EOS_ID] * (length - len(ids)) for ids in options]
    canvas = padded[0] + [EOS_ID] * max(1, length // 4)
    canvas[:length] = CounterNoise(0).initial_canvas(0, len(canvas), engine.model.config.vocab_size)[:length].tolist()
    log_p = engine.canvas_logits(engine.encode_prompt("def add(a, b):\n    "), canvas).double().log_softmax(-1)
    scores = torch.stack([log_p[torch.arange(length), torch.tensor(ids)].sum() for ids in padded])
    answer = reply.answers["next"]
    assert list(answer.probabilities.values()) == pytest.approx(scores.softmax(0).tolist(), abs=1e-4)
    assert answer.none == pytest.approx(1 - float(scores.logsumexp(0).exp()), abs=1e-5)


def test_texts_are_told_what_their_options_mean(engine):
    size = {"size": {"type": "score", "instructions": "How large?", "criteria": ["tiny", "middling", "huge"]}}
    told = "A dog.\n\nHow large?\n\n1: tiny\n2: middling\n3: huge"
    reply = engine.decide("A dog.", size, style="texts", steps=1)
    assert reply.num_prompt_tokens == len(engine.encode_prompt(told))
    bare = {"size": {"type": "choice", "criteria": {"1": None, "2": None, "3": None}}}
    wanted = engine.decide(told, bare, style="texts", steps=1)
    assert reply.answers["size"].probabilities == wanted.answers["size"].probabilities


def test_calibrated_probabilities_are_divided_by_those_without_a_state(engine):
    plain = engine.decide("A dog.", QUESTIONS, steps=1).answers
    blank = engine.decide("N/A", QUESTIONS, steps=1).answers
    found = engine.decide("A dog.", QUESTIONS, steps=1, calibrate=True)
    assert found.num_passes == 2
    for name, answer in found.answers.items():
        ratios = [plain[name].probabilities[o] / blank[name].probabilities[o] for o in answer.probabilities]
        wanted = [ratio / sum(ratios) for ratio in ratios]
        assert list(answer.probabilities.values()) == pytest.approx(wanted, abs=1e-5)


def many_sizes(engine: Engine, many: dict) -> list[int]:
    """Numbers of questions that one canvas holds."""
    some = {n: dict(list(many.items())[:n]) for n in range(1, len(many) + 1)}
    return [n for n, asked in some.items() if engine.decide({"a": [1, None]}, asked, steps=1).num_passes == 1]


def test_more_questions_than_a_canvas_holds_take_several(engine):
    many = {f"q{i}": {"type": "noul", "instructions": f"Number {i}?"} for i in range(9)}
    reply = engine.decide({"a": [1, None]}, many, steps=1)
    assert list(reply.answers) == list(many) and reply.num_passes > 1
    num_first = max(n for n in many_sizes(engine, many) if n < len(many))
    rest = dict(list(many.items())[num_first : 2 * num_first])
    again = engine.decide({"a": [1, None]}, rest, steps=1).answers
    assert rest and {name: reply.answers[name].probabilities for name in rest} == {
        name: answer.probabilities for name, answer in again.items()
    }


def test_questions_that_do_not_fit_the_context_together_are_asked_apart(engine):
    long = {f"q{n}": {"type": "noul", "instructions": "a " * (60 + n)} for n in range(3)}
    alone = {name: engine.decide("s", {name: long[name]}) for name in long}
    prompt = max(reply.num_prompt_tokens for reply in alone.values())
    small = Engine(
        engine.model,
        tokenizer=engine.tokenizer,
        template=ChatTemplate(TEMPLATE),
        config=EngineConfig(max_context=prompt + 24 + 10),
    )
    together = small.decide("s", long)
    assert {name: answer.probabilities for name, answer in together.answers.items()} == {
        name: reply.answers[name].probabilities for name, reply in alone.items()
    }
    with pytest.raises(RequestError, match="the state and its questions take"):
        small.decide("s " * 40, long)


def test_calibration_asks_the_questions_of_a_sheet_whatever_sheets_they_would_take_alone(engine):
    asked = {f"q{n}": {"type": "noul", "instructions": "a " * 30} for n in range(3)}
    state = "s " * 60
    alone = {name: engine.decide(state, {name: asked[name]}, calibrate=True) for name in asked}
    small = Engine(
        engine.model,
        tokenizer=engine.tokenizer,
        template=ChatTemplate(TEMPLATE),
        config=EngineConfig(max_context=max(reply.num_prompt_tokens for reply in alone.values()) + 24 + 10),
    )
    together = small.decide(state, asked, calibrate=True)
    assert together.num_passes > small.decide("N/A", asked, calibrate=True).num_passes
    assert {name: answer.probabilities for name, answer in together.answers.items()} == {
        name: reply.answers[name].probabilities for name, reply in alone.items()
    }


def test_adapters_decide_otherwise(engine, tmp_path):
    lora = LoraConfig(rank=2, alpha=2, targets=("*.o_proj",))
    made = new_adapter(engine.model.config, lora)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    save_adapter(made, tmp_path, engine.model.config, lora, "x")
    engine.load_adapter("other", tmp_path)
    plain, other = engine.decide("A dog.", QUESTIONS), engine.decide("A dog.", QUESTIONS, adapter="other")
    assert plain.answers["size"].probabilities != other.answers["size"].probabilities


@pytest.mark.parametrize(
    "questions, message",
    [
        ({}, "questions must map names to questions"),
        ({1: {"type": "noul"}}, "questions must be named by texts, got 1"),
        ({"a": {"type": "guess"}}, "question 'a' must have type 'choice', 'score' or 'noul'"),
        ({"a": {"type": "choice", "criteria": {"x": None}}}, "must map 2 to 52 options"),
        ({"a": {"type": "choice", "criteria": {"x": None, "y": 3}}}, "must map texts to texts or null, got 'y': 3"),
        ({"a": {"type": "score", "criteria": ["low"]}}, "must be a list of 2 to 10 level descriptions"),
        ({"a": {"type": "score", "criteria": "low"}}, "must be a list of 2 to 10 level descriptions"),
        ({"a": {"type": "noul", "criteria": {"maybe": "x"}}}, "may describe 'true' and 'false'"),
        ({"a": {"type": "noul", "instructions": 3}}, "instructions must be a text, got 3"),
        ({"a": {"type": "noul", "hint": "x"}}, "unknown field 'hint'"),
    ],
)
def test_bad_questions_say_what_is_wrong(engine, questions, message):
    with pytest.raises(RequestError, match=message):
        engine.decide("state", questions)


def test_bad_requests_say_what_is_wrong(engine, tmp_path):
    with pytest.raises(RequestError, match="style must be 'letters' or 'texts'"):
        engine.decide("state", QUESTIONS, style="numbers")
    with pytest.raises(RequestError, match="steps must be 1 or 2"):
        engine.decide("state", QUESTIONS, steps=3)
    with pytest.raises(RequestError, match="state must be a text or JSON"):
        engine.decide({1, 2}, QUESTIONS)
    with pytest.raises(RequestError, match="shorten the state"):
        engine.decide("long " * 600, QUESTIONS)
    with pytest.raises(RequestError, match=r"has an option of .* tokens; a canvas takes 23"):
        engine.decide("s", {"a": {"type": "choice", "criteria": {"x" * 60: None, "y": None}}}, style="texts")
    build_tokenizer(tmp_path)
    model = fixture_model(fixture_config(vocab_size=VOCAB_SIZE, eos_token_id=SMILES_EOS))
    with pytest.raises(UnsupportedError, match="decisions by letters need a token for each letter"):
        Engine(model, tokenizer=Tokenizer.from_folder(tmp_path)).decide("CC", QUESTIONS)
