"""Replies are kept to a language, whatever the model, the steps, the canvas, the company."""

import json
import random
import re

import jsonschema
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers

import presswork
from presswork.diffusion.constraints import conditioned
from presswork.engine.engine import Engine, EngineConfig
from presswork.errors import ConstraintError, GenerationError, RequestError, UnsupportedError
from presswork.grammar.languages import Both, Choices, Either, JsonSchema, Regex, ToolCalls, Without
from presswork.tasks.code.tokenizer import EOS_ID, SPECIAL, train_tokenizer
from presswork.tasks.structure.generate import random_regex, random_schema
from presswork.tasks.text_files import mark_special
from presswork.testing import fixture_config, fixture_model
from presswork.text.parsers import CALL_CLOSE, CALL_OPEN, QUOTE
from presswork.text.tokenizer import Tokenizer

SOURCE = 'def add(a, b):\n    return {"name": "value", "count": 12, "items": [true, false, null]}\n'
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0}},
    "required": ["name", "n"],
}
TOOLS = [{
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object", "properties": {"at": {"type": "string", "maxLength": 6}, "far": {"type": "boolean"}},
            "required": ["at"],
        },
    },
}]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    library = train_tokenizer([SOURCE] * 4, vocab_size=330)
    mark_special(library, [*SPECIAL, CALL_OPEN, CALL_CLOSE, QUOTE])
    return Tokenizer(library, named={"eos_token": "<eos>"})


@pytest.fixture(scope="module")
def model(tokenizer):
    config = fixture_config(vocab_size=tokenizer.vocab_size + 5, eos_token_id=EOS_ID, canvas_length=16)
    return fixture_model(config, peak=3.0, width=2.0)


@pytest.fixture(scope="module")
def engine(model, tokenizer, tmp_path_factory) -> Engine:
    folder = tmp_path_factory.mktemp("constraints")
    return Engine(
        model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID], "pad_token_id": 0},
        config=EngineConfig(constraint_folder=folder),
    )  # fmt: skip


def write(engine: Engine, language, **params):
    return engine.generate("def", constraint=language, **{"max_tokens": 80, "max_denoising_steps": 4, **params})


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
@pytest.mark.parametrize("seed", range(20))
def test_any_regex_is_kept_to_at_any_number_of_steps(engine, seed, mode):
    pattern = random_regex(random.Random(seed))
    steps = [1, 2, 5, 16][seed % 4]
    reply = write(engine, Regex(pattern), max_denoising_steps=steps, seed=seed, mode=mode)
    assert re.fullmatch(pattern, reply.text), (pattern, reply.text)
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
@pytest.mark.parametrize("seed", range(20))
def test_any_schema_is_kept_to_across_canvases(engine, seed, mode):
    schema = random_schema(random.Random(seed))
    language = JsonSchema(schema)
    steps = [1, 2, 5, 16][seed % 4]
    reply = engine.generate("def", constraint=language, max_denoising_steps=steps, seed=seed, mode=mode, max_tokens=400)
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    checker.validate(json.loads(reply.text))


def test_either_of_several_languages_may_be_written(engine):
    texts = {write(engine, Either([Regex("[0-9]{3}"), Choices(["add", "the"])]), seed=seed).text for seed in range(40)}
    assert all(re.fullmatch("[0-9]{3}|add|the", text) for text in texts)
    assert any(text.isdigit() for text in texts) and texts & {"add", "the"}
    with pytest.raises(ConstraintError, match="languages must be one or more"):
        Either([])


def test_a_text_of_each_of_several_languages_is_written(engine):
    both = Both([Regex("[a-c]{1,6}"), Regex("(..)*"), Without(["ab"])])
    texts = {write(engine, both, seed=seed).text for seed in range(40)}
    assert all(re.fullmatch("([a-c]{2}){1,3}", text) and "ab" not in text for text in texts) and len(texts) > 5
    with pytest.raises(ConstraintError, match="no text at all satisfies the constraint"):
        write(engine, Both([Regex("a"), Regex("b")]))
    with pytest.raises(ConstraintError, match="languages must be one or more"):
        Both([])


