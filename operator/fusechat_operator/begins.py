"""How a generation of a run begins: launcher, frozen plan, hits, and what it has no use for. Pure.

A layer of reconcile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusechat.plan import VERSIONS, Step
from fusechat.progress import needed
from fusechat.spec import STAGES

from fusechat_operator import jobs, naming
from fusechat_operator.children import Child
from fusechat_operator.decision import Decision
from fusechat_operator.ends import Ends
from fusechat_operator.facts import UNKNOWN, Artifact
from fusechat_operator.memory import Line
from fusechat_operator.settings import Settings

GONE = "gone"
"""Stands for the uid of a child that ended unseen: its Pods may be there still."""

_AUTO = "Auto"


class Begins(Ends):
    """A pass that can begin its run."""

    def _launcher(self) -> tuple[str, str]:
        """(what starts trainings and why, or "" while unknown; what is wrong)."""
        asked = self.run.spec.launcher
        began = self.memory.launcher
        if began and self.memory.generation == self.generation:
            return began, ""
        if asked == "Job":
            return "Job (as asked)", ""
        there = self.look("launchers")
        if there is UNKNOWN:
            return "", ""
        if asked == "Auto" and _AUTO in began and began.split()[0] in there:
            return began, ""  # what was installed since is for runs that begin
        if asked == "Auto":
            first = next(kind for kind in jobs.LAUNCHERS if kind in there)
            return f"{first} ({_AUTO}: the first that is installed)", ""
        if asked in there:
            return f"{asked} (as asked)", ""
        return "", (
            f"launcher {asked} is not installed on this cluster (there is {', '.join(there)}); "
            "install it, or set spec.launcher to Auto"
        )

    def _freeze(self, pins: Mapping[str, str], digest: str) -> dict[str, Any]:
        asked = self.once.asked
        old = self.memory if self.memory.generation == self.generation else None
        images = {stage: self.settings.image_of(stage) for stage in STAGES}
        return {
            "generation": self.generation,
            "store": (old.store if old else "") or self.place.identity,
            "pins": [
                {"name": n, "pin": pins[n], "asked": asked[n]}
                for n in sorted(pins)
                if n in asked and n in self.extras.unpinned
            ],
            "versions": dict(old.versions if old else VERSIONS),
            "images": dict(old.images if old else images),
            "digest": old.digest if old else digest,
        }

    def _with_images(self) -> Settings:
        return replace(self.settings, images=self.frozen["images"])

    def _changed(self, digest: str) -> str:
        """Why this operator does not plan the run as the one that began it did; "" where it does.

        With the versions and images that the run began with it mostly does, whatever the stages are now.
        """
        if digest == self.memory.digest:
            return ""
        return (
            "this operator plans the run differently from the one that began it; nothing is lost: set the "
            f"annotation {naming.RETRY_AT} to plan it anew"
        )

    def _begin(self, work: jobs.Work) -> Decision | None:
        """A generation's first look: hits from the sinks backwards, obsolete children, references."""

        sinks = {step.name for step in work.plan.sinks()}

        def published(step: Step) -> bool:
            # What a run promises is looked at now; an input that is gone after all shows in who needs it.
            hit = self.look("sink" if step.name in sinks else "hit", str(step.address))
            return hit is UNKNOWN or isinstance(hit, Artifact)

        missing = needed(work.plan, published)
        own = self.look("own", self.uid)
        if self.look.asks or self.look.troubles:
            return self._asking() if self.look.asks else self._stuck("StoreUnavailable", self._trouble())
        ended = self._obsolete(work, own, missing)
        self._cut_short(child for child in self.stop if child not in self.halted)
        lines = {
            step.name: Line(step.name, "Pending", ended=ended.get(step.name, ""))
            if step.name in missing
            else Line(step.name, "Cached")
            for step in work.plan.steps
        }
        self.memory = replace(self.memory, lines=lines, generation=self.generation, details={})
        self._refer(work)
        return None

    def _obsolete(self, work: jobs.Work, own: Sequence[Child], missing: Collection[str]) -> dict[str, str]:
        """Children that the new generation has no use for are stopped; by step, whose Pods must go first."""
        wanted = {jobs.name_of(s, self.place): s for s in work.plan.steps if s.name in missing}
        report = jobs.name_of(self._report(work), self.place)  # made before this status could be written
        before = self.memory.lines.values()
        ended = {line.name: line.ended for line in before if line.ended}
        ended |= {
            line.name: GONE for line in before if line.state in ("Running", "Waiting") and not line.ended
        }
        for child in own:
            step = wanted.get(child.name)
            if step and (child.phase == "Failed" or child.terminating):
                ended[step.name] = child.uid
            elif step and self._never_began_so(work, step, child):
                ended[step.name] = child.uid
                self.stop.append(child)
            elif not step and not child.terminating and _stays(child) and child.name != report:
                self.stop.append(child)
        return ended

    def _never_began_so(self, work: jobs.Work, step: Step, child: Child) -> bool:
        """A child of another kind, or one none of whose Pods runs and that would be made otherwise now."""
        if child.kind != jobs.kind_of(step, work.launcher):
            return True
        waits = child.phase in ("Active", "Waiting") and not child.ready + child.succeeded
        return waits and bool(child.template) and child.template != jobs.template_of(work, step)


def _stays(child: Child) -> bool:
    """Whether a child does not go by itself: what ended well does, but for a TrainJob."""
    return child.phase != "Complete" or child.kind == "TrainJob"
