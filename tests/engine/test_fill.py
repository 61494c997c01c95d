"""Gaps are filled in text: what stands around them comes back, and candidates are what pins and scores say."""

import contextlib
import copy
from dataclasses import replace

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from presswork.engine.borders import Border
from presswork.engine.engine import Engine
from presswork.engine.fill import FillReply, Frame, _lengths, frame_of
from presswork.errors import GenerationError, RequestError, UnsupportedError
from presswork.models.adapters import LoraConfig
from presswork.tasks.code.tokenizer import train_tokenizer
from presswork.tasks.molecules.smiles import BOS_ID, EOS_ID, VOCAB_SIZE, build_tokenizer
from presswork.tasks.text_files import mark_special
from presswork.testing import fixture_config, fixture_model
from presswork.text.tokenizer import Tokenizer
from presswork.weights.lora import merge_adapter, new_adapter
from presswork.weights.peft_files import load_adapter, save_adapter

SOURCE = "def add(a, b):\n    total = a + b\n    return total\n\n\ndef double(total):\n    return total + total\n"
PREFIX, SUFFIX = "def add(a, b):\n", "    return total\n"


@pytest.fixture(scope="module")
def characters(tmp_path_factory) -> Engine:
    """One token a character: nothing to mend at a gap's borders."""
    folder = tmp_path_factory.mktemp("characters")
    build_tokenizer(folder)
    model = fixture_model(fixture_config(vocab_size=VOCAB_SIZE, eos_token_id=EOS_ID), peak=3.0, width=2.0)
    return Engine(model, tokenizer=Tokenizer.from_folder(folder))


@pytest.fixture(scope="module")
def pieces() -> Engine:
    """Bytes and words; a line break takes the indentation behind it along."""
    tokenizer = Tokenizer(train_tokenizer([SOURCE] * 4, vocab_size=300), named={"eos_token": "<eos>"})
    # The model's vocabulary is padded past the tokenizer's.
    config = fixture_config(vocab_size=tokenizer.vocab_size + 5, eos_token_id=EOS_ID, canvas_length=16)
    return Engine(fixture_model(config, peak=3.0, width=2.0), tokenizer=tokenizer)


def fill(engine: Engine, prefix: str, suffix: str, **params) -> FillReply:
    return engine.fill(prefix, suffix, max_denoising_steps=3, **params)


def test_candidates_are_canvases_with_the_suffix_and_ends_pinned(characters):
    tokenizer = characters.tokenizer
    reply = fill(characters, "CC", "O", lengths=[1, 2, 4], seed=5)
    prompt, suffix = tokenizer.encode("CC"), tokenizer.encode("O", add_special_tokens=False)
    assert sorted(candidate.length for candidate in reply.candidates) == [1, 2, 4]
    for candidate in reply.candidates:
        pins = dict(enumerate([*suffix, *[EOS_ID] * 8][: 8 - candidate.length], start=candidate.length))
        ask = dict(max_tokens=8, max_denoising_steps=3, seed=5, stop_token_ids=sorted(tokenizer.special_ids))
        plain = characters.generate(prompt_token_ids=prompt, pins=pins, **ask)
        assert tokenizer.decode(plain.token_ids[: candidate.length]) == candidate.text
        assert plain.stats.num_denoise_steps == candidate.num_denoise_steps
        scores = characters.score(prompt, plain.token_ids[: candidate.length + 2])
        assert candidate.score == pytest.approx(sum(scores), abs=1e-4)


def test_the_likeliest_candidate_is_the_text(characters):
    reply = fill(characters, "CC", "O", max_tokens=5)
    scores = [candidate.score for candidate in reply.candidates]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert reply.text == reply.candidates[0].text and reply.completed == f"CC{reply.text}O"
    again = fill(characters, "CC", "O", max_tokens=5)
    assert again.candidates == reply.candidates


def test_borders_repeat_what_was_cut_and_may_add_to_it(pieces):
    """The canonical tokens of the whole have the line break and the indentation in one token, on both sides."""
    texts = [
        candidate.text
        for seed in range(6)
        for candidate in fill(pieces, PREFIX, SUFFIX, lengths=[0, 1, 3], seed=seed).candidates
    ]
    assert any(text.startswith("    ") for text in texts) and any(text.endswith("\n") for text in texts)


