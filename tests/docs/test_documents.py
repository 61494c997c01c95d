"""Documents keep what they promise: links resolve, examples run, listed files exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import presswork

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("example", code("python"))
def test_python_examples_run(example):
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_page_of_the_canvas_runs_from_top_to_bottom():
    blocks = code("python", (ROOT / "docs" / "canvas.md").read_text(encoding="utf-8"))
    assert len(blocks) > 1
    run = subprocess.run([sys.executable, "-c", "".join(blocks)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert run.returncode == 0, run.stderr


def shell_lines() -> list[str]:
    lines = [line for block in code("bash") for line in block.splitlines() if line.strip()]
    return [line.split("  #")[0].strip() for line in lines]


def test_there_are_examples():
    assert code("python") and len(shell_lines()) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("presswork ")])
def test_presswork_commands_run(line):
    words = shlex.split(line)
    command = [sys.executable, "-m", "presswork", *words[1:]]
    if "eval" in words:  # the full evaluation takes minutes; its arguments are what is under test
        command[command.index("--num") + 1] = "4"
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert wanted and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in wanted)


def test_the_file_map_names_files_that_exist():
    section = README.split("## Where things are")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(named) >= 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_public_names_are_documented_and_real():
    assert sorted(presswork.__all__) == presswork.__all__
    assert all(getattr(presswork, name) is not None for name in presswork.__all__)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^## `presswork\.(\w+)", page, re.MULTILINE) == presswork.__all__


def test_importing_is_quick_and_brings_no_torch():
    probe = (
        "import sys, time; t = time.perf_counter(); import presswork; d = time.perf_counter() - t; "
        "assert 'torch' not in sys.modules; assert d < 1, d"
    )
    subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT)
