"""Draws canvases as they settle: a Sudoku's for the README, and one under a schema for docs/canvas.md.

python docs/figures/canvas.py docs/figures
"""

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from presswork import Draft, JsonSchema, load
from presswork.cli.watch import canvas_text
from presswork.tasks.sudoku.encoding import decode_solution, encode_prompts
from presswork.tasks.sudoku.evaluate import is_solved
from presswork.tasks.sudoku.generate import Clues, generate
from presswork.text.pieces import pieces, until_end

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{3,8}(_[a-z]{2,8}){0,2}$"},
        "kind": {"enum": ["function", "class", "module"]},
        "lines": {"type": "integer", "minimum": 1, "maximum": 999},
        "public": {"type": "boolean"},
    },
    "required": ["name", "kind", "lines", "public"],
}
PROMPT = '''def parse_header(line):
    """Split a header line at its colon."""
    return line.split(":")


# {"name": "parse_header", "kind": "function", "lines": 3, "public": true}
# '''
FORCED_NATS = 1e-6
NUM_FRAMES = 6


def frame(engine, draft: Draft) -> Text:
    """A draft's text: what the schema forces in cyan, the rest as bright as it is certain."""
    text = Text.assemble((f"step {draft.step:2}  ", "cyan dim"))
    for piece, first, last in pieces(engine.tokenizer, until_end(draft.token_ids, engine.end_ids)):
        entropy = max(draft.entropy[first:last])
        level = 70 + round(160 * max(0.0, 1.0 - entropy / 2.5))
        style = (
            Style(color="cyan")
            if entropy < FORCED_NATS
            else Style(color=f"rgb({level},{level},{level})", bold=entropy < 0.02)
        )
        text.append(piece, style=style)
    return text


def evenly(drafts: list[Draft]) -> list[Draft]:
    """The first draft, the last, and as many between as there is room for."""
    last = len(drafts) - 1
    return [drafts[place] for place in sorted({round(i * last / (NUM_FRAMES - 1)) for i in range(NUM_FRAMES)})]


def draw_sudoku(file: Path) -> None:
    """A minimal puzzle's canvas as `presswork run --watch` shows it; of fresh ones the first that is solved slowly."""
    engine = load("sudoku")
    for puzzle in generate(50, 3, Clues())[0]:
        events = engine.stream(prompt_token_ids=encode_prompts(puzzle[None])[0].tolist(), drafts=True)
        drafts = [event for event in events if isinstance(event, Draft)]
        if len(drafts) > NUM_FRAMES and is_solved(puzzle, decode_solution(drafts[-1].token_ids)):
            break
    table = Table.grid(padding=(0, 4))
    shown = evenly(drafts)
    table.add_row(*(Text(f"step {draft.step}\n", style="cyan dim") for draft in shown))
    table.add_row(*(canvas_text(draft, engine.tokenizer, engine.end_ids) for draft in shown))
    save(table, file, f"a puzzle of {(puzzle > 0).sum()} clues settles", width=80)


def draw_schema(file: Path) -> None:
    """A canvas that keeps to a schema."""
    engine = load("code")
    ids = engine.encode_prompt(PROMPT, raw=True)
    events = engine.stream(prompt_token_ids=ids, constraint=JsonSchema(SCHEMA), max_tokens=120, drafts=True, seed=0)
    drafts = [event for event in events if isinstance(event, Draft)]
    lines = Text("\n").join(frame(engine, draft) for draft in evenly(drafts))
    save(lines, file, "a canvas settles under a schema", width=100)


def save(drawn: Text | Table, file: Path, title: str, *, width: int) -> None:
    """What rich would print, as an SVG of a terminal."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(drawn)
    console.save_svg(str(file), title=title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    folder = parser.parse_args().out
    draw_sudoku(folder / "canvas-sudoku.svg")
    draw_schema(folder / "canvas-schema.svg")


if __name__ == "__main__":
    main()
