"""What /metrics says, and the small window of latencies that the page draws."""

from collections import deque

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
RECENT = 1000


class Metrics:
    """Prometheus metrics of one server, in a registry of their own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        make = {"registry": self.registry}
        self.answers = Counter("onelive_answers", "answers by kind: model, fallback", ["kind"], **make)
        self.refused = Counter("onelive_refused", "requests refused, by HTTP status", ["status"], **make)
        self.latency = Histogram("onelive_latency_seconds", "from request to answer", buckets=SECONDS, **make)
        self.lag = Histogram("onelive_event_lag_seconds", "from the arrival of an event to answers that know of it",
                             buckets=SECONDS, **make)
        self.batch = Histogram("onelive_batch_requests", "requests answered together",
                               buckets=(1, 2, 4, 8, 16, 32, 64), **make)
        self.batch_seconds = Histogram("onelive_batch_seconds", "time of a batch", buckets=SECONDS, **make)
        self.stage_seconds = Histogram("onelive_stage_seconds", "parts of a batch: bringing the catalogue up to date, "
                                       "making requests, the device, naming rooms", ["stage"], buckets=SECONDS, **make)
        self.waited = Histogram("onelive_queue_seconds", "time that a request waits", buckets=SECONDS, **make)
        self.gauges = {name: Gauge(f"onelive_{name}", text, **make) for name, text in (
            ("rooms_on_air", "rooms of the catalogue"), ("rooms_without_slot", "rooms on air beyond decoding.capacity"),
            ("people", "people with a history or a profile"), ("waiting", "requests in the queue"),
            ("catalogue_version", "of the rooms on air"), ("events_total", "events that were taken in"))}
        self.events = Gauge("onelive_events", "events by type, and what was left out by reason", ["what"], **make)
        self.model = Gauge("onelive_model_info", "1 for the model that answers", ["name"], **make)
        self.recent_latency, self.recent_lag = deque(maxlen=RECENT), deque(maxlen=RECENT)

    def observe(self, name: str, value: float) -> None:
        """What the batcher tells."""
        if name == "late":
            self.answers.labels("fallback").inc(value)
        else:
            getattr(self, name).observe(value)

    def stage(self, name: str, seconds: float) -> None:
        """What the service tells of a batch."""
        self.stage_seconds.labels(name).observe(seconds)

    def mean(self, histogram: str, **labels: str) -> float:
        """Of all that a histogram of this registry (`onelive_…`) has seen; NaN where that is nothing."""
        total, count = (self.registry.get_sample_value(f"{histogram}_{part}", labels) for part in ("sum", "count"))
        return total / count if count else float("nan")

    def answered(self, seconds: float) -> None:
        self.latency.observe(seconds)
        self.recent_latency.append(seconds)

    def seen(self, seconds: float) -> None:
        self.lag.observe(seconds)
        self.recent_lag.append(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def quantiles(self) -> dict[str, float]:
        """Milliseconds of the last requests and events."""
        return {f"{name}_p{q}": round(1000 * float(np.quantile(values, q / 100)), 2)
                for name, values in (("latency", list(self.recent_latency)), ("lag", list(self.recent_lag)))
                for q in (50, 99) if values}
