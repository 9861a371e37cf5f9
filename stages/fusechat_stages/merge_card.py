"""What a merged model says of itself: coefficients.json and the model card.

Used by stage merge. Knows settings and coefficients, no weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusechat_stages.numerics.merge_settings import Settings

LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Origin:
    """Who was merged: the pivot, and the targets in order, by the names of their sources."""

    pivot: str
    labels: tuple[str, ...]


Coefficients = Mapping[str, Sequence[float]]
"""Tensor -> one coefficient a target."""


def coefficients_json(settings: Settings, origin: Origin, coefficients: Coefficients) -> str:
    """For programs: every tensor's coefficients."""
    told: dict[str, Any] = {
        **_recipe(settings),
        "pivot": origin.pivot,
        "targets": list(origin.labels),
        "tensors": {name: list(values) for name, values in sorted(coefficients.items())},
    }
    return json.dumps(told, indent=1)


def card(settings: Settings, origin: Origin, coefficients: Coefficients) -> str:
    """For people: README.md in the Hugging Face hub's form."""
    # Not the run's name: all runs that need this model share it.
    title = f"{origin.pivot or 'A pivot'} fused with {', '.join(origin.labels)}"
    recipe = [f"- {name}: {value}" for name, value in _recipe(settings).items()]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [fusechat, merge]",
            "---",
            "",
            f"# {title}",
            "",
            f"{origin.pivot or 'The pivot'}, fused with {', '.join(origin.labels)} by FuseChat "
            "(arXiv 2408.07990): the pivot was fine-tuned once per source, and these targets were merged.",
            "Tokenizer, chat template and generation settings are the pivot's.",
            "",
            "## Merge",
            "",
            *recipe,
            "",
            "## Coefficients",
            "",
            "Mean over the tensors of each layer; coefficients.json has every tensor.",
            "",
            *_table(origin.labels, coefficients),
            "",
        ]
    )


def _recipe(settings: Settings) -> dict[str, Any]:
    """The method and what it reads."""
    weighted = {"weights": list(settings.weights), "normalize": settings.normalize}
    dare = {"density": settings.density, "lambda": settings.scale, "seed": settings.seed}
    own: dict[str, dict[str, Any]] = {
        "sce": {"variant": settings.variant, "selectTopK": settings.select_topk},
        "linear": weighted,
        "task_arithmetic": {**weighted, "lambda": settings.scale},
        "ties": {**weighted, "density": settings.density, "lambda": settings.scale},
        "dare_linear": {**weighted, **dare},
        "dare_ties": {**weighted, **dare},
        "slerp": {"t": settings.t},
        "varm": {},
    }
    return {"method": settings.method, "profile": settings.profile, **own[settings.method]}


def _table(labels: Sequence[str], coefficients: Coefficients) -> list[str]:
    rows = [["layer", *labels], ["---"] * (len(labels) + 1)]
    rows += [[layer, *(f"{value:.4f}" for value in means)] for layer, means in by_layer(coefficients)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def by_layer(coefficients: Coefficients) -> list[tuple[str, list[float]]]:
    """(layer, mean coefficient per target): layers by number, then what belongs to none, by its own name."""
    groups: dict[tuple[int, str], list[Sequence[float]]] = {}
    for name, values in coefficients.items():
        found = LAYER.search(name)
        key = (0, found[1].zfill(6)) if found else (1, name)
        groups.setdefault(key, []).append(values)
    return [
        (
            name.lstrip("0") or "0" if kind == 0 else name,
            [sum(c) / len(rows) for c in zip(*rows, strict=True)],
        )
        for (kind, name), rows in sorted(groups.items())
    ]
