"""Drafts as clients see them: the canvas in pieces, each with how sure the model is of it."""

from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.events import Draft
from presswork.text.pieces import pieces, until_end


def frame(draft: Draft, engine: Engine) -> dict[str, Any]:
    """A draft as a field of a chunk that strict clients skip.

    Returns: type, canvas and step (both from 1), total (steps at most), text, and pieces of [text, entropy in nats,
        accepted]; what stands behind an end token is left out, and what is text already.
    """
    found = _until_end(draft, engine)
    return {
        "type": "diffusion_frame",
        "canvas": draft.canvas_index + 1,
        "step": draft.step,
        "total": draft.max_steps,
        "text": "".join(text for text, _, _ in found),
        "pieces": [[text, round(entropy, 4), accepted] for text, entropy, accepted in found],
    }


def _until_end(draft: Draft, engine: Engine) -> list[tuple[str, float, bool]]:
    """(text, the largest entropy, whether all was accepted) of each piece before the first end token."""
    return [
        (text, max(draft.entropy[first:last]), all(draft.accepted[first:last]))
        for text, first, last in pieces(engine.tokenizer, until_end(draft.token_ids, engine.end_ids))
        if text and last > draft.num_committed
    ]
