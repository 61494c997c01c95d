"""Molecules around a given scaffold: its SMILES is pinned, and the model writes what hangs at its attachment points.

scaffold   c1ccc(*)cc1*
canvas     c 1 c c c ( ~ ~ ~ ) c c 1 ~ ~ ~ ...     ~ is the model's; a last gap ends where the model ends it
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from presswork.engine.engine import Engine
from presswork.errors import RequestError, UnsupportedError
from presswork.tasks.molecules.evaluate import canonical
from presswork.tasks.molecules.smiles import BOS_ID, CHARACTERS, EOS_ID, SPECIAL, VOCAB_SIZE

MAX_GAP = 12
"""Most characters at an attachment point that is not the last of the text; each molecule draws its own numbers."""

_BATCH = 64
_LENGTH = 64


def scaffold_pieces(scaffold: str) -> list[str]:
    """The texts between attachment points, empty ones at the ends where it begins or ends with one.

    Raises:
        RequestError: no attachment point, two in a row, a character the model does not have, or no molecule.
    """
    pieces = scaffold.split("*")
    unknown = sorted(set("".join(pieces)) - set(CHARACTERS))
    if unknown:
        raise RequestError(f"scaffold {scaffold!r}: the model has no character {unknown[0]!r}; it has {CHARACTERS}")
    if len(pieces) < 2 or not all(pieces[1:-1]) or not any(pieces):
        raise RequestError(f"scaffold {scaffold!r} must mark attachment points with *, with text between any two")
    if canonical(scaffold) is None:
        raise RequestError(f"scaffold {scaffold!r} is no SMILES; give one such as 'c1ccc(*)cc1'")
    if sum(map(len, pieces)) + (len(pieces) - 1) * 2 > _LENGTH:
        raise RequestError(
            f"scaffold {scaffold!r} is too long: {_LENGTH} characters are the most, attachments included"
        )
    return pieces


def scaffold_pins(pieces: list[str], seed: int) -> dict[int, int]:
    """Pins of one molecule: the pieces, gaps of drawn lengths between them, the end behind a last piece; pure."""
    rng = np.random.default_rng(seed)
    num_inner = len(pieces) - 1 - (pieces[-1] == "")
    # What is left over is shared out, so that every draw fits.
    room = _LENGTH - sum(map(len, pieces)) - (len(pieces) - 1)
    pins: dict[int, int] = {}
    at = 0
    for number, piece in enumerate(pieces):
        if number:
            at += int(rng.integers(1, max(1, min(MAX_GAP, room // max(1, num_inner))) + 1))
        if number == len(pieces) - 1 and not piece:
            return pins
        pins |= {at + i: len(SPECIAL) + CHARACTERS.index(character) for i, character in enumerate(piece)}
        at += len(piece)
    return pins | dict.fromkeys(range(at, _LENGTH), EOS_ID)


def contains(smiles: str, scaffold: str) -> bool:
    """Whether a molecule has the scaffold without its attachment points as a part. False for what is no molecule."""
    if canonical(smiles) is None:
        return False
    from rdkit import Chem

    core = Chem.DeleteSubstructs(Chem.MolFromSmiles(scaffold), Chem.MolFromSmarts("[#0]"))
    return Chem.MolFromSmiles(smiles).HasSubstructMatch(core)


def evaluate_scaffold(
    engine: Engine,
    scaffold: str,
    num: int,
    seed: int,
    *,
    on_progress: Callable[[int], None] | None = None,
    **params: Any,
) -> dict[str, Any]:
    """Generate molecules around a scaffold and judge them.

    Args:
        scaffold: SMILES with * at each attachment point.
        num: how many.
        seed: the first molecule's, for its gaps and its request; the others count on from it.
        on_progress: called with the number done.
        params: of the requests, fields of SamplingParams.
    Returns: scaffold, num, seed; valid (share that are molecules), with_scaffold (share of all that are molecules and
        have it as a part), unique (share of different ones among the valid), mean_steps, wall_s and five samples.
    Raises: RequestError, UnsupportedError; ConfigError without rdkit.
    """
    pieces = scaffold_pieces(scaffold)
    if engine.model.config.vocab_size != VOCAB_SIZE:
        raise UnsupportedError(f"model {engine.name!r} does not write SMILES; give one with the molecules' vocabulary")
    texts: list[str] = []
    num_steps = 0
    started = time.perf_counter()
    for start in range(0, num, _BATCH):
        seeds = list(range(seed + start, seed + min(num, start + _BATCH)))
        replies = engine.generate(
            prompt_token_ids=[[BOS_ID]] * len(seeds),
            pins=[scaffold_pins(pieces, own) for own in seeds],
            seed=seeds,
            max_tokens=_LENGTH,
            # As end tokens, special ones are ruled out before the last pin.
            stop_token_ids=range(len(SPECIAL)),
            **params,
        )
        texts += [reply.text for reply in replies]
        num_steps += sum(reply.stats.num_denoise_steps for reply in replies)
        if on_progress is not None:
            on_progress(len(texts))
    wall_s = time.perf_counter() - started
    valid = [found for found in map(canonical, texts) if found is not None]
    return {
        "scaffold": scaffold,
        "num": num,
        "seed": seed,
        "valid": len(valid) / num,
        "with_scaffold": sum(contains(text, scaffold) for text in texts) / num,
        "unique": len(set(valid)) / max(1, len(valid)),
        "mean_steps": num_steps / num,
        "wall_s": wall_s,
        "samples": texts[:5],
    }
