"""When the process of a replica ends by itself."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest
from fusechat_operator import __main__ as module
from fusechat_operator.cluster import ApiRefusal

AWAY = OSError("the API server cannot be reached")
GONE = ApiRefusal(503, "", "not now")


class Kinds:
    """A cluster's launchers, one answer a question; then it is cancelled."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def kinds(self):
        if not self.answers:
            raise asyncio.CancelledError
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        ([("Job",), ("Job",), ("PyTorchJob", "Job")], True),
        ([AWAY, ("Job",), GONE, ("TrainJob", "Job")], True),
        ([("PyTorchJob", "Job"), ("Job",), ("PyTorchJob", "Job")], False),
        ([AWAY, ("PyTorchJob", "Job"), ("PyTorchJob", "Job")], False),
    ],
)
def test_the_process_ends_when_a_launcher_came_that_it_does_not_watch(monkeypatch, caplog, answers, ends):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "LAUNCHERS_SECONDS", 0.0)

    async def watched() -> bool:
        stop = asyncio.Event()
        with suppress(asyncio.CancelledError):
            await module.stop_at_another_launcher(Kinds(*answers), stop)
        return stop.is_set()

    assert asyncio.run(watched()) is ends
    assert ("this process ends" in caplog.text) is ends
