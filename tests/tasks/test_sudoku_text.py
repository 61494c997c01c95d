"""Sudoku as tokens and text: encoding, tokenizer, chat template, puzzle files, and the arithmetic of the evaluation."""

import jinja2
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from presswork.engine.engine import Engine
from presswork.engine.events import Reply, Stats, Usage
from presswork.errors import RequestError, TemplateError
from presswork.tasks.sudoku.encoding import (
    CELL_ID,
    DIGIT_ID,
    EOS_ID,
    SEPARATORS,
    SOLVE_ID,
    VOCAB_SIZE,
    decode_solution,
    describe,
    encode_prompts,
    encode_solutions,
    format_grid,
    read_puzzle,
    vocabulary,
)
from presswork.tasks.sudoku.evaluate import evaluate, evaluate_puzzles, is_solved, load_puzzles, num_cells_right
from presswork.tasks.sudoku.generate import Clues, solve
from presswork.tasks.sudoku.tokenizer import build_tokenizer
from presswork.testing import fixture_model, tiny_config
from presswork.text.chat import ChatTemplate
from presswork.text.stream import IncrementalDecoder
from presswork.text.tokenizer import Tokenizer

PUZZLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def cells(text):
    return np.array([int(c) for c in text], np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sudoku")
    build_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_folder(folder)


def render_plainly(folder, messages):
    """The template under jinja2's own sandbox with the settings checkpoints are written for."""

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=True, bos_token="<bos>")


# Encoding


def test_the_vocabulary_is_in_its_published_order():
    tokens = vocabulary()
    assert tokens[:14] == ["<pad>", "<eos>", "<bos>", "<unk>", "\n", *"123456789"]
    assert (tokens[14], tokens[19], tokens[24], tokens[14 + 809]) == ("<r1c1d0>", "<r1c1d5>", "<r1c2d0>", "<r9c9d9>")
    assert tokens[824] == "<|solve|>"
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    assert VOCAB_SIZE % 32 == 0


def test_a_prompt_names_each_cell_with_its_clue():
    tokens = vocabulary()
    (prompt,) = encode_prompts(cells(PUZZLE)[None])
    assert prompt.dtype == np.int64
    assert [tokens[i] for i in prompt[:12]] == [
        "<bos>", "<r1c1d5>", "<r1c2d3>", "<r1c3d0>", "<r1c4d0>", "<r1c5d7>", "<r1c6d0>", "<r1c7d0>", "<r1c8d0>",
        "<r1c9d0>", "\n", "<r2c1d6>",
    ]  # fmt: skip
    assert [tokens[i] for i in prompt[-3:]] == ["<r9c9d9>", "\n", "<|solve|>"]


def test_a_canvas_position_stands_91_after_its_cell():
    tokens = vocabulary()
    sequence = np.concatenate([encode_prompts(cells(SOLUTION)[None])[0], encode_solutions(cells(SOLUTION)[None])[0]])
    assert len(sequence) == 92 + 90
    for position in range(92, 181):
        here, there = tokens[sequence[position]], tokens[sequence[position - 91]]
        assert here == there == "\n" or there.endswith(f"d{here}>")


def test_decoding_is_the_inverse_of_encoding():
    canvas = encode_solutions(cells(SOLUTION)[None])[0]
    np.testing.assert_array_equal(decode_solution(canvas.tolist()), cells(SOLUTION))


@pytest.mark.parametrize(
    ("position", "token"), [(0, 4), (9, 5), (89, 4), (40, 14), (40, 3), (44, SOLVE_ID), (88, EOS_ID)]
)
def test_a_canvas_out_of_shape_is_no_grid(position, token):
    canvas = encode_solutions(cells(SOLUTION)[None])[0]
    canvas[position] = token
    assert decode_solution(canvas) is None
    assert decode_solution(canvas[:-1]) is None


def test_a_solution_with_an_empty_cell_is_refused():
    with pytest.raises(RequestError, match="full grids"):
        encode_solutions(cells(PUZZLE)[None])


# Text


@pytest.mark.parametrize("empty", "0._*")
def test_puzzles_are_read_in_every_customary_form(empty):
    text = PUZZLE.replace("0", empty)
    lines = "\n".join(f"|{text[9 * r : 9 * r + 9]}|" for r in range(9))
    for form in (text, lines, f"+---+\r\n{lines}\n+---+", " ".join(text), f"┌──┐{text}└──┘"):
        np.testing.assert_array_equal(read_puzzle(form), cells(PUZZLE))


