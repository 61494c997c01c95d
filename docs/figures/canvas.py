"""Draws a canvas as it settles under a schema, for docs/canvas.md.

python docs/figures/canvas.py docs/figures
"""

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from presswork import Draft, JsonSchema, load
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
    text = Text(f"step {draft.step:2}  ", style="cyan dim")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--model", default="code")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    engine = load(arguments.model)
    ids = engine.encode_prompt(PROMPT, raw=True)
    events = engine.stream(
        prompt_token_ids=ids, constraint=JsonSchema(SCHEMA), max_tokens=120, drafts=True, seed=arguments.seed
    )
    drafts = [event for event in events if isinstance(event, Draft)]
    last = len(drafts) - 1
    shown = sorted({round(i * last / (NUM_FRAMES - 1)) for i in range(NUM_FRAMES)})
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    for place in shown:
        console.print(frame(engine, drafts[place]))
    console.save_svg(str(arguments.out / "canvas-schema.svg"), title="a canvas settles under a schema")


if __name__ == "__main__":
    main()
