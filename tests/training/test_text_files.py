"""Files become examples as generation will see them; what cannot be used is named by file and line, and counted."""

import json
import logging
import re
from pathlib import Path

import pytest

from presswork.errors import DataError
from presswork.tasks.molecules.smiles import BOS_ID, EOS_ID, build_tokenizer
from presswork.testing import tiny_config
from presswork.text.chat import ChatTemplate
from presswork.text.tokenizer import Tokenizer
from presswork.training.packing import ANYWHERE, PackConfig, PackedBatches
from presswork.training.text_files import ExampleReader, TextPlan, read_examples

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '(' if m.role == 'user' else '[' }}{{ m.content }}"
    "{{ ')' if m.role == 'user' else ']' }}{% endfor %}{% if add_generation_prompt %}{{ '[' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer whose tokens are characters, with a template that has turns."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture
def reader(folder: Path, tokenizer: Tokenizer) -> ExampleReader:
    return ExampleReader(tokenizer, ChatTemplate.from_folder(folder, tokenizer), BOS_ID, EOS_ID)


def shown(tokenizer: Tokenizer, reader: ExampleReader, record: object) -> list[tuple[str, str]]:
    """(prompt, rest) of each example as text."""
    return [
        (tokenizer.decode(e.tokens[: e.prompt_length], False), tokenizer.decode(e.tokens[e.prompt_length :], False))
        for e in reader.read(record)
    ]


def test_every_assistant_turn_is_an_example(tokenizer, reader) -> None:
    messages = [
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "CC"},
        {"role": "user", "content": "N"}, {"role": "assistant", "content": "NN"},
    ]  # fmt: skip
    assert shown(tokenizer, reader, {"messages": messages}) == [
        ("<bos>(C)[", "CC]<eos>"),
        ("<bos>(C)[CC](N)[", "NN]<eos>"),
    ]


def test_prompts_go_through_the_template_as_in_generation(tokenizer, reader) -> None:
    assert shown(tokenizer, reader, {"prompt": "C", "completion": "CO"}) == [("<bos>(C)[", "CO]<eos>")]
    bare = ExampleReader(tokenizer, None, BOS_ID, EOS_ID)
    assert shown(tokenizer, bare, {"prompt": "C", "completion": "CO"}) == [("<bos>C", "CO<eos>")]


@pytest.mark.parametrize(
    ("behind", "completion"), [("", "CO\n\n"), ("\n", "CO"), ("\n", "CO\n"), ("]\n", "CO\n"), ("", "\n")]
)
def test_line_ends_of_a_completion_are_its_own(folder: Path, tokenizer, behind: str, completion: str) -> None:
    """Line ends that a template writes behind a turn belong to no turn."""
    turn = "{{ m.content }}{{ '" + behind + "' if m.role != 'user' }}"
    template = ChatTemplate("{% for m in messages %}" + turn + "{% endfor %}")
    reader = ExampleReader(tokenizer, template, BOS_ID, EOS_ID)
    ((_, found),) = shown(tokenizer, reader, {"prompt": "C", "completion": completion})
    # The tokenizer of molecules has no line ends.
    assert found == (completion + behind.rstrip("\n")).replace("\n", "<unk>") + "<eos>"


def test_what_a_template_writes_behind_other_turns_is_not_cut_from_a_tool_call(folder: Path, tokenizer) -> None:
    turn = "{% if m.tool_calls %}{{ m.tool_calls[0].function.name + '#' }}{% else %}{{ m.content + ']\n' }}{% endif %}"
    reader = ExampleReader(tokenizer, ChatTemplate("{% for m in messages %}" + turn + "{% endfor %}"), BOS_ID, EOS_ID)
    call = {"type": "function", "function": {"name": "NN", "arguments": {}}}
    messages = [
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "O"}, {"role": "assistant", "content": "CO"},
    ]  # fmt: skip
    assert [answer for _, answer in shown(tokenizer, reader, {"messages": messages})] == ["NN#<eos>", "CO]<eos>"]


CHANNELS = (
    "{{ '<bos>' }}{% for m in messages %}{{ '(' if m.role == 'user' else '[' }}"
    "{% if m.reasoning and loop.last %}{{ '=#' + m.reasoning + '#' }}{% endif %}{{ m.content | trim }}"
    "{{ ')' if m.role == 'user' else ']' }}{% endfor %}{% if add_generation_prompt %}{{ '[=##' }}{% endif %}"
)


@pytest.fixture
def channels(folder: Path, tokenizer: Tokenizer) -> ExampleReader:
    """A template whose prompts end in an empty channel, =##, and whose turns are trimmed."""
    return ExampleReader(tokenizer, ChatTemplate(CHANNELS), BOS_ID, EOS_ID)


def test_what_a_prompt_ends_in_and_no_turn_has_stays_with_the_prompt(tokenizer, channels) -> None:
    messages = [
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "=CC"},
        {"role": "user", "content": "N"}, {"role": "assistant", "content": "NN"},
    ]  # fmt: skip
    assert shown(tokenizer, channels, {"messages": messages}) == [
        ("<bos>(C)[=##", "=CC]<eos>"),
        ("<bos>(C)[=CC](N)[=##", "NN]<eos>"),
    ]
    assert shown(tokenizer, channels, {"prompt": "C", "completion": " CO\n"}) == [("<bos>(C)[=##", "CO]<eos>")]