def test_a_formatted_grid_is_read_back():
    text = format_grid(cells(PUZZLE))
    assert text.splitlines()[:4] == [
        "5 3 . | . 7 . | . . .",
        "6 . . | 1 9 5 | . . .",
        ". 9 8 | . . . | . 6 .",
        "-" * 6 + "+-------+------",
    ]
    np.testing.assert_array_equal(read_puzzle(text), cells(PUZZLE))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PUZZLE[:-1], "80 cells, expected 81"),
        (PUZZLE + "1", "82 cells, expected 81"),
        ("", "0 cells"),
        (PUZZLE[:40] + "x" + PUZZLE[41:], "unexpected 'x' at character 41"),
        ("55" + "0" * 79, "r1c1 and r1c2 are both 5 and share a row"),
        ("4" + "0" * 35 + "4" + "0" * 44, "r1c1 and r5c1 are both 4 and share a column"),
        ("0" * 60 + "2" + "0" * 19 + "2", "r7c7 and r9c9 are both 2 and share a box"),
    ],
)
def test_what_is_no_puzzle_is_refused_by_name(text, message):
    with pytest.raises(RequestError, match=message):
        read_puzzle(text)


def test_a_puzzle_is_described_with_a_warning_where_needed():
    assert describe(cells(PUZZLE)) == "30 clues; one solution"
    assert describe(cells("0" * 81)) == "0 clues; warning: several solutions"
    assert describe(cells("123456780000000009" + "0" * 63)) == "9 clues; warning: no solution"
    assert describe(cells("55" + "0" * 79)) == (
        "2 clues; warning: no solution, r1c1 and r1c2 are both 5 and share a row"
    )


# Tokenizer and template


def test_every_token_has_its_id_in_the_tokenizer(tokenizer):
    assert [tokenizer.id_of(token) for token in vocabulary()] == list(range(VOCAB_SIZE))
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert (tokenizer.special_tokens["bos_token"], tokenizer.special_tokens["eos_token"]) == ("<bos>", "<eos>")


def test_a_canvas_decodes_to_nine_lines(tokenizer):
    canvas = encode_solutions(cells(SOLUTION)[None])[0].tolist()
    expected = "\n".join(SOLUTION[9 * r : 9 * r + 9] for r in range(9))
    assert tokenizer.decode(canvas) == expected
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(decoder.push([token]) for token in canvas) + decoder.flush() == expected
    assert tokenizer.encode(expected, add_special_tokens=False) == canvas[:-1]
    assert tokenizer.encode("12") == [2, 5, 6]


@pytest.mark.parametrize("empty", "0._*")
def test_a_rendered_puzzle_encodes_to_the_prompt(folder, tokenizer, empty):
    text = format_grid(cells(PUZZLE)).replace(".", empty) + "\n"
    messages = [
        {"role": "user", "content": "not a puzzle"},
        {"role": "assistant", "content": SOLUTION},
        {"role": "user", "content": text},
    ]
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template is not None
    expected = encode_prompts(cells(PUZZLE)[None])[0].tolist()
    rendered = template.render(messages)
    assert rendered == render_plainly(folder, messages)
    assert tokenizer.encode(rendered, add_special_tokens=False) == expected
    parts = [{"role": "user", "content": [{"type": "text", "text": text[:30]}, {"type": "text", "text": text[30:]}]}]
    assert template.render(parts) == rendered


def test_the_template_skips_the_separators_that_read_puzzle_skips(folder, tokenizer):
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template is not None
    text = SEPARATORS + " \t\r\n\v" + PUZZLE
    np.testing.assert_array_equal(read_puzzle(text), cells(PUZZLE))
    assert template.render([{"role": "user", "content": text}]).count("<r") == 81


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PUZZLE[:-1], "the puzzle has 80 cells, expected 81"),
        (PUZZLE * 2, "the puzzle has 162 cells, expected 81"),
        ("solve " + PUZZLE, "unexpected character s in the puzzle"),
        ("", "the puzzle has 0 cells"),
    ],
)
def test_the_template_refuses_what_is_no_puzzle_in_one_line(folder, tokenizer, content, message):
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template is not None
    with pytest.raises(TemplateError, match=message) as caught:
        template.render([{"role": "user", "content": content}])
    assert "\n" not in str(caught.value)
    with pytest.raises(jinja2.TemplateError, match=message):
        render_plainly(folder, [{"role": "user", "content": content}])


def test_the_template_refuses_a_conversation_without_a_user(folder, tokenizer):
    template = ChatTemplate.from_folder(folder, tokenizer)
    assert template is not None
    with pytest.raises(TemplateError, match="no user message"):
        template.render([{"role": "system", "content": PUZZLE}])


@pytest.mark.slow
def test_transformers_reads_the_folder_the_same_way(folder):
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(folder)
    ids = library.apply_chat_template([{"role": "user", "content": PUZZLE}], tokenize=True, return_dict=False)
    assert ids == encode_prompts(cells(PUZZLE)[None])[0].tolist()