def test_a_text_is_finished_within_max_tokens_even_if_the_model_would_go_on(engine):
    for max_tokens in (3, 5, 17, 33):  # a letter, a digit and the end take 3
        reply = write(engine, Regex("[a-z]+[0-9]"), max_tokens=max_tokens, max_denoising_steps=1)
        assert re.fullmatch("[a-z]+[0-9]", reply.text) and len(reply.token_ids) <= max_tokens
    assert write(engine, Regex("ZZQ"), max_tokens=4).text == "ZZQ"
    with pytest.raises(RequestError, match="max_tokens is 3, but the constraint's shortest text and its end take 4"):
        write(engine, Regex("ZZQ"), max_tokens=3)


def test_the_canvas_is_no_longer_than_the_longest_text_and_its_end(engine):
    events = list(engine.stream("def", drafts=True, constraint=Choices(["yes", "nop"]), max_denoising_steps=2))
    assert len(events[0].token_ids) == 4
    assert write(engine, Choices(["yes", "nop"]), canvas_length=9).text in ("yes", "nop")
    assert re.fullmatch("[ab]{9,}", write(engine, Regex("[ab]{9,}"), canvas_length=7, max_tokens=17).text)


def test_tool_calls_are_read_back(engine, tokenizer):
    for steps in (1, 4):
        reply = engine.parse_chat(write(engine, ToolCalls(TOOLS, max_calls=2), max_denoising_steps=steps, seed=steps))
        assert reply.text == "" and 1 <= len(reply.tool_calls) <= 2
        for call in reply.tool_calls:
            assert call.name == "look"
            jsonschema.validate(call.arguments, TOOLS[0]["function"]["parameters"])


def test_forbidden_phrases_do_not_occur(engine):
    free = engine.generate("def", max_tokens=60, max_denoising_steps=4)
    letter = next(c for c in free.text if c.isalpha())
    reply = engine.generate("def", constraint=Without([letter, "return"]), max_tokens=60, max_denoising_steps=4)
    assert letter not in reply.text and reply.text
    both = write(engine, Without(["a"], Regex("[abc]{3}")))
    assert re.fullmatch("[bc]{3}", both.text)


def test_drafts_are_in_the_language_from_the_first_step_on(engine, tokenizer):
    for event in engine.stream("def", drafts=True, constraint=Regex("[0-9]{3}-[0-9]{4}"), max_denoising_steps=6):
        if hasattr(event, "max_steps"):
            ids = event.token_ids[: event.token_ids.index(EOS_ID)]
            assert re.fullmatch("[0-9]{3}-[0-9]{4}", tokenizer.decode(ids))


def test_positions_behind_an_early_certain_end_are_dropped_and_the_text_ends_there():
    molecules = presswork.load("molecules")
    language = Regex("[CNO=]{1,60}")
    begin = molecules.encode_prompt("")
    *drafts, commit, done = molecules.stream(prompt_token_ids=begin, drafts=True, constraint=language, seed=3)
    sizes = [len(draft.token_ids) for draft in drafts]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] <= sizes[0] // 2
    assert re.fullmatch(language.pattern, done.reply.text) and done.reply.finish_reason == "stop"
    assert commit.token_ids == drafts[-1].token_ids[: len(commit.token_ids)]


def test_forced_positions_have_no_entropy_and_are_accepted_at_once(engine):
    first = next(iter(engine.stream("def", drafts=True, constraint=Regex("ZQ[ab]"), max_denoising_steps=3)))
    assert first.entropy[0] == first.entropy[1] == 0.0 < first.entropy[2]
    assert first.accepted[:2] == [True, True]


