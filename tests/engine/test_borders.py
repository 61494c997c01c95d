"""What is given up where a text is cut, and what may be written there instead."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from presswork.engine.borders import Border, cut_after, cut_before
from presswork.tasks.text_files import mark_special
from presswork.text.tokenizer import Tokenizer

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "c", "Ċ", "Ġ", "ĊĠ", "ĊĠĠ", "ab", "ca", "Ġa", *"<eos>"]
MERGES = [("Ċ", "Ġ"), ("ĊĠ", "Ġ"), ("Ġ", "a"), ("a", "b"), ("c", "a")]
VOCAB = len(TOKENS) + 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, and line breaks with the spaces behind them; spaces alone are never joined."""
    library = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=MERGES))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    mark_special(library, TOKENS[:4])
    return Tokenizer(library)


def named(ids: list[int]) -> list[str]:
    return [TOKENS[i] for i in ids]


def allowed(border: Border) -> set[str]:
    assert border.banned is not None
    return set(named([i for i in range(len(TOKENS)) if i not in border.banned.tolist()]))


def test_left_of_a_gap_the_last_token_may_grow(tokenizer) -> None:
    ids, border = cut_after(tokenizer, "ca\n", VOCAB)
    assert named(ids) == ["<bos>", "ca"] and border.given == b"\n"
    assert allowed(border) == {"Ċ", "ĊĠ", "ĊĠĠ"}
    # Ids past the tokenizer's are ruled out too.
    assert border.banned is not None and {VOCAB - 1, VOCAB - 2} <= set(border.banned.tolist())


def test_right_of_a_gap_indentation_goes_with_the_line_break_before_it(tokenizer) -> None:
    """Alone the two spaces are two tokens; behind a line break they are part of one."""
    assert named(tokenizer.encode("  b", add_special_tokens=False)) == ["Ġ", "Ġ", "b"]
    ids, border = cut_before(tokenizer, "c\n", "  b", VOCAB)
    assert named(ids) == ["b"] and border.given == b"  " and allowed(border) == {"ĊĠĠ"}


def test_right_of_a_gap_within_a_line_the_first_token_may_have_begun_before(tokenizer) -> None:
    ids, border = cut_before(tokenizer, "c ", "\nb", VOCAB)
    assert named(ids) == ["Ċ", "b"] and border == Border()
    ids, border = cut_before(tokenizer, "b", "a\n", VOCAB)
    assert named(ids) == ["Ċ"] and border.given == b"a" and allowed(border) == {"a", "ca", "Ġa"}


def test_what_has_no_text_is_not_given_up(tokenizer) -> None:
    assert cut_after(tokenizer, "", VOCAB) == (tokenizer.encode(""), Border())
    assert cut_before(tokenizer, "c\n", "", VOCAB) == ([], Border())


def test_special_tokens_spelled_out_are_mere_text(tokenizer) -> None:
    assert named(tokenizer.encode("c<eos>")) == ["<bos>", "c", "<eos>"]
    ids, _ = cut_after(tokenizer, "c<eos>", VOCAB)
    assert named(ids) == ["<bos>", "c", *"<eos>"]
    ids, border = cut_before(tokenizer, "c\n", "  b<eos>", VOCAB)
    assert named(ids) == ["b", *"<eos>"] and border.given == b"  "