# Evaluation


def test_a_puzzle_file_gives_puzzles_and_solutions(tmp_path):
    path = tmp_path / "list.txt"
    dotted = PUZZLE.replace("0", ".")
    path.write_text(f"# three ways\n{PUZZLE}\n\n{dotted},{SOLUTION}\n{dotted} {SOLUTION}\n")
    puzzles, solutions = load_puzzles(path)
    np.testing.assert_array_equal(puzzles, [cells(PUZZLE)] * 3)
    np.testing.assert_array_equal(solutions, [cells(SOLUTION)] * 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PUZZLE[:-1], "line 2: puzzle: 80 cells"),
        ("0" * 81, "line 2: the puzzle has several solutions"),
        ("123456780000000009" + "0" * 63, "line 2: the puzzle has no solutions"),
        (f"{PUZZLE},{SOLUTION[::-1]}", "line 2: the second field is not the puzzle's solution"),
        (f"{PUZZLE},{SOLUTION},7", "line 2: 3 fields"),
    ],
)
def test_a_wrong_line_of_a_puzzle_file_is_named(tmp_path, line, message):
    path = tmp_path / "list.txt"
    path.write_text(f"{PUZZLE}\n{line}\n")
    with pytest.raises(RequestError, match=message):
        load_puzzles(path)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    (tmp_path / "none.txt").write_text("# nothing\n")
    for name, message in (("none.txt", "no puzzles"), ("absent.txt", "cannot be read")):
        with pytest.raises(RequestError, match=rf"{name}: {message}"):
            load_puzzles(tmp_path / name)


def test_only_a_full_valid_grid_with_the_clues_is_solved():
    puzzle, solution = cells(PUZZLE), cells(SOLUTION)
    assert is_solved(puzzle, solution)
    relabelled = 1 + solution % 9
    assert is_solved(np.zeros(81, int), relabelled)
    assert not is_solved(puzzle, relabelled)
    rows_only = np.tile(np.arange(1, 10), 9)
    latin = np.array([1 + (r + c) % 9 for r in range(9) for c in range(9)])
    for grid in (rows_only, rows_only.reshape(9, 9).T.reshape(81), latin):
        assert not is_solved(np.zeros(81, int), grid)


def test_right_cells_count_in_ill_formed_canvases_too():
    canvas = encode_solutions(cells(SOLUTION)[None])[0]
    assert num_cells_right(canvas, cells(SOLUTION)) == 81
    canvas[[0, 9, 20]] = 4, 5, 3
    assert num_cells_right(canvas, cells(SOLUTION)) == 79
    assert num_cells_right(canvas[:20], cells(SOLUTION)) == 17


class RecordedEngine:
    """Answers each mode with given canvases, one call or several."""

    def __init__(self, canvases):
        self.canvases, self.calls = {mode: list(rows) for mode, rows in canvases.items()}, []

    def generate(self, *, prompt_token_ids, mode, **params):
        self.calls.append((mode, prompt_token_ids, params))
        return [self._reply(self.canvases[mode].pop(0), mode) for _ in prompt_token_ids]

    @staticmethod
    def _reply(ids, mode):
        stats = Stats(
            num_canvases=1, num_denoise_steps=6 if mode == "diffusion" else 0, num_passes=9, wall_s=1.0,
            first_text_s=1.0, completion_tokens=len(ids),
        )  # fmt: skip
        usage = Usage(prompt_tokens=92, cached_tokens=0, completion_tokens=len(ids))
        return Reply(text="", token_ids=list(ids), finish_reason="stop", usage=usage, stats=stats)


def test_an_evaluation_reports_both_modes():
    right = encode_solutions(cells(SOLUTION)[None])[0]
    wrong, short = right.copy(), right[:45]
    wrong[[2, 3]] = wrong[[3, 2]]
    engine = RecordedEngine({"diffusion": [right] * 66 + [wrong] * 4, "ar": [right] * 35 + [short] * 35})
    puzzles, solutions = np.tile(cells(PUZZLE), (70, 1)), np.tile(cells(SOLUTION), (70, 1))
    seen = []
    report = evaluate_puzzles(engine, puzzles, solutions, 7, on_progress=lambda mode, done: seen.append((mode, done)))  # type: ignore[arg-type]
    assert (report["num"], report["seed"], report["mean_steps"]) == (70, 7, 6)
    assert report["solved"] == 66 / 70
    assert report["cells"] == pytest.approx(1 - 8 / (70 * 81))
    assert report["tokens_per_s"] == pytest.approx(70 * 90 / report["wall_s"])
    assert (report["ar"]["solved"], report["ar"]["mean_steps"]) == (0.5, 67.5)
    assert report["ar"]["cells"] == pytest.approx((81 + 41) / 162)
    assert seen == [("diffusion", 64), ("diffusion", 70), ("ar", 64), ("ar", 70)]
    modes, prompts, params = zip(*engine.calls, strict=True)
    assert prompts[0][0] == encode_prompts(puzzles)[0].tolist()
    assert params[0] == {"max_tokens": 90, "seed": 7}
    assert params[2] == {"max_tokens": 90, "seed": 7, "temperature": 0.0}
    assert modes == ("diffusion", "diffusion", "ar", "ar")


