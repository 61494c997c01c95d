"""Molecules around a given scaffold: its SMILES stays, and the model writes what hangs at its attachment points.

scaffold   c1ccc(*)cc1*
canvas     c 1 c c c ( ~ ~ ~ ) c c 1 ~ ~ ~ ...     ~ is the model's, as many as it wants
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from presswork.engine.engine import Engine
from presswork.errors import RequestError, UnsupportedError
from presswork.grammar.languages import Regex
from presswork.tasks.journal import NO_JOURNAL, Found, Journal
from presswork.tasks.molecules.evaluate import canonical
from presswork.tasks.molecules.smiles import CHARACTERS, VOCAB_SIZE

_GAP = Regex(".+")
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
    best_of: int = 1,
    on_progress: Callable[[int], None] | None = None,
    journal: Journal = NO_JOURNAL,
    **params: Any,
) -> dict[str, Any]:
    """Generate molecules around a scaffold and judge them.

    Args:
        scaffold: SMILES with * at each attachment point.
        num: how many.
        seed: the first molecule's; the others count on from it.
        best_of: candidates a molecule; the one the causal mode finds likeliest counts.
        on_progress: called with the number done.
        journal: has the molecules that are written.
        params: of the requests, fields of SamplingParams.
    Returns: scaffold, num, seed, best_of; valid (share that are molecules), with_scaffold (share of all that are
        molecules and have it as a part), unique (share of different ones among the valid), mean_steps (of all
        candidates), wall_s and five samples.
    Raises: RequestError, UnsupportedError; ConfigError without rdkit.
    """
    pieces = scaffold_pieces(scaffold)
    if engine.model.config.vocab_size != VOCAB_SIZE:
        raise UnsupportedError(f"model {engine.name!r} does not write SMILES; give one with the molecules' vocabulary")
    written = []
    for own in range(seed, seed + num):
        written.append(journal.once(f"scaffold {own}", partial(_around, engine, pieces, own, best_of, params)))
        if on_progress is not None:
            on_progress(len(written))
    texts = [one["text"] for one in written]
    valid = [found for found in map(canonical, texts) if found is not None]
    return {
        "scaffold": scaffold,
        "num": num,
        "seed": seed,
        "best_of": best_of,
        "valid": len(valid) / num,
        "with_scaffold": sum(contains(text, scaffold) for text in texts) / num,
        "unique": len(set(valid)) / max(1, len(valid)),
        "mean_steps": sum(one["steps"] for one in written) / num,
        "wall_s": sum(one["wall_s"] for one in written),
        "samples": texts[:5],
    }


def _around(engine: Engine, pieces: list[str], seed: int, best_of: int, params: dict[str, Any]) -> Found:
    """A molecule around a scaffold: its text, the denoise steps of all candidates, seconds."""
    room = _LENGTH - 1 - sum(map(len, pieces))
    reply = engine.fill_gaps(pieces, gap=_GAP, max_tokens=room, num_candidates=best_of, seed=seed, **params)
    return {
        "text": reply.completed,
        "steps": sum(candidate.num_denoise_steps for candidate in reply.candidates),
        "wall_s": reply.wall_s,
    }
