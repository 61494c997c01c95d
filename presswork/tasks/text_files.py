"""Tokenizers of the tasks' own models, and the files a model folder needs of one."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

_NAMED = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}


def character_tokenizer(tokens: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """Every character of a text is a token of its own; `tokens` lists all by id, special ones among them."""
    library = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    # Without a decoder tokens are joined by spaces.
    library.decoder = decoders.Fuse()
    mark_special(library, special)
    return library


def mark_special(library: Tokenizer, special: Sequence[str]) -> None:
    """Make these tokens special, and begin every encoded text with `<bos>`. Mutates the tokenizer."""
    begin = library.token_to_id(_NAMED["bos_token"])
    library.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", begin)])
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])


def write_text_files(library: Tokenizer, template: str, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder, made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **_NAMED, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
