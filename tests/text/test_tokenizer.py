import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from presswork.errors import CheckpointError, RequestError
from presswork.text.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.text.conftest import BUILDERS, CONTROL, LINES, byte_fallback, word_level, write_folder

TEXTS = [*LINES, "  two leading spaces", "emoji 👩‍👩‍👧 🇵🇹 and ₿", "tab\tand\r\nlines\n\n", "", " "]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "byte_fallback_with_prefix_space"])
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_encoded_text_back(all_tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = all_tokenizers[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_around_the_text_are_optional(gemma: Tokenizer) -> None:
    plain = gemma.encode("the dog", add_special_tokens=False)
    assert gemma.encode("the dog") == [gemma.id_of("<bos>"), *plain]


def test_special_tokens_are_hidden_or_spelled_out(gemma: Tokenizer) -> None:
    ids = gemma.encode("the<turn|> dog")
    assert gemma.decode(ids) == "the dog"
    assert gemma.decode(ids, skip_special_tokens=False) == "<bos>the<turn|> dog"


def test_every_integer_decodes_and_unknown_ids_give_no_text(tokenizer: Tokenizer) -> None:
    size, known = tokenizer.vocab_size, tokenizer.encode("1")[-1]
    assert tokenizer.decode([known, -1, size, size + 7, 262_143, 2**32, 2**80]) == tokenizer.decode([known])
    for unknown in (-1, size, 2**32):
        assert tokenizer.token_text(unknown) == ""
        assert tokenizer.token_bytes(unknown) == b""
    rng = random.Random(0)
    for _ in range(50):
        assert isinstance(tokenizer.decode([rng.randrange(size + 50) for _ in range(30)]), str)


def test_tokens_are_found_by_how_their_bytes_begin_and_end(tokenizer: Tokenizer) -> None:
    known = tokenizer.all_token_bytes
    parts = {text[:size] for text in known for size in range(3)} | {text[-2:] for text in known} | {b"\xff", b"no such"}
    for part in parts:
        assert tokenizer.ids_that_begin_with(part) == [i for i, text in enumerate(known) if text.startswith(part)]
        assert tokenizer.ids_that_end_with(part) == [i for i, text in enumerate(known) if text.endswith(part)]
    assert tokenizer.ids_without_text == [i for i, text in enumerate(known) if text == b""]


def test_vocab_size_is_one_more_than_the_largest_id_even_with_gaps() -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 3, "b": 9}, unk_token="<unk>"))
    assert Tokenizer(library).vocab_size == 10


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "byte_fallback_with_prefix_space"])
@pytest.mark.parametrize("text", TEXTS)
def test_token_bytes_join_to_the_utf8_of_the_text(all_tokenizers: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = all_tokenizers[kind]
    joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special_tokens=False)))
    expected = text.encode()
    assert joined == (b" " + expected if kind.endswith("prefix_space") and text else expected)


def test_token_bytes_of_each_family(all_tokenizers: dict[str, Tokenizer]) -> None:
    gemma, gpt = all_tokenizers["byte_fallback"], all_tokenizers["byte_level"]
    assert gemma.token_bytes(_id(gemma, "<0xE4>")) == b"\xe4"
    assert gemma.token_bytes(_id(gemma, "▁the")) == b" the"
    assert gpt.token_bytes(_id(gpt, "Ġthe")) == b" the"
    assert gpt.token_bytes(_id(gpt, "ä")) == b"\xe4"
    assert gpt.token_bytes(_id(gpt, "naïve→")) == "naïve→".encode()
    pieces = all_tokenizers["word_piece"]
    assert (pieces.token_bytes(_id(pieces, "word")), pieces.token_bytes(_id(pieces, "##s"))) == (b" word", b"s")


def test_token_text_shows_spaces_special_names_and_replacement_for_part_characters(gemma: Tokenizer) -> None:
    assert gemma.token_text(_id(gemma, "▁the")) == " the"
    assert gemma.token_text(_id(gemma, "<|channel>")) == "<|channel>"
    assert gemma.token_text(_id(gemma, "<0xE4>")) == "\ufffd"
    assert gemma.token_text(_id(gemma, "<0x41>")) == "A"


def test_special_ids_are_those_marked_special_and_those_a_config_names(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "<end>": 2, "b": 3}, unk_token="<unk>"))
    library.add_special_tokens([AddedToken("<unk>", special=True)])
    folder = write_folder(tmp_path, library)
    named = {"eos_token": "<end>", "pad_token": {"content": "<absent>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": None}), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special_ids == {0, 2}
    assert tokenizer.special_tokens == {"eos_token": "<end>", "pad_token": "<absent>"}
    assert tokenizer.decode([1, 2, 3]) == "a b"
    assert tokenizer.vocab_size == 4
    assert tokenizer.id_of("<absent>") is None