def test_requests_of_several_languages_do_not_change_each_other(engine):
    asks = [
        dict(constraint=JsonSchema(SCHEMA)), dict(constraint=Regex("[a-z]{5,30}")), dict(),
        dict(constraint=JsonSchema(SCHEMA), seed=5), dict(constraint=Choices(["x", "yy"]), mode="ar"),
        dict(constraint=Regex("[a-z]{5,30}"), temperature=0.0),
    ]  # fmt: skip
    common = dict(max_tokens=48, max_denoising_steps=5)
    alone = [engine.generate("def", **common, **ask).token_ids for ask in asks]
    requests = [engine.submit(engine.encode_prompt("def"), engine.defaults.changed(**common, **ask)) for ask in asks]
    assert [engine.reply(request).token_ids for request in requests] == alone


@pytest.mark.parametrize(
    "extreme", [dict(t_min=0.0, t_max=1e-6, temperature=1e-6), dict(repetition_penalty=1e-6, temperature=1e-6)]
)
def test_extreme_temperatures_and_penalties_keep_to_the_language(engine, extreme):
    language = Regex("[a-z]{3}(=[0-9]{1,4}[ab])?")
    for seed in range(3):
        reply = write(engine, language, seed=seed, max_denoising_steps=3, **extreme)
        assert re.fullmatch(language.pattern, reply.text) and reply.finish_reason == "stop"


def test_pins_hold_inside_a_language(engine, tokenizer):
    (digit,) = tokenizer.encode("7", add_special_tokens=False)
    reply = write(engine, Regex("[0-9]{5}"), pins={2: digit}, max_tokens=8)
    assert re.fullmatch("[0-9]{2}7[0-9]{2}", reply.text)
    (letter,) = tokenizer.encode("a", add_special_tokens=False)
    with pytest.raises(RequestError, match="no text of the constraint has the pinned tokens in their places"):
        write(engine, Regex("[0-9]{5}"), pins={2: letter}, max_tokens=8)


def test_pins_in_later_canvases_hold_too(engine, tokenizer):
    (seven,) = tokenizer.encode("7", add_special_tokens=False)
    (b,) = tokenizer.encode("b", add_special_tokens=False)
    for seed in range(4):
        ask = dict(canvas_length=4, max_tokens=12, seed=seed)
        assert re.fullmatch("[0-9]{6}7[0-9]?", write(engine, Regex("[0-9]{2,8}"), pins={6: seven}, **ask).text)
        ask = dict(canvas_length=2, max_tokens=12, seed=seed)
        assert write(engine, Regex("a{6}|b{6}"), pins={5: b}, **ask).text == "bbbbbb"


def test_end_tokens_of_the_checkpoint_are_no_text(model, tokenizer):
    (brace,) = tokenizer.encode("}", add_special_tokens=False)
    engine = Engine(
        model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID, brace]},
        config=EngineConfig(constraint_folder=None),
    )  # fmt: skip
    reply = write(engine, Without(["zzz"]))
    assert reply.finish_reason == "stop" and "}" not in reply.text


def test_special_tokens_of_another_order_are_another_vocabulary(tokenizer, tmp_path, model):
    made = []
    for order in ([CALL_OPEN, CALL_CLOSE, QUOTE], [QUOTE, CALL_CLOSE, CALL_OPEN]):
        library = train_tokenizer([SOURCE] * 4, vocab_size=330)
        mark_special(library, [*SPECIAL, *order])
        other = Tokenizer(library, named={"eos_token": "<eos>"})
        config = EngineConfig(constraint_folder=tmp_path)
        made.append(Engine(model, tokenizer=other, generation_config={"eos_token_id": [EOS_ID]}, config=config))
    for engine in made:
        assert engine.parse_chat(write(engine, ToolCalls(TOOLS))).tool_calls[0].name == "look"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_leading_space_is_text_also_where_tokenizers_drop_it():
    library = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<eos>", "▁", "a", "▁a"])}, merges=[]))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    library.add_special_tokens(["<eos>"])
    config = fixture_config(vocab_size=4, eos_token_id=0)
    engine = Engine(
        fixture_model(config), tokenizer=Tokenizer(library), generation_config={"eos_token_id": [0]},
        config=EngineConfig(constraint_folder=None),
    )  # fmt: skip
    for mode in ("diffusion", "ar"):
        assert engine.generate("a", constraint=Choices([" a"]), max_tokens=6, mode=mode).text == " a"


