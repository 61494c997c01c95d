"""`presswork serve`."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from presswork.cli.model import apply_threads, num_threads
from presswork.cli.options import DeviceOption, DtypeOption
from presswork.cli.output import note
from presswork.engine.engine import EngineConfig
from presswork.errors import ConfigError
from presswork.weights.hub import check_name, embedded_names
from presswork.weights.peft_files import check_adapter

if TYPE_CHECKING:
    from presswork.server.config import ServerConfig
    from presswork.server.replicas import ReplicaConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None)


_Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]MODEL...", show_default=False,
        help="Embedded models' names, folders or Hub ids; the first is the default. None serves the embedded ones.",
    ),
]  # fmt: skip
_Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
_Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)]
_Keys = Annotated[list[str] | None, typer.Option(help="Requests must carry one of these keys.", show_default=False)]
_KeyFile = Annotated[Path | None, typer.Option(help="A file of such keys, one a line.", show_default=False)]
AdaptersOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[MODEL:]NAME=FOLDER", help="An adapter, asked for as MODEL:NAME.", show_default=False),
]
_Memory = Annotated[float | None, typer.Option(help="For all loaded models' weights together.", min=0)]
_Idle = Annotated[float | None, typer.Option(help="Unload a model after so many seconds without a request.", min=0)]
_Context = Annotated[int | None, typer.Option(help="Positions of a sequence; the model's by default.", min=1)]
_Running = Annotated[int, typer.Option(help="Requests that share passes.", min=1)]
_Waiting = Annotated[int, typer.Option(help="Requests that may wait; one more gets 429.", min=1)]
_Deadline = Annotated[float | None, typer.Option(help="Seconds a request may take, queue included.", min=0)]
_Body = Annotated[int, typer.Option(help="Largest body of a request, in MiB; a larger one gets 413.", min=1)]
_Origins = Annotated[list[str] | None, typer.Option(help="Origins whose pages may call; * is any.", show_default=False)]
_Replicas = Annotated[int | None, typer.Option(help="Run so many servers behind one address, with Ray.", min=1)]
_MostReplicas = Annotated[int | None, typer.Option(help="As many replicas as requests ask for.", min=1)]
_ReplicaCpus = Annotated[int | None, typer.Option(help="Cores of a replica; this machine's, shared out.", min=1)]
_Ray = Annotated[str | None, typer.Option(help="Of a running Ray cluster, or auto; none starts one here.")]


@app.command()
def serve(
    context: typer.Context,
    models: _Models = None,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    api_key: _Keys = None,
    api_key_file: _KeyFile = None,
    adapter: AdaptersOption = None,
    memory_gib: _Memory = None,
    idle_s: _Idle = None,
    max_context: _Context = None,
    max_running: _Running = 32,
    max_waiting: _Waiting = 1024,
    deadline_s: _Deadline = None,
    max_body_mib: _Body = 16,
    cors_origin: _Origins = None,
    replicas: _Replicas = None,
    max_replicas: _MostReplicas = None,
    replica_cpus: _ReplicaCpus = None,
    ray_address: _Ray = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
) -> None:
    """Serve models over HTTP: OpenAI, Anthropic, editors' endpoints, and a page at /.

    Ctrl-C or SIGTERM lets running requests finish, for 30 seconds at most.

    \b
    Examples:
      presswork serve
      presswork serve google/diffusiongemma-26b-a4b-it --host 0.0.0.0 --api-key-file keys.txt
      presswork serve code=runs/code/model sudoku --adapter code:docs=runs/lora/adapter
      presswork serve FOLDER --replicas 2 --max-replicas 8 --ray-address auto
    """
    from presswork.server.config import ServerConfig
    from presswork.server.replicas import ReplicaConfig

    apply_threads(context.obj)
    named = named_models(models)
    config = ServerConfig(
        models=named, adapters=named_adapters(adapter, next(iter(named))), device=device, dtype=dtype,
        engine=EngineConfig(max_running=max_running, max_waiting=max_waiting, max_context=max_context),
        memory_bytes=_bytes_of(memory_gib), idle_s=idle_s, is_local=_is_local(host),
        api_keys=_keys(api_key or [], api_key_file), deadline_s=deadline_s, max_body_bytes=max_body_mib << 20,
        cors_origins=tuple(cors_origin or ()),
    )  # fmt: skip
    check_sources(config)
    if replicas is None:
        if max_replicas is not None or replica_cpus is not None or ray_address is not None:
            raise ConfigError("--max-replicas, --replica-cpus and --ray-address are about replicas: give --replicas")
        _serve_here(config, host, port)
        return
    shared = ReplicaConfig(
        num_replicas=replicas, max_replicas=max_replicas, ray_address=ray_address,
        num_cpus=replica_cpus or max(1, num_threads() // replicas),
    )  # fmt: skip
    _serve_replicas(config, shared, host, port)


def _serve_here(config: "ServerConfig", host: str, port: int) -> None:
    """One server, in this process."""
    import uvicorn

    from presswork.server.app import create_app
    from presswork.server.config import DRAIN_S

    listener = _listener(host, port)
    _say(config, host, listener.getsockname()[1], "")
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(config), log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_S, lifespan="on"
        )
    )
    server.run(sockets=[listener])


def _serve_replicas(config: "ServerConfig", replicas: "ReplicaConfig", host: str, port: int) -> None:
    from presswork.server.replicas import run_replicas

    # A port of 0 is decided here: the process that listens says no more.
    with _listener(host, port) as listener:
        port = listener.getsockname()[1]
    _say(config, host, port, f" with {replicas.num_replicas} replicas")
    run_replicas(config, replicas, host=host, port=port)


def _say(config: "ServerConfig", host: str, port: int, how: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    note(f"serving {', '.join(config.models)}{how} at http://{shown}:{port}")
    if not config.is_local and not config.api_keys:
        note("anybody who reaches this address may use it: there is no API key (--api-key-file)")


def _bytes_of(gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 < gib < 2**33:
        raise ConfigError(f"--memory-gib must be above 0 and finite, got {gib}")
    return int(gib * 2**30)


def _is_local(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1")


def named_models(given: list[str] | None) -> dict[str, str]:
    """Models by name, out of [NAME=]MODEL each; the embedded ones where none is given. Raises ConfigError."""
    found: dict[str, str] = {}
    for name, source in map(_named, given or embedded_names()):
        if name in found:
            raise ConfigError(f"two models are named {name!r}; give one another name: NAME={source}")
        found[name] = source
    return found


def check_sources(config: "ServerConfig") -> None:
    """Models and adapters are loaded later, and what cannot be is told now.

    Raises: ModelNotFoundError, CheckpointError.
    """
    for source in config.models.values():
        check_name(source)
    for folders in config.adapters.values():
        for folder in folders.values():
            check_adapter(folder)


def _named(text: str) -> tuple[str, str]:
    """(name, source) of NAME=SOURCE; a source alone goes by its last part."""
    name, is_named, source = text.partition("=")
    if not is_named or Path(text).exists():
        return (Path(text).name if Path(text).is_dir() else text), text
    if not name or not source:
        raise ConfigError(f"a model is given as NAME=MODEL or MODEL, got {text!r}")
    return name, source


def named_adapters(given: list[str] | None, default: str) -> dict[str, dict[str, str]]:
    """Adapters by model and name, out of [MODEL:]NAME=FOLDER each. Raises ConfigError."""
    found: dict[str, dict[str, str]] = {}
    for text in given or ():
        name, _, folder = text.partition("=")
        model, _, name = name.rpartition(":")
        if not name or not folder:
            raise ConfigError(f"--adapter takes [MODEL:]NAME=FOLDER, got {text!r}")
        found.setdefault(model or default, {})[name] = folder
    return found


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    keys = list(given)
    if file is not None:
        try:
            keys += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the keys in {file} cannot be read: {error}") from error
        if not keys:
            raise ConfigError(f"{file} holds no key; write one a line")
    return tuple(keys)


def _listener(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded. Raises ConfigError."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; try another --host or --port"
        ) from error
    listener.set_inheritable(True)
    return listener
