"""`run` under a constraint, `fill`, `edit` and what evaluates them: results, files, and what is said of mistakes."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from presswork.cli import app
from presswork.cli.files import read_text, write_atomically
from presswork.cli.verbs.edit import span_of
from presswork.cli.verbs.fill import _indent_of, split_at
from presswork.errors import RequestError
from presswork.tasks.code.tokenizer import EOS_ID, TEMPLATE, train_tokenizer
from presswork.tasks.text_files import write_text_files
from presswork.testing import fixture_config, fixture_model
from presswork.weights.config_files import write_generation_config
from presswork.weights.save import save_model

SOURCE = 'def add(a, b):\n    total = a + b\n    return total\n\nDATA = {"name": "value", "count": 12}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A loadable model with a byte-level tokenizer and a template."""
    place = tmp_path_factory.mktemp("models") / "pieces"
    library = train_tokenizer([SOURCE] * 4, vocab_size=300)
    config = fixture_config(vocab_size=library.get_vocab_size(), eos_token_id=EOS_ID, canvas_length=24)
    save_model(fixture_model(config, peak=3.0, width=2.0).to(torch.bfloat16), place)
    write_text_files(library, TEMPLATE, place)
    write_generation_config(place, {"eos_token_id": [EOS_ID], "pad_token_id": 0})
    return place


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Prepared constraints go to the user's cache folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        app([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_run_keeps_to_constraints(capsys, folder, tmp_path, home):
    common = ("--model", folder, "--steps", 3, "--max-tokens", 60)
    code, out, _ = run(capsys, "run", "data", *common, "--regex", "[0-9]{3}-[0-9]{2}")
    assert code == 0 and re.fullmatch("[0-9]{3}-[0-9]{2}", out.strip())
    code, out, _ = run(capsys, "run", "data", *common, "--choice", "yes", "--choice", "no")
    assert code == 0 and out.strip() in ("yes", "no")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    code, out, _ = run(capsys, "run", "data", *common, "--json-schema", schema)
    assert code == 0 and isinstance(json.loads(out)["n"], int)
    code, out, _ = run(capsys, "run", "data", *common, "--json-schema", '{"enum": ["a", "b"]}', "--forbid", "a")
    assert code == 0 and json.loads(out) == "b"
    assert len(list((home / ".cache/presswork/constraints").glob("*.npz"))) == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--regex", "(a"), "is malformed"),
        (("--regex", "a", "--choice", "b"), "--regex and --choice exclude each other"),
        (("--json-schema", "/nowhere/x.json"), "the schema cannot be read"),
        (("--json-schema", "{"), "is not JSON"),
        (("--json-schema", '{"not": {}}'), "keyword 'not' is not supported"),
        (("--regex", "a{9}", "--max-tokens", "2"), "shortest text and its end take"),
    ],
)
def test_run_refuses_bad_constraints_in_one_line(capsys, folder, flags, message):
    code, out, err = run(capsys, "run", "data", "--model", folder, *flags)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1


def test_fill_prints_or_writes_the_filled_text(capsys, folder, file):
    code, out, err = run(capsys, "fill", file, "--model", folder, "--at", "2:13", "--max-tokens", 3, "--steps", 2)
    assert code == 0 and out.startswith(SOURCE[:27]) and out.endswith(SOURCE[27:]) and "1 gap filled" in err
    assert file.read_text() == SOURCE
    file.write_text("x = [?, ?]\n")
    file.chmod(0o640)
    ask = ("--model", folder, "--marker", "?", "--regex", "[0-9]{1,3}", "--steps", 2, "--apply", "--json")
    code, out, _ = run(capsys, "fill", file, *ask)
    assert code == 0 and re.fullmatch(r"x = \[[0-9]{1,3}, [0-9]{1,3}\]\n", file.read_text())
    assert json.loads(out)["text"] == file.read_bytes().decode() and len(json.loads(out)["gaps"]) == 2
    assert file.stat().st_mode & 0o777 == 0o640 and len(list(file.parent.glob(".source*"))) == 0


