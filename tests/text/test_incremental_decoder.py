import itertools
import random
from collections.abc import Sequence

import pytest
import tokenizers
from tokenizers import decoders, models

from presswork.text.stream import IncrementalDecoder
from presswork.text.tokenizer import Tokenizer
from tests.text.conftest import LINES

TEXTS = [
    *LINES,
    "  spaced  out ",
    "👩‍👩‍👧 family 🇵🇹 flag ₿ coin",
    "中文字符日本語 " * 3,
    "1 2 3 | 中 é words a.b don't",
]


def pushes(tokenizer: Tokenizer, parts: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
    return [decoder.push(part) for part in parts] + [decoder.flush()]


def random_ids(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Ids of real text, of noise from beyond the vocabulary, or of byte tokens mixed with specials."""
    kind = rng.randrange(4)
    if kind == 0:
        return tokenizer.encode(rng.choice(TEXTS) + rng.choice(TEXTS))
    if kind == 1:
        return [rng.randrange(-1, tokenizer.vocab_size + 5) for _ in range(rng.randrange(40))]
    text = tokenizer.encode(rng.choice(TEXTS))
    pool = [*(list(tokenizer.byte_values) or text), *tokenizer.special_ids]
    noise = [rng.choice(pool) for _ in range(rng.randrange(6))]
    cut = rng.randrange(len(text) + 1)
    return text[:cut] + noise + text[cut:] if kind == 2 else noise + text[cut:]


def random_parts(ids: list[int], rng: random.Random) -> list[list[int]]:
    cuts = sorted(rng.randrange(len(ids) + 1) for _ in range(rng.randrange(1, 12)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@pytest.mark.parametrize("skip", [True, False])
def test_pieces_join_to_the_whole_text_for_any_split(tokenizer: Tokenizer, skip: bool) -> None:
    rng = random.Random(f"{tokenizer.decoder_kind} {skip}")
    for _ in range(300):
        ids = random_ids(tokenizer, rng)
        parts = rng.choice([random_parts(ids, rng), [[i] for i in ids]])
        assert "".join(pushes(tokenizer, parts, skip)) == tokenizer.decode(ids, skip), ids


def test_text_given_out_survives_any_continuation(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(150):
        ids = random_ids(tokenizer, rng)
        given = "".join(pushes(tokenizer, [ids])[:-1])
        for _ in range(5):
            assert tokenizer.decode(ids + random_ids(tokenizer, rng)).startswith(given), ids


def test_a_character_of_several_tokens_appears_in_one_piece(all_tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("byte_level", "byte_fallback"):
        tokenizer = all_tokenizers[name]
        ids = tokenizer.encode("a👍b", add_special_tokens=False)
        texts = pushes(tokenizer, [[i] for i in ids])
        assert len(ids) > 3
        assert [text for text in texts if text] in (["a", "👍", "b"], ["a", "👍b"])


def test_a_byte_run_waits_for_the_token_that_ends_it(gemma: Tokenizer) -> None:
    good, bad = (gemma.id_of(token) for token in ("<0x41>", "<0xFF>"))
    end = gemma.id_of("e")
    assert good is not None and bad is not None and end is not None
    assert pushes(gemma, [[good], [bad], [end]]) == ["", "", "\ufffd\ufffde", ""]
    assert pushes(gemma, [[good], [good], [end]]) == ["", "", "AAe", ""]
    assert pushes(gemma, [[end, good]]) == ["e", "A"]


def test_a_skipped_special_token_does_not_end_a_byte_run(gemma: Tokenizer) -> None:
    snowman = [gemma.id_of(f"<0x{value:02X}>") for value in "☃".encode()]
    turn = gemma.id_of("<|turn>")
    ids = [i for i in [snowman[0], turn, *snowman[1:], gemma.id_of("e")] if i is not None]
    assert pushes(gemma, [[i] for i in ids]) == ["", "", "", "", "☃e", ""]


def test_plain_text_is_given_out_at_once(all_tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("byte_level", "byte_fallback", "byte_fallback_with_prefix_space", "metaspace"):
        tokenizer = all_tokenizers[name]
        ids = tokenizer.encode("the quick brown fox", add_special_tokens=False)
        assert pushes(tokenizer, [ids]) == ["the quick brown fox", ""]


def test_leading_spaces_that_a_decoder_strips_may_arrive_one_by_one() -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={"▁": 0, "▁▁": 1, "x": 2, "▁x": 3}, merges=[]))
    replace = decoders.Replace("▁", " ")
    for stripped in (1, 2, 3):
        library.decoder = decoders.Sequence([replace, decoders.Fuse(), decoders.Strip(" ", stripped, 0)])
        tokenizer = Tokenizer(library)
        assert tokenizer.decoder_kind == "piecewise"
        for ids in itertools.product(range(4), repeat=4):
            assert "".join(pushes(tokenizer, [[i] for i in ids])) == tokenizer.decode(ids), (stripped, ids)


def test_work_is_linear_in_the_number_of_ids(gemma: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = Tokenizer.decode

    def counting(self: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        decoded.append(len(list(ids)))
        return original(self, ids, skip_special_tokens)

    text = LINES[0] * 40 + "👍" * 500
    ids = gemma.encode(text)
    monkeypatch.setattr(Tokenizer, "decode", counting)
    assert "".join(pushes(gemma, [[i] for i in ids])) == text
    assert sum(decoded) < 3 * len(ids)


def test_nothing_pushed_gives_nothing(tokenizer: Tokenizer) -> None:
    assert pushes(tokenizer, [[], []]) == ["", "", ""]
