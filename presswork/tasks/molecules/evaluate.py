"""What share of generated SMILES are molecules, different ones, and new ones; as MOSES counts."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from presswork.engine.engine import Engine
from presswork.engine.params import Mode
from presswork.errors import ConfigError, UnsupportedError
from presswork.tasks.journal import NO_JOURNAL, Found, Journal
from presswork.tasks.molecules.smiles import BOS_ID, VOCAB_SIZE

_BATCH = 64
_MAX_TOKENS = 64


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES, or None where RDKit reads no molecule, or an empty one.

    Raises:
        ConfigError: rdkit is not installed.
    """
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise ConfigError("judging molecules needs rdkit; in the checkout, pip install -e '.[molecules]'") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    molecule = Chem.MolFromSmiles(smiles)
    return None if molecule is None or not smiles else Chem.MolToSmiles(molecule)


def score(generated: Sequence[str], known: Sequence[str] = ()) -> dict[str, float]:
    """MOSES' basic metrics.

    Args:
        generated: SMILES, valid or not.
        known: canonical SMILES of the training set; without any, novelty is left out.

    Returns:
        valid: share of generated that are molecules; unique@1k and unique@10k: share of different ones among the first
        1,000 and 10,000 valid ones; novelty: share of the different valid ones that are not known.
    Source: Polykovskiy et al. 2020 (arXiv:1811.12823), section 3.
    """
    found = [canonical(smiles) for smiles in generated]
    valid = [smiles for smiles in found if smiles is not None]
    scores = {"valid": len(valid) / max(1, len(generated))}
    for name, count in (("unique@1k", 1000), ("unique@10k", 10_000)):
        scores[name] = len(set(valid[:count])) / max(1, len(valid[:count]))
    if known:
        different = set(valid)
        scores["novelty"] = len(different - set(known)) / max(1, len(different))
    return scores


def evaluate(
    engine: Engine,
    num: int,
    seed: int,
    *,
    mode: Mode = "diffusion",
    best_of: int = 1,
    known: Sequence[str] = (),
    on_progress: Callable[[int], None] | None = None,
    journal: Journal = NO_JOURNAL,
    **params: Any,
) -> dict[str, Any]:
    """Generate molecules from nothing and judge them.

    Args:
        num: how many.
        seed: the first request's; the others count on from it.
        mode: by denoising, or one token at a time with temperature 1.
        best_of: candidates a molecule, as `Engine.generate` takes it.
        known: as in `score`.
        on_progress: called with the number done.
        journal: has the molecules that are written.
        params: of the requests, fields of SamplingParams.
    Returns: num, seed, mode, best_of, the keys of `score`, mean_steps (denoise steps a molecule, those of all its
        candidates; for ar, tokens of the one given back), tokens_per_s, wall_s and five samples.
    """
    canonical("C")  # rather now than after all of them are made
    if engine.model.config.vocab_size != VOCAB_SIZE:
        raise UnsupportedError(f"model {engine.name!r} does not write SMILES; give one with the molecules' vocabulary")
    if mode == "ar":
        params = {"temperature": 1.0, **params}
    batches = []
    for start in range(0, num, _BATCH):
        seeds = range(seed + start, seed + min(num, start + _BATCH))
        batches.append(journal.once(f"{mode} {start}", partial(_written, engine, seeds, mode, best_of, params)))
        if on_progress is not None:
            on_progress(seeds.stop - seed)
    texts = [text for batch in batches for text in batch["texts"]]
    total = {name: sum(batch[name] for batch in batches) for name in ("steps", "tokens", "wall_s")}
    return {
        "num": num,
        "seed": seed,
        "mode": mode,
        "best_of": best_of,
        **score(texts, known),
        "mean_steps": (total["steps"] if mode == "diffusion" else total["tokens"]) / num,
        "tokens_per_s": total["tokens"] / total["wall_s"],
        "wall_s": total["wall_s"],
        "samples": texts[:5],
    }


def _written(engine: Engine, seeds: range, mode: Mode, best_of: int, params: dict[str, Any]) -> Found:
    """A molecule for each seed: texts, denoise steps, tokens, seconds."""
    started = time.perf_counter()
    replies = engine.generate(
        prompt_token_ids=[[BOS_ID]] * len(seeds),
        mode=mode,
        max_tokens=_MAX_TOKENS,
        seed=list(seeds),
        best_of=best_of,
        **params,
    )
    return {
        "texts": [reply.text for reply in replies],
        "steps": sum(reply.stats.num_denoise_steps for reply in replies),
        "tokens": sum(len(reply.token_ids) for reply in replies),
        "wall_s": time.perf_counter() - started,
    }
