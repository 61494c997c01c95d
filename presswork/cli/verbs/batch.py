"""`presswork batch`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from presswork.cli.model import apply_threads
from presswork.cli.options import DeviceOption, DtypeOption, JsonOption
from presswork.cli.output import note, print_json
from presswork.cli.progress import progress_bar
from presswork.cli.verbs.serve import AdaptersOption, check_sources, named_adapters, named_models
from presswork.engine.engine import EngineConfig
from presswork.errors import DataError

if TYPE_CHECKING:
    from presswork.server.batch import BatchLine
    from presswork.server.config import ServerConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def batch(
    context: typer.Context,
    requests: Annotated[Path, typer.Argument(help="Requests, one a line, in OpenAI's batch format (.jsonl).")],
    answers: Annotated[Path, typer.Argument(help="Where answers go, one a line; a run that broke off goes on.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            show_default=False,
            help="What requests may name; the first is the default. May be given several times.",
        ),
    ] = None,
    adapter: AdaptersOption = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 32,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a file of requests; every request gets exactly one line.

    Requests are those of /v1/chat/completions, /v1/completions, /v1/responses and /v1/messages. What was answered
    before is not asked again, unless the answer was that the server could not.

    \b
    Examples:
      presswork batch in.jsonl out.jsonl
      presswork batch in.jsonl out.jsonl --model FOLDER --concurrency 64
      presswork batch in.jsonl out.jsonl --model base=FOLDER --adapter letters=runs/lora/adapter
    """
    from presswork.server.batch import answered, read_batch
    from presswork.server.config import ServerConfig
    from presswork.text.lock import kept_from_others

    apply_threads(context.obj)
    models = named_models(model)
    config = ServerConfig(
        models=models, adapters=named_adapters(adapter, next(iter(models))), device=device, dtype=dtype,
        engine=EngineConfig(max_running=concurrency),
    )  # fmt: skip
    check_sources(config)
    lines = read_batch(requests)
    if answers.exists() and requests.samefile(answers):
        raise DataError(f"requests and answers are the same file, {answers}; give another one for the answers")
    if answers.exists() and not answers.is_file():
        raise DataError(f"{answers} cannot hold answers: it is no file; give another one")
    with kept_from_others(answers):
        known = answered(answers)
        left = [line for line in lines if line.custom_id not in known]
        num_failed = _run(left, answers, config)
    if as_json:
        print_json({"num": len(lines), "asked": len(left), "failed": num_failed})
    else:
        note(f"{len(left)} requests asked, {num_failed} with an error, {len(lines) - len(left)} known from before")


def _run(left: "list[BatchLine]", answers: Path, config: "ServerConfig") -> int:
    """Ask what is left; returns how many were answered with an error."""
    from presswork.server.app import create_app
    from presswork.server.batch import run_batch

    num_failed = 0
    with progress_bar("requests", len(left)) as advance:

        def on_done(is_good: bool) -> None:
            nonlocal num_failed
            num_failed += not is_good
            advance(1)

        async def run() -> None:
            served = create_app(config)
            async with served.router.lifespan_context(served):
                await run_batch(served, left, answers, concurrency=config.engine.max_running, on_done=on_done)

        if left:
            asyncio.run(run())
    return num_failed
