"""A byte-level BPE for Python and English, and its chat template."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from presswork.tasks.text_files import mark_special

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
EOS_ID, BOS_ID = 1, 2
VOCAB_SIZE = 8192

# A line break takes the indentation behind it along; digits stand alone; words and operators keep one space before.
_PIECES = r"\n *| ?[A-Za-z_]+| ?[0-9]| ?[^\sA-Za-z0-9_]+|\s+"

# A prompt is the text to go on from.
TEMPLATE = """\
{{- '<bos>' -}}
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {{- content if content is string else content | map(attribute='text') | join('') -}}
{%- endfor -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer whose merges are learned from texts; any text comes back byte for byte."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=2,
    )  # fmt: skip
    library.train_from_iterator(texts, trainer)
    mark_special(library, SPECIAL)
    return library
