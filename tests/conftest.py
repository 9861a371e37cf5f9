"""What every test may use. Imported before torch, so that the thread counts below take effect."""

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402  (nothing that may import numpy or torch stands above the environment)

CHECKOUT = Path(__file__).resolve().parent.parent


def find_shared(environ=os.environ, checkout: Path = CHECKOUT) -> Path | None:
    """The folder of golden cases and test data: $FUSECHAT_SHARED, else `shared` beside the checkout."""
    place = Path(environ.get("FUSECHAT_SHARED") or checkout.parent / "shared")
    return place if (place / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """Golden cases and test data that are not part of the repository; required where CI=true."""
    found = find_shared()
    if found is None:
        why = "no shared test data: expected ../shared with a golden/ folder, or its path in FUSECHAT_SHARED"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found
