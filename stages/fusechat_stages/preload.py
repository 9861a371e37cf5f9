"""What the local runner's server imports once, so that no step pays ten seconds for torch."""

from __future__ import annotations


def modules() -> list[str]:
    """Names of the modules to import before the first step is forked."""
    return ["torch", "transformers", "fusechat_stages.warm"]