def test_a_border_admits_only_tokens_that_hold_the_cut_text(pieces):
    tokenizer, vocab = pieces.tokenizer, pieces.model.config.vocab_size
    assert tokenizer.encode(PREFIX)[-1] == tokenizer.id_of("Ċ")
    joined = tokenizer.encode(PREFIX + SUFFIX)
    assert tokenizer.id_of("ĊĠĠĠĠ") in joined
    only = torch.tensor([token for token in range(vocab) if token != 77])
    params = pieces.defaults.changed(max_tokens=20, max_denoising_steps=2, ignore_eos=True, min_tokens=3)
    request = pieces.submit([BOS_ID], params, banned={2: only, 18: only})
    ids = [event.token_ids for event in pieces.events(request) if hasattr(event, "token_ids")]
    written = [token for canvas in ids for token in canvas]
    assert written[2] == written[18] == 77 and written.count(77) < 20


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [(PREFIX, SUFFIX), (PREFIX, ""), ("", SUFFIX), ("", ""), ("x = 'é", "ü'\n"), ("de", "f add"), (PREFIX, SUFFIX * 9)],
)
def test_text_around_the_gap_comes_back_and_the_gap_is_text(pieces, prefix, suffix):
    replies = []
    for seed in range(8):
        # Most of this vocabulary are single bytes, and the model is random: sometimes no candidate is text.
        with contextlib.suppress(GenerationError):
            replies.append(fill(pieces, prefix, suffix, max_tokens=6, seed=seed))
    assert replies
    for reply in replies:
        assert reply.completed == prefix + reply.text + suffix
        for candidate in reply.candidates:
            assert "\ufffd" not in candidate.text
            assert not any(token in candidate.text for token in ("<eos>", "<pad>", "<bos>", "<unk>"))


def test_candidates_that_are_no_text_are_dropped(pieces):
    """A vocabulary of single bytes, 0x80 first: logits that are all the same choose it everywhere."""
    letters = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "Ģ": 4}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        letters.setdefault(letter, len(letters))
    library = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    mark_special(library, ("<pad>", "<eos>", "<bos>", "<unk>"))
    model = fixture_model(fixture_config(vocab_size=len(letters), eos_token_id=EOS_ID))
    model.decoder.norm.zero_()
    engine = Engine(model, tokenizer=Tokenizer(library))
    with pytest.raises(GenerationError, match="none of 3 candidates is UTF-8 text"):
        fill(engine, "a", "b", max_tokens=3)


def test_lengths_are_all_of_a_short_gap_and_spread_over_a_long_one():
    frame = Frame(
        canvas_length=10, prompt=[2], left=Border(), right=Border(), pinned=[], scored=[], room=8, is_cut=False
    )
    assert _lengths(frame, None, None) == [1, 2, 3, 4, 5]
    spread = _lengths(replace(frame, canvas_length=100, room=75), 64, None)
    assert spread[:3] == [1, 2, 3] and spread[-1] == 64 and len(spread) <= 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lengths=[7]), r"lengths must be integers in 1\.\.6"),
        (dict(lengths=[0]), r"lengths must be integers in 1\.\.6"),
        (dict(lengths=[]), "lengths must be integers"),
        (dict(max_tokens=7), r"max_tokens must be an integer in 1\.\.6"),
        (dict(max_tokens=2, lengths=[1]), "either max_tokens or lengths"),
        (dict(mode="ar"), "fill decides mode itself"),
        (dict(pins={0: 3}), "fill decides pins itself"),
        (dict(canvas_length=1), "has no room for a gap"),
        (dict(canvas_length=600), "a canvas of 600 tokens and what must stand before it do not fit the context of 512"),
        (dict(temprature=1), "unknown sampling parameter"),
    ],
)
def test_bad_gaps_say_what_is_wrong(characters, arguments, message):
    with pytest.raises(RequestError, match=message):
        characters.fill("CC", "O", **arguments)
    assert characters.num_running == characters.num_waiting == 0


def test_of_a_prefix_beyond_the_context_the_end_is_read(characters):
    long = fill(characters, "C" * 3000 + "NO", "O", seed=4)
    assert long.completed == "C" * 3000 + "NO" + long.text + "O"
    # The same as where nothing else is there.
    assert fill(characters, "C" * 1000 + "NO", "O", seed=4).candidates == long.candidates
    # And room is left for what candidates are ranked by.
    tokenizer, common = characters.tokenizer, characters.defaults
    short, cut = (frame_of(characters, tokenizer, "C" * num, "O", common) for num in (10, 3000))
    assert cut.is_cut and not short.is_cut and cut.scored == short.scored != []


def test_filling_needs_a_tokenizer(characters):
    with pytest.raises(UnsupportedError, match="fill needs a tokenizer"):
        Engine(characters.model).fill("a", "b")


def test_an_adapter_fills_as_the_merged_model_does(characters, tmp_path):
    """It also ranks: scores are its own, and nothing is taken from prefixes computed without it."""
    config, lora = characters.model.config, LoraConfig(rank=2, alpha=4, targets=("*_proj",))
    adapter = new_adapter(config, lora)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    save_adapter(adapter, tmp_path, config, lora)
    merged = copy.deepcopy(characters.model)
    merge_adapter(merged, load_adapter(tmp_path, config))
    engine = Engine(characters.model, tokenizer=characters.tokenizer)
    engine.load_adapter("it", tmp_path)
    plain = fill(engine, "CC", "O", lengths=[1, 2, 4])
    found = fill(engine, "CC", "O", lengths=[1, 2, 4], adapter="it")
    expected = fill(Engine(merged, tokenizer=characters.tokenizer), "CC", "O", lengths=[1, 2, 4])
    assert [c.text for c in found.candidates] == [c.text for c in expected.candidates]
    assert [c.score for c in found.candidates] == pytest.approx([c.score for c in expected.candidates], abs=1e-2)
    assert [c.score for c in found.candidates] != pytest.approx([c.score for c in plain.candidates], abs=0.1)
