"""Counts and times of a server, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from presswork.engine.events import Reply

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STEPS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


class Metrics:
    """One server's figures; every server has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("presswork_requests", "Requests answered.", labels, registry=self.registry)
        self.in_flight = Gauge("presswork_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.seconds = Histogram(
            "presswork_request_seconds", "From a request to the end of its answer.", ("path",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.first_text = Histogram(
            "presswork_first_text_seconds", "From a request to its first text.", ("model",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.steps = Histogram(
            "presswork_steps_per_canvas", "Denoise steps a canvas took.", ("model",), buckets=_STEPS,
            registry=self.registry,
        )  # fmt: skip
        tokens = ("model", "kind")
        self.tokens = Counter("presswork_tokens", "Tokens by kind: prompt, cached, completion.", tokens,
                              registry=self.registry)  # fmt: skip
        self.running = Gauge("presswork_running", "Requests that share passes.", ("model",), registry=self.registry)
        self.waiting = Gauge("presswork_waiting", "Requests in the queue.", ("model",), registry=self.registry)
        self.waiting_edits = Gauge(
            "presswork_waiting_edits", "Gaps, edits and decisions in the queue.", registry=self.registry
        )
        self.loaded_bytes = Gauge("presswork_model_bytes", "Weights in memory.", ("model",), registry=self.registry)
        self.prefix_bytes = Gauge(
            "presswork_prefix_bytes", "Keys and values kept for prompts that begin alike.", ("model",),
            registry=self.registry,
        )  # fmt: skip
        self.cache_bytes = Gauge(
            "presswork_cache_bytes", "Keys and values of running requests.", ("model",), registry=self.registry
        )
        ProcessCollector(registry=self.registry)  # memory, processor time and open files of the server

    def count(self, model: str, reply: Reply) -> None:
        """Take in a finished reply. Mutates self."""
        usage, stats = reply.usage, reply.stats
        self.tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self.tokens.labels(model, "cached").inc(usage.cached_tokens)
        self.tokens.labels(model, "completion").inc(usage.completion_tokens)
        if stats.num_canvases and stats.num_denoise_steps:
            self.steps.labels(model).observe(stats.steps_per_canvas)
        if stats.first_text_s is not None:
            self.first_text.labels(model).observe(stats.first_text_s)

    def count_tokens(self, model: str, prompt: int, completion: int) -> None:
        """Take in a gap, an edit or a decision, which is several replies. Mutates self."""
        self.tokens.labels(model, "prompt").inc(prompt)
        self.tokens.labels(model, "completion").inc(completion)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
