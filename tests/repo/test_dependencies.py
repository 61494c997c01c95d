"""The declared dependencies are those that are imported, no more and no fewer."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from presswork import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Used by the Makefile, not imported.
TOOLS = {"ruff", "pyright", "import_linter", "pytest_xdist"}


def declared(requirements: list[str]) -> set[str]:
    """Names of requirements, as they are imported."""
    return {re.split(r"[^\w-]", line, maxsplit=1)[0].replace("-", "_").lower() for line in requirements}


def imported(*folders: str) -> set[str]:
    """Top-level third-party packages that the Python files below the folders import."""
    names: set[str] = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names.add(node.module.split(".")[0])
    own = {path.stem for folder in folders for path in (ROOT / folder).rglob("*")}
    return names - set(sys.stdlib_module_names) - own - {"presswork", "tests"}


OPTIONAL = set().union(*(declared(extra) for name, extra in EXTRAS.items() if name != "dev"))


def test_what_the_package_imports_is_declared_and_nothing_else():
    # Imported through torch.
    assert imported("presswork") == declared(PROJECT["dependencies"]) | OPTIONAL - {"tensorboard"}


def test_what_tests_recipes_and_benchmarks_import_beyond_that_is_in_dev():
    extra = imported("tests", "recipes", "benchmarks", "docs") - declared(PROJECT["dependencies"])
    assert extra | TOOLS | OPTIONAL == declared(EXTRAS["dev"])


def test_every_dependency_has_its_reason_written_down_and_no_other():
    page = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text(encoding="utf-8").lower().replace("-", "_")
    rows = re.findall(r"^\| (\w[\w, ]*?) \|", page, re.MULTILINE)
    listed = {name.strip() for row in rows for name in row.split(",")} - {
        "runtime library",
        "development tool or extra",
    }
    assert listed == declared(PROJECT["dependencies"]) | declared(EXTRAS["dev"])


def test_the_version_is_said_once_and_the_same():
    assert PROJECT["version"] == __version__
