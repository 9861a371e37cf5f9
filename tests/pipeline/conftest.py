"""What the pipeline's tests share: one S3 service for the session, and an empty store in it for each test."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fusechat.s3server import LocalS3
from fusechat.store import Store

from tests.s3 import start_s3


@pytest.fixture(scope="session")
def s3(tmp_path_factory) -> Iterator[LocalS3]:
    """A running S3 service, shared by all workers of the session, and the environment to reach it."""
    mine: Path = tmp_path_factory.getbasetemp()
    folder = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    with start_s3(folder / "s3") as server:
        yield server


@pytest.fixture
def store(s3) -> Store:
    """An empty store."""
    return Store(f"{s3.uri}{uuid.uuid4()}")
