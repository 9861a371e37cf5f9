"""A random walk: whatever happens to runs, and whatever events are lost, none is left without a look.

Unlike the other laws it wakes a run only as the engine would. FUSECHAT_EXAMPLES has it hunt.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from fusechat_operator.children import child
from hypothesis import given

from tests.unit.operator.acts import evicted, fails, finish, step_of
from tests.unit.operator.eventful import Eventful
from tests.unit.operator.runs import a_run
from tests.unit.operator.test_reconcile_laws import few, seeds

TURNS, EDITS = 4000, 8
SCRIPTED = ("fuse-s0", "extract-s0", "align-s0", "filter-s0", "merge", "evaluate-fused", "resolve", "report")
STEPS = SCRIPTED[:-2]
"""Those with an address of their own."""

ENDS = [
    (evicted, "disruption"),
    (fails(143), "disruption"),
    (fails(75), "infrastructure"),
    (fails(69), "infrastructure"),
    (fails(65), "bug"),
    *[(finish, "")] * 4,
]


class Walk(Eventful):
    """Up to three runs of one recipe, some in a queue; `met` counts what children of each step ended with."""

    def __init__(self, seed: int, count: int, queue: bool) -> None:
        chance = Random(seed)
        told = {
            "launcher": chance.choice(["Auto", "TrainJob", "Job"]),
            "pinned": chance.random() < 0.6,
            "retries": {"disruption": chance.choice([0, 2]), "infrastructure": chance.choice([0, 2])},
        }
        if queue:
            told["scheduling"] = {"queueName": "q"}
        self.applied = ["run", "other", "third"][:count]
        super().__init__(chance, *[a_run(name, data="x", sources=1, **told) for name in self.applied])
        self.queue, self.edits, self.met = queue, 0, Counter()
        self.lingers = chance.random() < 0.5
        for step in SCRIPTED:
            if chance.random() < 0.5:
                self.script[step] = [self._counted(*chance.choice(ENDS)) for _ in range(4)]
        self.crashes, self.conflicts = chance.choice([0, 0, 0.15]), chance.choice([0, 0, 0.2])

    def _counted(self, act, cause):
        def go(world, found):
            act(world, found)
            if cause:
                self.met[step_of(found), cause] += 1

        return go

    def ended(self, name):
        return self.over(name) or bool(self.runs[name]["spec"].get("suspend"))

    def step(self, edits):
        """Looks, and one thing that happens; False when nothing is left to happen."""
        self.look() if self.chance.random() < 0.7 else self.spin()
        act, at_work, going = self.chance.random(), self.at_work(), self.going()
        if self.queue and act < 0.3:
            self.kueue()
        elif at_work and act < 0.5:
            found = self.chance.choice(at_work)
            if edits and self.chance.random() < 0.08:
                self.delete(child(found), whatever=True)  # by hand
            else:
                self.play(found)
        elif going and act < 0.6:
            self.gone(self.chance.choice(going))
        elif edits and act < 0.65 and self.edits < EDITS:
            self._change(self.chance.choice(self.applied))
        elif act < 0.7:
            self.now += self.chance.choice([0.2, 3, 15])
        elif not at_work and not going and not any(at <= self.now for at in self.due.values()):
            return self._idle(edits)
        return True

    def _idle(self, edits):
        """Nothing is at work and no look is due: time passes, or a person comes, or all is over."""
        if all(self.ended(name) for name in self.applied):
            if not edits or self.edits >= EDITS:
                return False
            self._change(self.chance.choice(self.applied))
            return True
        for name in self.applied:
            assert self.ended(name) or name in self.due or self._waits(name), (
                f"nobody looks at {name} again: {self.condition('Ready', name)}"
            )
        if self.due:
            self.now = max(self.now, min(self.due.values())) + 0.01
        return True

    def _waits(self, name):
        """For what will make an event: a child that a queue holds."""
        uid = self.runs[name]["metadata"]["uid"]
        return any(child(c).owner == uid and child(c).phase == "Waiting" for c in self.children.values())

    def _change(self, name):
        self.edits += 1
        what = self.chance.choice(["suspend", "resume", "retry", "retry", "ttl", "merge", "queue", "remove"])
        if what == "remove" and len(self.applied) > 1 and self.chance.random() < 0.3:
            self.applied.remove(name)
            self.remove(name)
        elif what == "retry":
            self.retry(name)
        elif what == "queue" and self.queue:
            self.edit(name, scheduling=self.chance.choice([{"queueName": "q"}, {"queueName": "p"}, {}]))
        elif what == "merge":
            self.edit(name, merge={"method": self.chance.choice(["sce", "linear"])})
        elif what == "ttl":
            self.edit(name, ttl=self.chance.choice(["10m", "20m"]))
        elif what in ("suspend", "resume"):
            self.edit(name, suspend=what == "suspend")

    def go(self, edits):
        for _ in range(TURNS):
            if not self.step(edits):
                break
        else:
            raise AssertionError([self.condition("Ready", name) for name in self.applied])
        for _ in range(60):
            self.spin()
            for key in self.going():
                self.gone(key)

    def judge(self, name):
        """What may never be said of a run to which nothing will happen any more."""
        if self.runs[name]["spec"].get("suspend"):
            assert self.condition("Suspended", name)["status"] == "True"
            return
        ready = self.condition("Ready", name)
        assert self.condition("Suspended", name).get("status") != "True"
        assert (self.condition("Succeeded", name)["status"] == "True") == (ready["status"] == "True")
        assert not self.states(name) & {"Running", "Waiting"}, ready
        uid = self.runs[name]["metadata"]["uid"]
        left = [c for c in self.children.values() if child(c).owner == uid]
        orphans = [step_of(c) for c in left if child(c).phase in ("Active", "Waiting")]
        assert not orphans, ready


@few
@given(seeds)
def test_no_run_is_left_without_a_look_and_none_leaves_anything_behind(seed):
    chance = Random(seed)
    walk = Walk(seed, chance.choice([1, 2, 3]), queue=chance.random() < 0.4)
    walk.loses_events = chance.random() < 0.7
    if chance.random() < 0.2:
        full = "exceeded quota: count/jobs.batch"
        walk.refuses = lambda manifest: full if chance.random() < 0.2 else ""
    walk.go(edits=True)
    for name in walk.applied:
        walk.judge(name)


@few
@given(seeds)
def test_the_tries_in_the_status_are_what_happened(seed):
    walk = Walk(seed, count=1, queue=False)
    walk.go(edits=False)
    walk.judge("run")
    told = {
        (line["name"], cause): count
        for line in walk.status()["steps"]
        for cause, count in (line.get("tries") or {}).items()
    }
    happened = {key: count for key, count in walk.met.items() if key[0] in STEPS}
    assert {key: n for key, n in told.items() if n and key[0] in STEPS} == happened