def test_stop_strings_cut_a_kept_text(engine):
    reply = write(engine, Regex("[a-c]{3}Z[a-c]{3}"), stop=("Z",))
    assert re.fullmatch("[a-c]{3}", reply.text) and reply.stop_match == "Z"


def test_logprobs_are_those_of_the_model_itself(engine):
    reply = write(engine, Choices(["ZQ"]), logprobs=0, max_denoising_steps=1)
    assert len(reply.logprobs) == len(reply.token_ids)
    assert all(entry.logprob < -1.0 for entry in reply.logprobs[:2])


@pytest.mark.parametrize(
    "params, message",
    [
        (dict(min_tokens=3), "min_tokens cannot be kept together with a constraint"),
        (dict(top_k=3), "top_k cannot be kept"),
        (dict(top_p=0.5), "top_p cannot be kept"),
        (dict(ignore_eos=True), "ignore_eos cannot be kept"),
        (dict(stop_token_ids=[300]), "token 300 both ends a text and is part of the constraint's texts"),
    ],
)
def test_what_contradicts_a_constraint_is_refused(engine, params, message):
    with pytest.raises(RequestError, match=message):
        write(engine, Without(["zzz"]), **params)


def test_a_constraint_that_is_none_is_refused(engine):
    with pytest.raises(
        RequestError,
        match="constraint must be a Regex, Choices, JsonSchema, ToolCalls, Either, Both or Without, got str",
    ):
        write(engine, "[a-z]+")
    with pytest.raises(ConstraintError, match="lookaround"):
        write(engine, Regex("(?=a)b"))
    with pytest.raises(ConstraintError, match="choices must be one or more texts"):
        Choices([])
    with pytest.raises(ConstraintError, match="phrases must be one or more non-empty texts"):
        Without([""])
    with pytest.raises(ConstraintError, match="must be plain JSON"):
        write(engine, JsonSchema({"const": {1, 2}}))


def test_a_model_without_a_tokenizer_cannot_keep_to_a_language(confident_model):
    with pytest.raises(UnsupportedError, match="a constraint needs a tokenizer whose tokens have a text each"):
        Engine(confident_model).generate(prompt_token_ids=[5], constraint=Regex("a"))


def test_a_step_that_leaves_no_text_fails_its_request_alone(engine, monkeypatch):
    real, calls = conditioned.condition, []

    def once_nothing(*args):
        calls.append(1)
        if len(calls) == 1:
            raise GenerationError("no text of the constraint is left")
        return real(*args)

    monkeypatch.setattr("presswork.engine.constrained.condition", once_nothing)
    asks = [engine.defaults.changed(max_tokens=9, max_denoising_steps=2, constraint=Regex("[ab]{3}")) for _ in "ab"]
    first, second = (engine.submit(engine.encode_prompt("def"), ask) for ask in asks)
    with pytest.raises(GenerationError, match="no text of the constraint is left"):
        engine.reply(first)
    assert re.fullmatch("[ab]{3}", engine.reply(second).text)


def test_a_prepared_language_is_found_again_in_another_engine(model, tokenizer, tmp_path, monkeypatch):
    def fresh() -> Engine:
        return Engine(
            model, tokenizer=tokenizer, generation_config={"eos_token_id": [EOS_ID]},
            config=EngineConfig(constraint_folder=tmp_path / "kept"),
        )  # fmt: skip

    first = write(fresh(), JsonSchema(SCHEMA)).text
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr("presswork.grammar.languages.compile_expression", None)
    assert write(fresh(), JsonSchema(SCHEMA)).text == first


