"""`fusechat cluster` against names and runs that are not what it hopes for, without a cluster."""

from __future__ import annotations

import argparse
import asyncio

import pytest
from fusechat.errors import FusechatError, UsageError
from fusechat_operator import cli

from tests.unit.operator.acts import nothing
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World


class NoPods:
    """A cluster with one run, none of whose Pods are left."""

    def __init__(self, found):
        self.found = found

    async def run(self, namespace, name):
        return self.found

    async def logs(self, namespace, uid, step):
        return
        yield


def logs(found, step):
    told = argparse.Namespace(namespace="team", run="run", step=step)
    return asyncio.run(cli._logs(NoPods(found), told, found))


def test_a_name_that_is_empty_is_no_run():
    """As of a variable that is not set: the path would be that of the list, which has an answer too."""
    told = argparse.Namespace(namespace="team", run="")
    listed = {"kind": "FusionRunList", "items": [], "metadata": {}}
    with pytest.raises(UsageError, match="no FusionRun ''"):
        asyncio.run(cli._found(NoPods(listed), told))


def test_logs_of_what_has_no_pods_say_where_they_lie(capsys):
    world = World(a_run())
    world.drive()
    logs(world.runs["run"], "fuse-s0")
    address = world.address("fuse-s0")
    assert f"the logs of all its attempts lie under {world.settings.store.uri}/{address}/logs/" in (
        capsys.readouterr().out
    )


def test_logs_of_a_run_that_cannot_be_planned_any_more_end_in_a_sentence():
    world = World(a_run())
    world.drive()
    world.edit(sources=[])
    with pytest.raises((FusechatError, ValueError), match="sources"):
        logs(world.runs["run"], "fuse-s0")


def test_logs_of_resolve_before_it_has_a_pod(capsys):
    world = World(a_run(pinned=False))
    world.script = {"resolve": [nothing] * 99}
    world.settle()
    logs(world.runs["run"], "resolve")
    assert "no Pod of resolve is left" in capsys.readouterr().out
