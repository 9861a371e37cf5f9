"""The edges of an engine whose run has a store of its own: probes, answered by who inherits from here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fusechat import inquiry
from fusechat_operator import naming
from fusechat_operator.children import Child, child, pod
from fusechat_operator.conditions import timestamp

from tests.unit.operator.edges import Edges
from tests.unit.operator.runs import Object
from tests.unit.operator.world import World


class Probed(Edges):
    """`jobs`: the probes that are there, by name; the Pods of one that was answered are its `pods`."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.jobs: dict[str, Object] = {}

    def made(self, found: Object) -> None:
        """A probe was made: answer it, or note when it will be."""
        raise NotImplementedError

    async def create(self, manifest: Mapping[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        if manifest["metadata"]["labels"][naming.STAGE] != "probe":
            await super().create(manifest)
        elif name not in self.jobs:
            self.world.count += 1
            found = self.jobs[name] = json.loads(json.dumps(manifest))
            told = {"uid": f"probe-{self.world.count}", "resourceVersion": self.world.version()}
            found["metadata"] |= {**told, "creationTimestamp": timestamp(self.world.now)}
            self.made(found)

    def args(self, found: Object) -> list[str]:
        return found["spec"]["template"]["spec"]["containers"][0]["args"]

    def questions(self, found: Object) -> list[inquiry.Question]:
        flag = "--ask="
        return inquiry.asked("".join(a.removeprefix(flag) for a in self.args(found) if a.startswith(flag)))

    async def child(self, namespace: str, key: str) -> Any:
        found = self.jobs.get(key.partition("/")[2])
        return child(found) if found else await super().child(namespace, key)

    async def own(self, namespace: str, key: str) -> Any:
        return [*await super().own(namespace, key), *(child(job) for job in self.jobs.values())]

    async def pods(self, namespace: str, name: str) -> Any:
        if name in self.jobs:
            return [pod(found) for found in self.jobs[name].get("pods", ())]
        return await super().pods(namespace, name)

    async def delete(self, namespace: str, gone: Child, whatever: bool = False) -> None:
        if self.jobs.pop(gone.name, None) is None:
            await super().delete(namespace, gone, whatever)
