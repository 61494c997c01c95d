"""`presswork eval fill`."""

from typing import Annotated

import typer

from presswork.cli.model import open_engine
from presswork.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    StepsOption,
    TextsArgument,
    only_given,
)
from presswork.cli.output import print_columns, print_json
from presswork.cli.progress import counting_bar
from presswork.cli.verbs.eval.modes import chosen_modes
from presswork.weights.hub import DEFAULT_MODEL


def fill(
    context: typer.Context,
    files: TextsArgument,
    model: ModelOption = DEFAULT_MODEL,
    num: Annotated[int, typer.Option(help="Gaps, drawn by the seed.", min=1)] = 200,
    gap_tokens: Annotated[int, typer.Option(help="Most tokens a gap is made of.", min=1)] = 8,
    candidates: Annotated[int, typer.Option(help="Ways to fill each gap, the likeliest counts.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of what is drawn and of the requests.", min=0)] = 0,
    steps: StepsOption = None,
    mode: Annotated[str, typer.Option(metavar="both|diffusion|ar", help="What to run.")] = "both",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take stretches out of texts and fill the gaps.

    Reports the share of gaps filled with what stood there, and of texts that came back byte for byte around them. The
    same weights, one token at a time, see only what stands before a gap, and are told how long it was.

    \b
    Examples:
      presswork eval fill src/*.py --num 100
      presswork eval fill texts.jsonl --gap-tokens 4 --json
    """
    from presswork.tasks.canvas.fill import evaluate_fill
    from presswork.tasks.canvas.texts import cut_tasks

    modes = chosen_modes(mode)
    sampling = only_given(max_denoising_steps=steps)
    engine = open_engine(context.obj, model, device=device, dtype=dtype, sampling=sampling)
    tasks = cut_tasks(engine, files, num, seed, max_tokens=gap_tokens)
    parts = {}
    for name in modes:
        given = {**sampling, "num_candidates": candidates} if name == "diffusion" else {}
        with counting_bar(f"filling gaps ({name})", num) as count:
            # A gap may take more than was there.
            found = evaluate_fill(engine, tasks, seed, max_tokens=2 * gap_tokens, mode=name, on_progress=count, **given)
        parts[name] = found
    if as_json:
        print_json({"model": model, "seed": seed, "gap_tokens": gap_tokens, **parts})
        return
    rows: list[tuple[str, ...]] = [("MODE", "NUM", "EXACT", "PRESERVED", "STEPS", "SECONDS")]
    for name, found in parts.items():
        shares = (f"{found[share]:.1%}" for share in ("exact", "preserved"))
        rows.append((name, str(found["num"]), *shares, f"{found['mean_steps']:.1f}", f"{found['wall_s']:.1f}"))
    print_columns(rows)
