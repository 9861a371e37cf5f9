"""What every round of one look reads of a run, read once: its spec, its memory, its store, its plan. Pure.

Used by reconcile, kept by the engine for the rounds of one look. Of one object as the API server had it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from fusechat.pins import origins
from fusechat.plan import Plan, plan
from fusechat.recipe import not_scored
from fusechat.spec import FusionRun, load

from fusechat_operator import memory, pods
from fusechat_operator.memory import Memory
from fusechat_operator.settings import DefaultStore


class Once:
    """One FusionRun, read at most once."""

    def __init__(self, found: Mapping[str, Any], store: DefaultStore | None) -> None:
        self.found, self._store = found, store
        self._plans: dict[tuple[frozenset[tuple[str, str | int]], ...], tuple[Plan, str]] = {}

    @cached_property
    def memory(self) -> Memory:
        return memory.read(self.found.get("status", {}))

    @cached_property
    def refusal(self) -> str:
        """Why this run cannot run on this cluster; "" where it can."""
        try:
            _ = self.place
        except ValueError as error:
            return str(error)
        return ""

    @cached_property
    def run(self) -> FusionRun:
        """ValueError for a spec that cannot run on a cluster."""
        run = load(self.found)
        _refuse_local_files(run)
        if sentence := not_scored(run):
            raise ValueError(sentence)
        return run

    @cached_property
    def place(self) -> pods.Place:
        """ValueError for a store that the operator cannot use."""
        return pods.place(self.run, self._store)

    @cached_property
    def asked(self) -> dict[str, str]:
        return memory.asked(self.run)

    @property
    def plans(self) -> list[Plan]:
        """Those that were asked for so far."""
        return [made for made, _ in self._plans.values()]

    def plan(self, pins: Mapping[str, str], versions: Mapping[str, int] | None = None) -> tuple[Plan, str]:
        """The run's plan with those pins for those versions of the stages, and the plan's digest."""
        key = frozenset(pins.items()), frozenset((versions or {}).items())
        if key not in self._plans:
            made = plan(self.run, pins, versions)
            self._plans[key] = made, memory.plan_digest(made)
        return self._plans[key]


def _refuse_local_files(run: FusionRun) -> None:
    local = [name for name, origin in origins(run).items() if origin.uri.startswith("file://")]
    if local:
        raise ValueError(
            f"{', '.join(local)}: a cluster's Pods cannot read file:// of your machine; "
            "copy it to s3:// (aws s3 cp --recursive) and name it there"
        )
