"""What holds for every file of the repository: sizes, and nothing that is true on one machine only."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = {
    ".git",
    ".venv",
    "__pycache__",
    "build",
    "dist",
    "runs",
    ".pytest_cache",
    ".ruff_cache",
    ".import_linter_cache",
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120

# Written in parts, so that this file does not break its own rules.
LOCAL_PATH = re.compile(r"(?<![\w.~/-])/(?:" + "|".join(("tmp", "work", "home", "root", "Users")) + r")/\w")
REGISTRY = re.compile(
    "|".join(rf"\b{name}\.{end}\b" for name, end in (("pypi", "org"), ("npmjs", "(?:com|org)"), ("debian", "org")))
)


@cache
def tracked() -> tuple[Path, ...]:
    """Files that git knows or would take; everything but caches where there is no git (a source archive)."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not IGNORED & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in set(paths) if path.is_file()))


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text file."""
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            yield str(path.relative_to(ROOT)), data.decode("utf-8")


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def is_kernel_file(path: Path) -> bool:
    return "ops" in path.relative_to(ROOT).parts or path.name == "_kernels.py"


def long_functions(path: Path) -> list[str]:
    limit = MAX_KERNEL_LINES if is_kernel_file(path) else MAX_FUNCTION_LINES
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > limit:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines, at most {limit}")
    return found


def test_the_listing_finds_this_file():
    assert Path(__file__).resolve() in tracked()


@pytest.mark.parametrize("pattern", [LOCAL_PATH, REGISTRY], ids=["local path", "registry host"])
def test_no_file_names_what_exists_on_one_machine_only(pattern: re.Pattern[str]):
    found = [
        f"{name}:{number} {match[0]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found


@pytest.mark.parametrize("text", ["see /" + "tmp/x", '"/' + 'home/me/model"', "(/" + "work/data)"])
def test_a_local_path_is_recognised(text: str):
    assert LOCAL_PATH.search(text)


@pytest.mark.parametrize("text", ["docs/" + "tmp/x", "~/" + "work/data", "https://host/" + "home/x", "/" + "tmp"])
def test_other_paths_are_let_through(text: str):
    assert not LOCAL_PATH.search(text)


def test_python_files_are_not_too_long():
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in python_files()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_functions_are_not_too_long():
    assert not [line for path in python_files() for line in long_functions(path)]


def test_there_is_no_large_file_but_the_embedded_models():
    large = [path.relative_to(ROOT) for path in tracked() if path.stat().st_size > 1 << 20]
    assert not [str(path) for path in large if path.parts[:2] != ("presswork", "assets")]
