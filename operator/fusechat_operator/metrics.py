"""What Prometheus reads. Names are stable; `docs/operator.md` lists them.

Used by the engine and the process. Each operator has one registry of its own, so that tests may have many.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """All of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.reconcile = Histogram(
            "fusechat_reconcile_seconds",
            "One look at one run, questions answered.",
            buckets=SECONDS,
            registry=r,
        )
        self.queue = Gauge(
            "fusechat_queue_depth", "Runs that wait to be looked at, now or later.", registry=r
        )
        self.created = Counter("fusechat_children_created", "Children created.", ["kind"], registry=r)
        self.events = Counter(
            "fusechat_events", "What happened to runs, by the event's reason.", ["reason"], registry=r
        )
        self.faults = Counter(
            "fusechat_faults", "Looks that ended in a fault of the operator's own.", registry=r
        )
        self.requests = Counter(
            "fusechat_api_requests", "Requests to the API server.", ["method", "resource"], registry=r
        )
        self.leader = Gauge("fusechat_leader", "1 while this replica holds the Lease.", registry=r)