def test_fill_indents_the_lines_of_python_files(capsys, folder, tmp_path):
    source = tmp_path / "source.py"
    source.write_text("def add(a, b):\n    ?\n    return ?\n")
    ask = ("--model", folder, "--marker", "?", "--max-tokens", 30, "--steps", 2, "--candidates", 1, "--json")
    for seed in range(4):
        code, out, _ = run(capsys, "fill", source, *ask, "--seed", seed)
        lines = [line for gap in json.loads(out)["gaps"] for line in gap.split("\n")[1:]]
        assert code == 0 and all(line.startswith("    ") or not line.strip(" \t") for line in lines)
    fixed = ["def f():\n    if x:\n        ", "\n    ", "\n"]
    assert _indent_of("auto", source, fixed) == 4 and _indent_of("auto", tmp_path / "notes.txt", fixed) == 0
    assert _indent_of("none", source, fixed) == 0 and _indent_of("2", tmp_path / "notes.txt", fixed) == 2
    code, _, err = run(capsys, "fill", source, *ask, "--indent", "much")
    assert code and "--indent must be a number of spaces, auto or none, got 'much'" in err


def num_steps(told: str) -> int:
    found = re.search(r"(\d+) denoise steps", told)
    assert found is not None
    return int(found[1])


def test_edit_prints_a_diff_and_writes_when_told(capsys, folder, file):
    ask = ("--model", folder, "--lines", "2", "--strength", 1, "--steps", 2)
    code, out, err = run(capsys, "edit", file, *ask)
    assert code == 0 and out.startswith("--- a/source.py\n+++ b/source.py\n") and "1 of 1 parts changed" in err
    assert file.read_text() == SOURCE
    hurried = ("edit", file, "--model", folder, "--lines", "2", "--strength", 1, "--max-time", 0)
    code, _, err = run(capsys, *hurried)
    assert code == 0 and num_steps(err) < num_steps(run(capsys, *hurried[:-2])[2])
    code, out, _ = run(capsys, "edit", file, *ask, "--apply", "--json")
    found, lines = json.loads(out), SOURCE.splitlines()
    assert code == 0 and found["text"] == file.read_bytes().decode() != SOURCE
    assert found["text"].startswith(lines[0]) and found["text"].endswith("\n".join(lines[2:]) + "\n")
    assert found["changed"][0]["old"] == lines[1]
    code, out, _ = run(capsys, "edit", file, "--model", folder, "--strength", 0)
    assert code == 0 and out == ""


def test_decide_answers_with_probabilities(capsys, folder, file, tmp_path):
    asked = {
        "kind": {"type": "choice", "criteria": {"a": None, "b": None}},
        "size": {"type": "score", "criteria": ["s", "l"]},
    }
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    ask = ("decide", file, "--model", folder, "--style", "texts", "--questions")
    code, out, _ = run(capsys, *ask, json.dumps(asked), "--json")
    found = json.loads(out)["answers"]
    assert code == 0 and sum(found["kind"]["probabilities"].values()) == pytest.approx(1.0)
    assert 1.0 <= found["size"]["score"] <= 2.0
    code, out, err = run(capsys, *ask, tmp_path / "questions.json", "--steps", 1)
    assert code == 0 and out.splitlines()[0].split()[0] == "QUESTION" and "2 denoise passes" in err
    code, _, err = run(capsys, *ask, "{")
    assert code == 2 and "the questions in --questions are not JSON" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("fill",), "say where the gap is"),
        (("fill", "--marker", "<X>"), "the marker '<X>' is not in the file"),
        (("fill", "--at", "99:1"), "--at names line 99, and the file has 6"),
        (("fill", "--at", "1:99"), "--at names column 99, and line 1 has columns 1 to 15"),
        (("fill", "--at", "x"), "--at must be LINE:COLUMN"),
        (("edit", "--lines", "0"), "--lines names 0, and the file has lines 1 to 5"),
        (("edit", "--lines", "a-b"), "--lines must be FIRST-LAST"),
        (("edit", "--strength", "2"), "strength must be a number in"),
    ],
)
def test_mistakes_are_one_line(capsys, folder, file, arguments, message):
    code, out, err = run(capsys, arguments[0], file, *arguments[1:], "--model", folder)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) == 1
    assert file.read_text() == SOURCE


def test_a_missing_or_binary_file_is_one_line(capsys, folder, tmp_path):
    code, _, err = run(capsys, "fill", tmp_path / "none.txt", "--at", "1:1", "--model", folder)
    assert code == 2 and "the text cannot be read" in err
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    code, _, err = run(capsys, "edit", tmp_path / "binary", "--model", folder)
    assert code == 2 and "byte 0 is not UTF-8" in err


