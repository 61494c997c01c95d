"""`presswork eval molecules`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, StepsOption, only_given
from presswork.cli.output import note, print_facts, print_json
from presswork.cli.progress import counting_bar
from presswork.cli.verbs.eval.journal import JournalOption, journal_of
from presswork.cli.verbs.eval.modes import chosen_modes
from presswork.engine.params import Mode
from presswork.errors import RequestError


def molecules(
    context: typer.Context,
    model: ModelOption = "molecules",
    num: Annotated[int, typer.Option(help="Molecules to generate.", min=1)] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the first; the others count on from it.", min=0)] = 0,
    moses: Annotated[
        Path | None, typer.Option(help="The molsets wheel; its training set decides what is new.", show_default=False)
    ] = None,
    scaffold: Annotated[
        str | None, typer.Option(help="Write molecules around this SMILES, with * where something may hang.")
    ] = None,
    is_kept: Annotated[
        bool, typer.Option("--keep", help="Keep to the syntax of SMILES: branches and rings that are closed.")
    ] = False,
    steps: StepsOption = None,
    best_of: Annotated[int, typer.Option(help="Candidates a molecule; the causal mode's likeliest counts.", min=1)] = 1,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "diffusion",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    journal: JournalOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate molecules from nothing and let RDKit judge them, as MOSES counts.

    Reports the shares that are valid, different and new, denoise steps a molecule, and tokens per second. With a
    scaffold, its text stays, and the shares are of molecules that are valid, have it as a part, and differ.

    \b
    Examples:
      presswork eval molecules --num 256 --best-of 4
      presswork eval molecules --num 256 --keep --steps 16
      presswork eval molecules --num 256 --scaffold "*c1ccc(*)cc1"
      presswork eval molecules --best-of 4 --moses data/molsets-0.3.1-py3-none-any.whl --json
    """
    from presswork.tasks.molecules.evaluate import evaluate as judge
    from presswork.tasks.molecules.scaffold import evaluate_scaffold
    from presswork.tasks.molecules.syntax import smiles_syntax
    from presswork.tasks.molecules.training import read_moses

    modes = chosen_modes(mode)
    _check_steps(modes, steps)
    if scaffold is not None and (modes != ["diffusion"] or moses is not None or is_kept):
        raise RequestError("--scaffold fills gaps and counts nothing new: leave out --moses, --keep and other modes")
    known = [] if moses is None else read_moses(moses, "train")
    sampling = only_given(max_denoising_steps=steps)
    kept = {"constraint": smiles_syntax()} if is_kept else {}
    engine = open_engine(context.obj, model, device=device, dtype=dtype)
    parts = {}
    with journal_of(context, engine, journal) as done:
        for name in modes:
            given = {**(sampling if name == "diffusion" else {}), **kept, "best_of": best_of, "journal": done}
            with counting_bar(f"writing molecules ({name})", num) as count:
                if scaffold is not None:
                    parts[name] = evaluate_scaffold(engine, scaffold, num, seed, on_progress=count, **given)
                else:
                    parts[name] = judge(engine, num, seed, mode=name, known=known, on_progress=count, **given)
    if as_json:
        print_json({"model": model, **parts[modes[0]], **({"ar": parts["ar"]} if len(modes) > 1 else {})})
    else:
        _print_molecules(parts, num, seed)


def _check_steps(modes: Sequence[Mode], steps: int | None) -> None:
    if modes == ["ar"] and steps is not None:
        raise RequestError("mode 'ar' takes no denoise steps: leave out --steps")


def _print_molecules(parts: Mapping[str, Mapping[str, Any]], num: int, seed: int) -> None:
    for name, part in parts.items():
        note(f"{name}, {num} molecules from seed {seed}")
        print_facts({key: f"{value:.3f}" if isinstance(value, float) else value for key, value in part.items()})