class SolvingEngine(RecordedEngine):
    """Solves what its prompts say, or swaps two cells of the solution, as told for each prompt in turn."""

    def __init__(self, is_right):
        super().__init__({})
        self.is_right, self.puzzles = list(is_right), []

    def generate(self, *, prompt_token_ids, mode, **params):
        self.calls.append((mode, prompt_token_ids, params))
        return [self._reply(self._answer(ids), mode) for ids in prompt_token_ids]

    def _answer(self, ids):
        lines = np.array(ids[1:91]).reshape(9, 10)[:, :9]
        self.puzzles.append((lines.reshape(81) - CELL_ID) % 10)
        canvas = encode_solutions(solve(self.puzzles[-1])[None])[0]
        if not self.is_right.pop(0):
            canvas[[2, 3]] = canvas[[3, 2]]
        return canvas


def test_further_tries_take_only_what_breaks_the_rules():
    """Four puzzles; 0 is solved at once, 2 in the second try, 3 in the third, 1 never."""
    engine = SolvingEngine([True, False, False, False, False, True, False, False, True])
    puzzles, solutions = np.tile(cells(PUZZLE), (4, 1)), np.tile(cells(SOLUTION), (4, 1))
    seen = []
    report = evaluate_puzzles(
        engine, puzzles, solutions, 7, with_ar=False, tries=3, on_progress=lambda _, done: seen.append(done)  # type: ignore[arg-type]
    )  # fmt: skip
    assert report["solved"] == 0.75 and report["solved_by_try"] == [0.25, 0.5, 0.75]
    assert report["mean_steps"] == 6 * 9 / 4
    assert report["cells"] == pytest.approx(1 - 2 / (4 * 81))
    assert seen == [1, 2, 4]
    assert [len(prompts) for _, prompts, _ in engine.calls] == [4, 3, 2]
    assert len({params["seed"] for *_, params in engine.calls}) == 3


@pytest.mark.parametrize(("form", "fields"), [({}, set()), ({"is_kept": True}, {"constraint"}),
                                              ({"is_held": True}, {"constraint", "pins"})])  # fmt: skip
def test_canvases_are_free_kept_or_held(form, fields):
    engine = SolvingEngine([True])
    evaluate_puzzles(engine, cells(PUZZLE)[None], cells(SOLUTION)[None], 7, with_ar=False, **form)  # type: ignore[arg-type]
    ((_, _, params),) = engine.calls
    assert set(params) == {"max_tokens", "seed"} | fields


def test_further_tries_see_a_puzzle_under_other_symmetries():
    engine = SolvingEngine([False, False, False])
    puzzles, solutions = cells(PUZZLE)[None], cells(SOLUTION)[None]
    report = evaluate_puzzles(engine, puzzles, solutions, 7, with_ar=False, tries=3, is_held=True)  # type: ignore[arg-type]
    assert report["solved"] == 0 and report["cells"] == pytest.approx(79 / 81)
    first, second, third = engine.puzzles
    assert (first == puzzles[0]).all() and (second != first).any() and (third != second).any()
    for (_, _, params), puzzle in zip(engine.calls, engine.puzzles, strict=True):
        held = {place // 10 * 9 + place % 10: token for place, token in params["pins"][0].items()}
        assert held == {int(i): DIGIT_ID + int(puzzle[i]) for i in np.flatnonzero(puzzle)}


@pytest.mark.slow
def test_an_evaluation_runs_on_the_engine():
    engine = Engine(fixture_model(tiny_config(vocab_size=VOCAB_SIZE, canvas_length=90)))
    report = evaluate(engine, 3, Clues((30, 45)), 1, max_denoising_steps=2, ignore_eos=True)
    assert (report["num"], report["clues"], report["solved"], report["mean_steps"]) == (3, "30-45", 0.0, 2.0)
    assert report["tokens_per_s"] == pytest.approx(3 * 90 / report["wall_s"])
    assert set(report) - set(report["ar"]) == {"num", "clues", "seed", "ar"}