def test_eval_structure_shows_what_keeping_to_a_language_changes(capsys, folder):
    ask = ["--schemas", 2, "--regexes", 3, "--steps", 2]
    code, out, err = run(capsys, "eval", "structure", "--model", folder, *ask, "--free")
    kept, free = (line.split() for line in out.splitlines() if line.split()[1] == "regex")
    assert code == 0 and kept[:4] == ["diffusion", "regex", "3", "3"] and free[:3] == ["free", "regex", "3"]
    assert int(free[3]) < 3 and "invalid" not in err
    code, out, _ = run(capsys, "eval", "structure", "--model", folder, *ask, "--free", "--json")
    told = json.loads(out)
    assert code == 0 and told["valid_by_steps"] == {"2": 1.0} and told["free"]["regex"]["valid"] == int(free[3])


def test_eval_structure_counts_what_is_valid(capsys, folder):
    ask = ("--schemas", 3, "--regexes", 3, "--mode", "both")
    code, out, _ = run(capsys, "eval", "structure", "--model", folder, *ask, "--json")
    found = json.loads(out)
    assert code == 0 and found["schema"]["valid"] == found["ar"]["regex"]["valid"] == 3
    code, out, _ = run(capsys, "eval", "structure", "--model", folder, *ask, "--random-weights")
    assert code == 0 and out.splitlines()[0].split()[:4] == ["MODE", "KIND", "NUM", "VALID"]


def test_places_in_a_text():
    assert split_at("ab\r\ncd", "2:1", None) == ["ab\r\n", "cd"]
    assert split_at("ab\n", "1:3", None) == ["ab", "\n"]
    assert split_at("", "1:1", None) == ["", ""] and split_at("a\n", "2:1", None) == ["a\n", ""]
    assert split_at("a\x0cb\nc", "2:1", None) == ["a\x0cb\n", "c"]
    assert span_of("a\n\n\nb\n", "1-3") == (0, 3)
    assert split_at("aXbXc", None, "X") == ["a", "b", "c"]
    assert span_of("a\r\nbc\nd", "2-3") == (3, 7) and span_of("a\r\nbc\nd", "1") == (0, 1)


def test_a_write_that_fails_leaves_the_file(tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"cannot be written: .*No space left.*; it is as it was"):
        write_atomically(file, "new", over="old")
    assert read_text(file) == "old" and [f.name for f in tmp_path.iterdir()] == ["text"]


def test_a_file_that_has_changed_meanwhile_is_left(tmp_path):
    file = tmp_path / "text"
    file.write_text("saved since")
    with pytest.raises(RequestError, match=r"text has changed since it was read; it is left as it is"):
        write_atomically(file, "new", over="old")
    assert file.read_text() == "saved since" and [f.name for f in tmp_path.iterdir()] == ["text"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new", over="old")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_eval_fill_edit_and_decide_report(capsys, folder, file, tmp_path):
    ask = (file, "--model", folder, "--num", 2, "--json")
    code, out, _ = run(capsys, "eval", "fill", *ask, "--gap-tokens", 3, "--candidates", 1, "--steps", 2)
    report = json.loads(out)
    assert code == 0 and report["diffusion"]["preserved"] == 1.0 and report["ar"]["num"] == 2
    code, out, _ = run(capsys, "eval", "edit", *ask, "--span-tokens", 3, "--candidates", 1, "--steps", 2)
    assert code == 0 and json.loads(out)["outside"] == 1.0
    code, out, _ = run(capsys, "eval", "decide", *ask, "--style", "texts")
    assert code == 0 and json.loads(out)["num"] == 2
    for task in ("fill", "edit", "decide"):
        code, _, err = run(capsys, "eval", task, tmp_path / "none.txt", "--model", folder)
        assert code and "cannot read" in err and "none.txt" in err
    for task, flags in (("fill", ("--candidates", 1, "--steps", 2)), ("edit", ("--candidates", 1, "--steps", 2)),
                        ("decide", ("--style", "texts"))):  # fmt: skip
        code, out, _ = run(capsys, "eval", task, *ask[:-1], *flags)
        assert code == 0 and "num" in out.lower()