def test_truncation_padding_and_dropout_of_the_file_are_switched_off(tmp_path: Path) -> None:
    library = byte_fallback()
    library.enable_truncation(4)
    library.enable_padding(length=20)
    model = library.model
    assert isinstance(model, models.BPE)
    model.dropout = 0.9
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, library))
    plain = Tokenizer(byte_fallback()).encode(LINES[0])
    assert [tokenizer.encode(LINES[0]) for _ in range(10)] == [plain] * 10
    assert tokenizer.decode(plain) == LINES[0]


def test_save_copies_the_files_and_the_template(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_folder(source, tokenizers.Tokenizer.from_file(str(folders["byte_fallback"] / "tokenizer.json")))
    (source / "chat_template.jinja").write_text("{{ bos_token }}", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(source)
    tokenizer.save(tmp_path / "deep" / "copy")
    tokenizer.save(source)
    copied = sorted(file.name for file in (tmp_path / "deep" / "copy").iterdir())
    assert copied == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert set(copied) <= set(TOKENIZER_FILES)
    again = Tokenizer.from_folder(tmp_path / "deep" / "copy")
    assert again.encode(LINES[0]) == tokenizer.encode(LINES[0])
    assert again.special_tokens == tokenizer.special_tokens


def test_save_without_files_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not loaded from a folder"):
        Tokenizer(byte_fallback()).save(tmp_path)
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path / "gone", byte_fallback()))
    (tmp_path / "gone" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: tokenizer files cannot be copied"):
        tokenizer.save(tmp_path / "copy")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b"[1]", b'{"version": "1.0", "model": {}}'])
def test_a_missing_or_broken_tokenizer_file_is_named_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_broken_config_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_folder(tmp_path, word_level())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "model",
    [models.WordLevel({"a": 0}, unk_token="<unk>"), models.WordPiece({"a": 0}), models.Unigram([("a", -1.0)])],
)
def test_a_vocabulary_that_cannot_encode_unknown_text_is_refused(tmp_path: Path, model: models.Model) -> None:
    folder = write_folder(tmp_path, tokenizers.Tokenizer(model))
    with pytest.raises(CheckpointError, match="no unknown token"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", [None, b"bytes", 3, "half \ud83d emoji"])
def test_what_is_not_text_is_a_request_error(gemma: Tokenizer, text: object) -> None:
    with pytest.raises(RequestError, match="text to encode"):
        gemma.encode(text)  # type: ignore[arg-type]


def test_decoder_kinds(all_tokenizers: dict[str, Tokenizer]) -> None:
    kinds = {name: tokenizer.decoder_kind for name, tokenizer in all_tokenizers.items()}
    assert kinds == {
        "byte_level": "byte_level", "byte_fallback": "piecewise", "byte_fallback_with_prefix_space": "piecewise",
        "metaspace": "piecewise", "word_piece": "piecewise", "word_level": "piecewise", "end_of_word": "whole",
    }  # fmt: skip


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]),
        decoders.CTC(),
    ],
)
def test_decoders_that_reach_across_tokens_are_read_whole(decoder: decoders.Decoder) -> None:
    library = word_level()
    library.decoder = decoder
    assert Tokenizer(library).decoder_kind == "whole"


def test_a_vocabulary_without_visible_tokens_is_read_whole() -> None:
    library = tokenizers.Tokenizer(models.WordLevel({token: n for n, token in enumerate(CONTROL)}, unk_token="<unk>"))
    library.add_special_tokens(CONTROL)
    assert Tokenizer(library).decoder_kind == "whole"


@pytest.mark.parametrize("kind", [name for name in BUILDERS if name != "end_of_word"])
def test_a_continuation_keeps_the_space_that_the_start_of_a_text_loses(
    all_tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = all_tokenizers[kind]
    ids = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids and i not in tokenizer.byte_values]
    visible = [i for i in ids if tokenizer.decode([i]).strip() and "\ufffd" not in tokenizer.decode([i])]
    rng = random.Random(1)
    for _ in range(100):
        first, rest = rng.choice(visible), rng.choices(visible, k=3)
        assert tokenizer.decode([first]) + tokenizer.decode_continuation(rest) == tokenizer.decode([first, *rest])


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.id_of(token)
    assert found is not None, token
    return found