def test_samples_and_beliefs_of_a_step_are_those_of_the_conditioned_distribution(engine, tokenizer):
    """One step of a whole canvas against all texts of a small language, from full logits."""
    language, options = Choices(["ab", "ba", "cc", "c", "abc"]), ["ab", "ba", "cc", "c", "abc"]
    params = engine.defaults.changed(constraint=language, max_tokens=4, max_denoising_steps=2, t_min=1.0, t_max=1.0)
    request = engine.submit(engine.encode_prompt("def"), params)
    engine.step()
    canvas = request.canvas
    logits = engine.canvas_logits(engine.encode_prompt("def"), start_tokens(engine, params, 4)).double()
    rows = [ids for ids in spellings(tokenizer, options, 4)]
    scores = torch.stack([logits[torch.arange(4), torch.tensor(ids)].sum() for ids in rows])
    share = (scores - scores.logsumexp(0)).exp()
    marginal = torch.zeros(4, logits.shape[1], dtype=torch.float64)
    for ids, p in zip(rows, share, strict=True):
        marginal[torch.arange(4), torch.tensor(ids)] += p
    entropy = -(marginal * marginal.clamp(min=1e-300).log()).sum(1)
    torch.testing.assert_close(canvas.entropy.double(), entropy, atol=1e-5, rtol=1e-4)
    belief = marginal @ engine.model.decoder.embedding.double()
    torch.testing.assert_close(canvas.belief.double(), belief, atol=1e-5, rtol=1e-4)
    assert canvas.argmax.tolist() == rows[int(scores.argmax())]
    engine.cancel(request)


def start_tokens(engine, params, length):
    from presswork.diffusion.noise import CounterNoise

    return CounterNoise(params.seed).initial_canvas(0, length, engine.model.config.vocab_size).tolist()


def spellings(tokenizer, options, length):
    """Every canvas of a language: each way to spell each text, an end, and a tail of ends and padding."""
    texts = {i: piece for i, piece in enumerate(tokenizer.all_token_bytes) if piece}

    def ways(text: bytes):
        if not text:
            yield []
        for i, piece in texts.items():
            if text.startswith(piece):
                yield from ([i, *rest] for rest in ways(text[len(piece) :]))

    def tails(count: int):
        if count == 0:
            yield []
        else:
            yield from ([first, *rest] for first in (EOS_ID, 0) for rest in tails(count - 1))

    for option in options:
        for way in ways(option.encode()):
            if len(way) == length:
                yield way
            elif len(way) < length:
                yield from ([*way, EOS_ID, *tail] for tail in tails(length - len(way) - 1))


def test_a_language_and_a_set_of_tokens_hold_at_once(engine, tokenizer):
    ask = dict(constraint=Regex("[ab]{12}"), max_denoising_steps=2, prompt_token_ids=[5])
    with_a = [i for i, text in enumerate(tokenizer.all_token_bytes) if b"a" in text]
    with_b = [i for i, text in enumerate(tokenizer.all_token_bytes) if b"b" in text]
    for mode in ("diffusion", "ar"):
        assert "a" in engine.generate(**ask, mode=mode).text
        assert engine.generate(**ask, mode=mode, banned_token_ids=with_a).text == "b" * 12
        assert engine.generate(**ask, mode=mode, allowed_token_ids=with_b).text.replace("a", "b") == "b" * 12
        with pytest.raises(ConstraintError, match="the tokens that may be written spell no text of the constraint"):
            engine.generate(**ask, mode=mode, banned_token_ids=with_a + with_b)


@pytest.mark.parametrize("how", [dict(mode="ar"), dict(canvas_length=1), dict(max_denoising_steps=2)])
def test_ways_into_a_text_that_banned_tokens_close_are_not_taken(engine, tokenizer, how):
    """Behind Z only b may follow in one of the two texts, and no token with b may be written."""
    with_b = [i for i, text in enumerate(tokenizer.all_token_bytes) if b"b" in text]
    for seed in range(4):
        reply = write(engine, Choices(["ZbZ", "QcQ", "Zbb"]), banned_token_ids=with_b, seed=seed, **how)
        assert reply.text == "QcQ"
    ends = [EOS_ID]
    with pytest.raises(ConstraintError, match="every token that ends a text is ruled out"):
        write(engine, Choices(["Z"]), banned_token_ids=ends, **how)
