"""A whole world for reconcile: it asks, decides, is carried out (or a crash cuts that short); time passes.

Used by the tests beside it. No cluster, no threads, no sleep. The order of effects is the engine's, which
test_engine.py checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from fusechat.plan import Plan, plan
from fusechat.spec import load
from fusechat_operator import memory, naming
from fusechat_operator.children import child
from fusechat_operator.decision import Decision
from fusechat_operator.facts import Ask
from fusechat_operator.once import Once
from fusechat_operator.reconcile import reconcile
from fusechat_operator.settings import Settings

from tests.unit.operator.acts import Act, finish, nothing, step_of
from tests.unit.operator.runs import SETTINGS, Object, a_run
from tests.unit.operator.things import Things


class Crash(Exception):
    """The operator died between two effects."""


class AtOnce(dict[Ask, Any]):
    """Facts that are there before they are asked for: one round in place of several."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __contains__(self, ask: object) -> bool:
        return True

    def __missing__(self, ask: Ask) -> Any:
        self[ask] = found = self.world.answer(ask)
        return found


class World(Things):
    """Runs and their operator. `script` has acts by step, one an attempt; what has none left ends well."""

    def __init__(self, *runs: Object, settings: Settings = SETTINGS) -> None:
        super().__init__()
        self.settings = settings
        self.script: dict[str, list[Act]] = {}
        self.at_once = True
        for run in runs:
            self.add(run)

    # runs

    def add(self, run: Object) -> None:
        self.count += 1
        meta = {"uid": f"{self.count:08d}-0000-4000-8000-000000000000", "generation": 1}
        found = json.loads(json.dumps(run)) | {"status": {"observedGeneration": -1}}
        found["metadata"] |= {**meta, "resourceVersion": self.version()}
        self.runs[run["metadata"]["name"]] = found

    def edit(self, name: str = "run", **spec: Any) -> None:
        """A change of the spec: the next generation."""
        found = self.runs[name]
        found["spec"] |= json.loads(json.dumps(spec))
        found["metadata"]["generation"] += 1
        found["metadata"]["resourceVersion"] = self.version()

    def retry(self, name: str = "run") -> None:
        """A person asks for it."""
        meta = self.runs[name]["metadata"]
        meta["resourceVersion"] = self.version()
        meta["annotations"][naming.RETRY_AT] = f"retry-{self.count}"

    def remove(self, name: str) -> None:
        """A run is deleted, and the garbage collector takes its children."""
        uid = self.runs.pop(name)["metadata"]["uid"]
        for key, found in list(self.children.items()):
            if child(found).owner == uid:
                self.gone(key)

    def status(self, name: str = "run") -> Object:
        found: Object = self.runs[name]["status"]
        return found

    def condition(self, kind: str, name: str = "run") -> Object:
        listed = self.status(name).get("conditions", ())
        return next((c for c in listed if c["type"] == kind), {})

    def line(self, step: str, name: str = "run") -> Object:
        return next((line for line in memory.lines_of(self.status(name)) if line["name"] == step), {})

    def states(self, name: str = "run") -> set[str]:
        return {line["state"] for line in memory.lines_of(self.status(name))}

    def over(self, name: str = "run") -> bool:
        found = self.condition("Succeeded", name)
        same = found.get("observedGeneration") == self.runs[name]["metadata"]["generation"]
        return same and found["status"] != "Unknown"

    def plan(self, name: str = "run") -> Plan:
        return plan(load(self.runs[name]))

    def address(self, step: str, name: str = "run") -> str:
        return str(self.plan(name).step(step).address)

    def attempts(self, step: str) -> int:
        """How many children a step has had."""
        return self.created.count(step)

    # the operator

    def decide(self, name: str = "run") -> Decision:
        """Reconcile's decision, its questions answered."""
        run = self.runs[name]
        if self.at_once:
            return reconcile(run, AtOnce(self), self.settings, self.now)
        facts: dict[Ask, Any] = {}
        once = Once(run, self.settings.store)
        for _ in range(64):
            decision = reconcile(run, facts, self.settings, self.now, once)
            if not decision.asks:
                assert decision == reconcile(run, facts, self.settings, self.now), "what was kept is stale"
                return decision
            assert not decision.asks & facts.keys(), "it was told already"
            facts |= {ask: self.answer(ask) for ask in decision.asks}
        raise AssertionError(f"it still asks {sorted(decision.asks)}")

    def effects(self, name: str, decision: Decision) -> Iterator[Callable[[], object]]:
        """What a decision does, one at a time; nothing after a refused child."""
        for each in decision.stop:
            yield lambda each=each: self.delete(each, whatever=True)
        for key, content in [*decision.documents.items(), *decision.notes.items()]:
            yield lambda key=key, content=content: self.documents.__setitem__(key, content)
        for address in decision.forget:
            yield lambda address=address: self.forget(address)
        refused: set[str] = set()
        for manifest in decision.create:
            made_for = manifest["metadata"]["labels"][naming.CHILD]
            if made_for not in refused:
                yield (
                    lambda manifest=manifest, made_for=made_for: (
                        self.create(manifest) or refused.add(made_for)
                    )
                )
        if refused:
            return
        if decision.status is not None and decision.status != self.status(name):
            yield lambda: self.write_status(name, decision.status or {})
        for each in decision.keep:
            yield lambda each=each: self.keep(each)
        for each in decision.delete:
            yield lambda each=each: self.delete(each)
        for event in decision.events:
            yield lambda event=event: self.events.append((event.kind, event.reason, event.message))

    def carry_out(self, name: str, decision: Decision, most: int = 1 << 20) -> int:
        """Do it; Crash when `most` effects are done and there is another. How many there were."""
        done = 0
        for effect in self.effects(name, decision):
            if done == most:
                raise Crash
            effect()
            done += 1
        return done

    def turn(self, name: str = "run", most: int = 1 << 20) -> Decision:
        """One look at one run, carried out."""
        decision = self.decide(name)
        self.carry_out(name, decision, most)
        return decision

    def settle(self, name: str = "run") -> Decision:
        """Look until nothing happens any more."""
        for _ in range(40):
            decision = self.decide(name)
            if not self.carry_out(name, decision):
                return decision
        raise AssertionError(f"{name} does not come to rest: {decision}")

    def play(self, found: Object) -> None:
        """End a child as the script says, else well."""
        acts = self.script.get(step_of(found), [])
        (acts.pop(0) if acts else finish)(self, found)

    def drive(self, *names: str, turns: int = 60, until: Callable[[], bool] | None = None) -> Object:
        """Settle, then end every active child, then let time pass; until all named runs are over."""
        names = names or ("run",)
        for _ in range(turns):
            decisions = [self.settle(name) for name in names]
            if until() if until else all(self.over(name) for name in names):
                return self.status(names[0])
            active = self.active()
            for found in active:
                self.play(found)
            if not active:
                pauses = [d.again for d in decisions if d.again is not None]
                assert pauses, f"nothing will ever happen again: {self.status(names[0])['conditions']}"
                self.now += min(pauses) + 0.01
            self.now += 1.0
        raise AssertionError(f"not over after {turns} turns: {self.status(names[0])}")


def begun(*steps: str, **spec: Any) -> World:
    """A world in which these steps run for ever, and all that does not need them is done."""
    world = World(a_run(**spec))
    world.script = {step: [nothing] * 1000 for step in steps}

    def only_they_run() -> bool:
        return {line["name"] for line in world.status()["steps"] if line["state"] == "Running"} == {*steps}

    world.drive(until=only_they_run)
    return world


def matching(names: list[str], pattern: str) -> list[str]:
    """The names that match as a whole."""
    return [name for name in names if re.fullmatch(pattern, name)]
