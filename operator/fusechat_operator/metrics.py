"""What Prometheus reads. Names are stable; `docs/operator.md` lists them.

Used by the engine and the process. Each operator has one registry of its own, so that tests may have many.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fusechat_operator.tally import Tally

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

STEP_SECONDS = (10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)
STATES = ("Running", "Waiting", "Suspended")


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
        self.queue = Gauge("fusechat_queue_depth", "Runs that should be looked at by now.", registry=r)
        self.active = Gauge("fusechat_active_runs", "Runs that have not ended.", ["state"], registry=r)
        for state in STATES:
            self.active.labels(state)
        self.ended = Counter("fusechat_runs_ended", "Runs that came to an end.", ["reason"], registry=r)
        self.steps = Counter(
            "fusechat_steps", "Steps that were cached, succeeded or failed.", ["stage", "state"], registry=r
        )
        self.step_seconds = Histogram(
            "fusechat_step_seconds",
            "From the start of a step's child to its end, where it succeeded.",
            ["stage"],
            buckets=STEP_SECONDS,
            registry=r,
        )
        self.gpu_seconds = Counter(
            "fusechat_gpu_seconds", "GPUs times seconds of ended children.", registry=r
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

    def count(self, tally: Tally) -> None:
        """What one look found to have ended."""
        for stage, state in tally.steps:
            self.steps.labels(stage, state).inc()
        for stage, seconds in tally.seconds:
            self.step_seconds.labels(stage).observe(seconds)
        self.gpu_seconds.inc(tally.gpu_seconds)
        if tally.ended:
            self.ended.labels(tally.ended).inc()