def test_a_turn_with_thoughts_of_its_own_has_no_empty_channel_before_it(tokenizer, channels) -> None:
    messages = [{"role": "user", "content": "C"}, {"role": "assistant", "content": "O", "reasoning": "N"}]
    assert shown(tokenizer, channels, {"messages": messages}) == [("<bos>(C)[", "=#N#O]<eos>")]


def test_a_template_without_assistant_turns_gets_the_completion_as_it_is(tmp_path, tokenizer) -> None:
    build_tokenizer(tmp_path)
    reader = ExampleReader(tokenizer, ChatTemplate.from_folder(tmp_path, tokenizer), BOS_ID, EOS_ID)
    assert shown(tokenizer, reader, {"prompt": "C", "completion": "CO"}) == [("<bos>C", "CO<eos>")]


def test_plain_text_has_no_prompt(tokenizer, reader) -> None:
    (example,) = reader.read({"text": "CCO"})
    assert example.prompt_length == ANYWHERE and tokenizer.decode(example.tokens, False) == "<bos>CCO<eos>"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not JSON \("),
        ("[1]", "line 2: expected an object with messages, prompt with completion, or text, got list"),
        ('{"question": "C"}', "line 2: expected an object with .*, got question"),
        ('{"prompt": 3, "completion": "C"}', "line 2: prompt must be a string, got int"),
        ('{"prompt": "C", "completion": ""}', "line 2: the completion is empty"),
        ('{"text": ""}', "line 2: the text is empty"),
        ('{"messages": []}', "line 2: messages hold no assistant turn"),
        ('{"messages": "C"}', "line 2: messages hold no assistant turn"),
        ('{"messages": [{"role": "assistant"}]}', "line 2: "),
        (
            '{"prompt": "' + "C" * 50 + '", "completion": "C"}',
            "line 2: the prompt's 54 tokens leave no canvas of 8 in a row of 40",
        ),
    ],
)
def test_a_bad_line_is_named_and_counted_and_the_others_are_kept(tmp_path, reader, caplog, line, message) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "CC"}\n' + line + '\n\n{"text": "CO"}\n')
    with caplog.at_level(logging.INFO):
        documents = read_examples([file], reader, 40, 8)
    assert len(documents) == 2 and "2 examples, 1 lines left out" in caplog.text
    assert "line 4" not in caplog.text
    assert re.search(f"left out: .*data.jsonl, {message}", caplog.text)


def test_many_bad_lines_are_counted(tmp_path, reader, caplog) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "CC"}\n' + "no\n" * 25)
    with caplog.at_level(logging.INFO):
        read_examples([file], reader, 40, 8)
    assert "left out: 15 more" in caplog.text and "line 26: not JSON" in caplog.text
    shown = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(shown) == 12 and "1 examples, 25 lines left out" in caplog.text


def test_long_completions_are_cut_and_counted(tmp_path, reader, caplog) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "C", "completion": "C" * 60}))
    documents = read_examples([file], reader, 40, 8)
    assert len(documents) == 1 and "longer than a row of 40 tokens, trained so far: 1 examples" in caplog.text


def test_files_that_cannot_be_used(tmp_path, reader) -> None:
    with pytest.raises(DataError, match=r"cannot read .*missing.jsonl: No such file"):
        read_examples([tmp_path / "missing.jsonl"], reader, 40, 8)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"nothing to train on in .*empty.jsonl: the files are empty"):
        read_examples([tmp_path / "empty.jsonl"], reader, 40, 8)
    (tmp_path / "all.json").write_text("[]")
    with pytest.raises(DataError, match=r"all.json is neither .jsonl nor plain text; write one JSON object a line"):
        read_examples([tmp_path / "all.json"], reader, 40, 8)
    (tmp_path / "LOUD.JSONL").write_text('{"text": "CCO"}\n{"text": "CN"}\n')
    assert len(read_examples([tmp_path / "LOUD.JSONL"], reader, 40, 8)) == 2
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_examples([tmp_path / "bad.txt"], reader, 40, 8)


def test_a_plan_opens_files_as_batches(tmp_path, folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "C", "completion": "CO"}\n')
    (tmp_path / "b.txt").write_text("CCOCC")
    plan = TextPlan(
        train=(tmp_path / "a.jsonl", tmp_path / "b.txt"), validation=(tmp_path / "b.txt",), tokenizer=str(folder),
        pack=PackConfig(num_rows=2, row_length=24, canvases_per_row=2), num_validation=3,
    )  # fmt: skip

    class Model:
        config = tiny_config()

    model: object = Model()
    assert isinstance(plan.open(model), PackedBatches)  # type: ignore[arg-type]
    assert len(plan.validate_on(model)) == 3  # type: ignore[arg-type]
