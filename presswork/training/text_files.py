"""Training text from files: conversations, prompts with completions, and plain text.

A line of a .jsonl file is one of

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"prompt": "...", "completion": "..."}
    {"text": "..."}

and a .txt file is one document. Conversations and prompts go through the model's own chat template, as they will in
generation; every assistant turn becomes an example of its own, with all before it as its prompt.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from presswork.errors import DataError, PressworkError
from presswork.models.transformer import Transformer
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.training.loss import Batch
from presswork.training.packing import ANYWHERE, Documents, PackConfig, PackedBatches
from presswork.weights.hub import resolve

logger = logging.getLogger(__name__)

_FORMS = "messages, prompt with completion, or text"
_NUM_SHOWN = 10
_MARK = "\x00"  # stands where a turn's content does; no prompt has it
_THOUGHTS = ("reasoning", "reasoning_content", "thinking")


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one document, and how many of them are its prompt (ANYWHERE for plain text)."""

    tokens: list[int]
    prompt_length: int


class ExampleReader:
    """Turns records into examples with one model's tokenizer and template.

    Args:
        begin, end: tokens a document begins and ends with where its text does not bring them.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, begin: int, end: int):
        self._tokenizer, self._template, self._begin, self._end = tokenizer, template, begin, end

    def read(self, record: Any) -> list[Example]:
        """The examples in a record.

        Raises:
            DataError: a record of another form, or one with nothing to learn.
        """
        if not isinstance(record, Mapping):
            raise DataError(f"expected an object with {_FORMS}, got {type(record).__name__}")
        if "messages" in record:
            return self._conversation(record["messages"], record.get("tools"))
        if "prompt" in record and "completion" in record:
            return [self._completion(_text(record, "prompt"), _text(record, "completion"))]
        if "text" in record:
            return [self.plain(_text(record, "text"))]
        raise DataError(f"expected an object with {_FORMS}, got {', '.join(sorted(map(str, record))) or 'nothing'}")

    def plain(self, text: str) -> Example:
        """Text as it is, whose canvases may begin anywhere."""
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        if not tokens:
            raise DataError("the text is empty")
        return Example([self._begin, *tokens, self._end], ANYWHERE)

    def _conversation(self, messages: Any, tools: Any) -> list[Example]:
        if self._template is None:
            raise DataError("the model has no chat template; give prompt and completion, or text")
        examples = []
        turns = messages if isinstance(messages, list) else []
        for i, message in enumerate(turns):
            if isinstance(message, Mapping) and message.get("role") == "assistant":
                found = _rendered(self._template, turns[:i], message, tools)
                if found is None:
                    raise DataError(f"message {i}: the template does not render the turn right behind its prompt")
                examples.append(self._pair(*found, add_special_tokens=False))
        if not examples:
            raise DataError("messages hold no assistant turn to learn")
        return examples

    def _completion(self, prompt: str, completion: str) -> Example:
        """The completion as the template closes a turn; as it is where the template knows no assistant turns."""
        if not completion:
            raise DataError("the completion is empty")
        if self._template is None:
            return self._pair(prompt, completion, add_special_tokens=True)
        before = [{"role": "user", "content": prompt}]
        found = _rendered(self._template, before, {"role": "assistant", "content": completion}, None)
        return self._pair(*(found or (self._template.render(before), completion)), add_special_tokens=False)

    def _pair(self, prompt: str, completion: str, *, add_special_tokens: bool) -> Example:
        before = self._tokenizer.encode(prompt, add_special_tokens) or [self._begin]
        after = self._tokenizer.encode(completion, add_special_tokens=False)
        if not after:
            raise DataError("the completion is empty")
        if after[-1] != self._end:
            after.append(self._end)
        return Example(before + after, len(before))


def _rendered(
    template: ChatTemplate, before: Sequence[Mapping[str, Any]], turn: Mapping[str, Any], tools: Any
) -> tuple[str, str] | None:
    """(prompt, the turn as it is written behind it); None where the template does not render it there.

    A template may end a prompt in what no rendered turn has, such as the empty channel that says that there are no
    thoughts. That stays with the prompt, as it will in generation, unless the turn has thoughts that are rendered.
    """
    prompt = template.render(before, tools=tools)
    mark = {"role": "assistant", "content": _MARK}
    marked = template.render([*before, mark], tools=tools, add_generation_prompt=False)
    whole = template.render([*before, turn], tools=tools, add_generation_prompt=False)
    opening = _alike(prompt, marked)
    closed = template.render(before, tools=tools, add_generation_prompt=False)
    if _MARK not in marked or not whole.startswith(opening) or not opening.startswith(closed):
        return None
    if opening != prompt:
        silent = {name: value for name, value in turn.items() if name not in _THOUGHTS}
        if template.render([*before, silent], tools=tools, add_generation_prompt=False) != whole:
            prompt = opening
    # What stands behind the end of a turn is the next one's business; line ends of the turn's own text are not.
    behind = marked.rpartition(_MARK)[2]
    ends = behind[len(behind.rstrip("\n")) :]
    return prompt, whole[len(opening) :].removesuffix(ends)


def _alike(one: str, other: str) -> str:
    """The beginning that two texts have in common."""
    shorter = min(len(one), len(other))
    return one[: next((i for i in range(shorter) if one[i] != other[i]), shorter)]


def read_examples(files: Sequence[Path], reader: ExampleReader, row_length: int, canvas_length: int) -> Documents:
    """The documents of files, in their order. Lines that cannot be used are named and counted, in the log.

    Args:
        row_length: tokens that fit into a row; of longer examples what does not fit is not trained.
        canvas_length: a longer example whose prompt leaves less than this is left out.

    Raises:
        DataError: a file is missing, or no line of any can be used.
    """
    examples: list[Example] = []
    faults: list[str] = []
    num_cut = 0
    for where, record in read_records(files, faults):
        try:
            found = [reader.plain(record)] if isinstance(record, str) else reader.read(record)
        except PressworkError as error:
            faults.append(f"{where}: {error}")
            continue
        for example in found:
            is_cut = example.prompt_length != ANYWHERE and len(example.tokens) > row_length
            if is_cut and example.prompt_length + canvas_length > row_length:
                faults.append(
                    f"{where}: the prompt's {example.prompt_length} tokens leave no canvas of {canvas_length} in a row "
                    f"of {row_length}"
                )
                continue
            num_cut += is_cut
            examples.append(example)
    for number, fault in enumerate(faults):
        logger.log(logging.WARNING if number < _NUM_SHOWN else logging.INFO, "left out: %s", fault)
    if len(faults) > _NUM_SHOWN:
        logger.warning("left out: %d more; PRESSWORK_LOG=info names them", len(faults) - _NUM_SHOWN)
    if num_cut:
        logger.warning("longer than a row of %d tokens, trained so far: %d examples", row_length, num_cut)
    if not examples:
        reason = faults[0] if faults else "the files are empty"
        raise DataError(f"nothing to train on in {', '.join(map(str, files)) or 'no files'}: {reason}")
    logger.log(
        logging.WARNING if faults else logging.INFO, "%d examples, %d lines left out", len(examples), len(faults)
    )
    offsets = np.concatenate([[0], np.cumsum([len(example.tokens) for example in examples])]).astype(np.int64)
    return Documents(
        tokens=np.concatenate([np.array(example.tokens, np.int32) for example in examples]),
        offsets=offsets,
        prompt_lengths=np.array([example.prompt_length for example in examples], np.int32),
    )


def read_records(files: Sequence[Path], faults: list[str]) -> Iterator[tuple[str, Any]]:
    """(where, record) of every line of .jsonl files, and (where, text) of every other file.

    Lines and files that cannot be read are added to faults. Raises DataError for a missing file and for a .json file.
    """
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        if file.suffix.lower() == ".json":
            raise DataError(f"{file} is neither .jsonl nor plain text; write one JSON object a line, to a .jsonl file")
        if file.suffix.lower() != ".jsonl":
            try:
                yield str(file), data.decode("utf-8")
            except UnicodeDecodeError as error:
                faults.append(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})")
            continue
        for number, line in enumerate(data.split(b"\n"), start=1):
            if line.strip():
                try:
                    yield f"{file}, line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    faults.append(f"{file}, line {number}: not JSON ({error})")


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, got {type(value).__name__}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan:
    """A recipe's data out of text files.

    Args:
        train, validation: .jsonl and text files.
        tokenizer: the model whose tokenizer and chat template are used: an embedded name, a folder, or a Hub id.
        pack: how examples become batches.
        num_validation: validation batches, the same at every look.
    """

    train: tuple[Path, ...]
    tokenizer: str
    validation: tuple[Path, ...] = ()
    pack: PackConfig = field(default_factory=PackConfig)
    num_validation: int = 8

    def open(self, model: Transformer) -> PackedBatches:
        """The training batches."""
        return self._batches(self.train, model)

    def validate_on(self, model: Transformer) -> list[Batch]:
        """The validation batches."""
        if not self.validation:
            return []
        batches = self._batches(self.validation, model)
        return [batches(i) for i in range(self.num_validation)]

    def _batches(self, files: Sequence[Path], model: Transformer) -> PackedBatches:
        folder = resolve(self.tokenizer)
        tokenizer = Tokenizer.from_folder(folder)
        config = model.config
        template = ChatTemplate.from_folder(folder, tokenizer)
        reader = ExampleReader(tokenizer, template, config.bos_token_id, config.eos_token_id)
        canvas_length = self.pack.canvas_length or config.canvas_length
        return PackedBatches(read_examples(files, reader, self.pack.row_length, canvas_length), self.pack, config)
