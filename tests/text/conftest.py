"""Small tokenizers of every decoder family, trained in-process and written as model folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from presswork.text.tokenizer import Tokenizer

LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A press prints the page; a typewriter sets one letter at a time.",
    "def add(a, b):\n    return a + b\n\nnumbers = [1, 2, 30, 4.5]",
    "get weather city london thought call days units true false response value name",
    "naïve café über straße – “quotes” … 中文字符 日本語 привет",
]
MARKS = [
    "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
    "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>",
]  # fmt: skip
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
CONFIG = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2's: bytes written as visible characters, merges across parts of a character."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=CONTROL, show_progress=False
    )
    library.train_from_iterator(LINES * 3, trainer)
    library.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    library.add_tokens([AddedToken("naïve→", normalized=False)])
    return library


def byte_fallback(*, has_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """Sentencepiece-like BPE as Gemma's; with has_prefix_space, as Llama's, whose decoder strips one leading space."""
    marked = normalizers.Replace(" ", "▁")
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marked]) if has_prefix_space else marked
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    fallback = [f"<0x{value:02X}>" for value in range(256)]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {token: n for n, token in enumerate([*CONTROL, *MARKS, *fallback, *pieces])}
    merges = [tuple(pair) for pair in model["merges"]]
    library = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizer
    library.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix_space else []
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*CONTROL, *MARKS]])
    library.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return library


def metaspace() -> tokenizers.Tokenizer:
    """Unigram with a Metaspace decoder, which drops the marker of the first token only."""
    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    library.train_from_iterator(LINES * 3, trainer)
    return library


def word_piece() -> tokenizers.Tokenizer:
    """WordPiece: a space before every token that does not start with ##."""
    words = [*CONTROL, "a", "##a", "b", "##b", ".", "##.", "word", "##s", "do", "n't", "中", "##中"]
    library = tokenizers.Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(CONTROL)
    return library


def word_level() -> tokenizers.Tokenizer:
    """Whole words and no decoder: tokens are joined by spaces."""
    words = [*CONTROL, "1", "2", "3", "|", "中", "é"]
    library = tokenizers.Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(CONTROL)
    return library


def end_of_word() -> tokenizers.Tokenizer:
    """BPE with </w> suffixes: the last token of a text is written differently from the others."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=CONTROL, end_of_word_suffix="</w>", show_progress=False
    )
    library.train_from_iterator(LINES, trainer)
    return library


def byte_fallback_with_prefix_space() -> tokenizers.Tokenizer:
    return byte_fallback(has_prefix_space=True)


BUILDERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    build.__name__: build
    for build in (
        byte_level, byte_fallback, byte_fallback_with_prefix_space, metaspace, word_piece, word_level, end_of_word,
    )
}  # fmt: skip


def write_folder(folder: Path, library: tokenizers.Tokenizer) -> Path:
    """A model folder's tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of tokenizer, by builder name."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_folder(root / name, build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="session")
def all_tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_folder(folder) for name, folder in folders.items()}


@pytest.fixture(params=list(BUILDERS))
def tokenizer(request: pytest.FixtureRequest, all_tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """Every tokenizer in turn."""
    return all_tokenizers[request.param]


@pytest.fixture
def gemma(all_tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    """The Gemma-like one, with the marks of its chat format."""
    return all_tokenizers["byte_fallback"]
