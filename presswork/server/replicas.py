"""The same server several times behind one address, on one machine or many, with Ray Serve.

Each replica is a process of its own with its own engines. Ray starts them, spreads requests over them, and starts
another where one died.
"""

import logging
import signal
import threading
from dataclasses import dataclass
from typing import Any

from presswork.config import require
from presswork.errors import ConfigError
from presswork.server.config import DRAIN_S, ServerConfig
from presswork.settings import keep_ray_quiet

_NAME = "presswork"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """How many servers there are, and what each gets.

    Args:
        num_replicas: at the start, and at least.
        max_replicas: as many as requests ask for; None is num_replicas.
        num_cpus: cores and threads of each.
        ray_address: of a running Ray cluster; None starts one on this machine.
        target_in_flight: requests a replica that are not yet a reason for another one.
    """

    num_replicas: int
    max_replicas: int | None = None
    num_cpus: int = 1
    ray_address: str | None = None
    target_in_flight: int = 8

    def __post_init__(self) -> None:
        require(self.num_replicas >= 1, f"replicas must be at least 1, got {self.num_replicas}")
        most = self.max_replicas
        require(
            most is None or most >= self.num_replicas,
            f"max_replicas must be at least replicas, which is {self.num_replicas}, got {most}",
        )
        require(self.num_cpus >= 1, f"cores of a replica must be at least 1, got {self.num_cpus}")


def run_replicas(config: ServerConfig, replicas: ReplicaConfig, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run then may finish. Raises ConfigError."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError("--replicas needs Ray; in the checkout, pip install -e '.[ray]'") from error
    keep_ray_quiet()
    try:
        ray.init(
            address=replicas.ray_address or "local",
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"Ray cannot be reached or started: {error}") from error
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(_deployment(serve, config, replicas).bind(), name=_NAME, route_prefix="/")
        _until_told_to_stop()
    finally:
        # Replicas end what they are at, and only then the proxy goes through which they answer. In a cluster of others
        # only what is ours ends.
        serve.delete(_NAME)
        if replicas.ray_address is None:
            serve.shutdown()
        ray.shutdown()


def _deployment(serve: Any, config: ServerConfig, replicas: ReplicaConfig) -> Any:
    num_cpus, in_flight = replicas.num_cpus, config.engine.max_running + config.engine.max_waiting
    # A replica refuses what it has no room for itself, with 429; the balancer queues no more than that again.
    bounds = {"max_ongoing_requests": 2 * in_flight, "max_queued_requests": in_flight}

    def build() -> Any:
        """One replica's application; runs in its own process."""
        import torch

        from presswork.server.app import create_app

        torch.set_num_threads(num_cpus)
        return create_app(config)

    actor: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": 1 if config.device.startswith("cuda") else 0}
    if replicas.max_replicas in (None, replicas.num_replicas):
        scale: dict[str, Any] = {"num_replicas": replicas.num_replicas}
    else:
        scale = {
            "autoscaling_config": {
                "min_replicas": replicas.num_replicas,
                "max_replicas": replicas.max_replicas,
                "target_ongoing_requests": replicas.target_in_flight,
            }
        }
    return serve.deployment(
        serve.ingress(build)(), name=_NAME, ray_actor_options=actor, graceful_shutdown_timeout_s=DRAIN_S, **bounds,
        **scale,
    )  # fmt: skip


def _until_told_to_stop() -> None:
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    told.wait()
