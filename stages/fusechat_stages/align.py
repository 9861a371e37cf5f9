"""Stage align: a source's distributions put on the pivot's rows and into the pivot's vocabulary.

params: {"op": "rows" | "count" | "map", "profile", "method": "Bytes" (Corrected) | "MS" | "EM" | "MinED"
(Published), "pivotTemplate", "sourceTemplate"}.
op rows: inputs pivot, source (extract), pivotModel, sourceModel (fetch)[, map, counts (align)] -> per block
`block-00000.arrow` (shards.Aligned), a row for every row of the pivot.
op count (Published, MS): the same inputs -> per block `counts-00000.npy` int64[2, P] (key, count; sorted)
and `spans-00000.npy` int32[2, N] (the warping, so that op rows need not do it again).
op map (Published): inputs pivotModel, sourceModel[, counts] -> `map.json`, a pivot id per source id.

Called by entry. Knows no model and no template's text; the mathematics is in numerics.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fusechat_stages import align_corrected, align_published, align_tokens, models, shards
from fusechat_stages.align_published import Strings
from fusechat_stages.artifacts import Input, Output
from fusechat_stages.numerics import vocabulary
from fusechat_stages.numerics.bytemap import ByteMap
from fusechat_stages.numerics.vocabulary import PairCounts
from fusechat_stages.shards import EMPTY, EXACT, MAPPED, ONE_HOT, Aligned, Rows

VERSION = 1
METHODS = {"Corrected": ("Bytes",), "Published": ("MS", "EM", "MinED")}
OPS = ("rows", "count", "map")


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Run one op. ValueError for params, tokenizers or blocks that do not belong together."""
    op, profile, method = params.get("op"), params.get("profile"), params.get("method", "MS")
    if op not in OPS:
        raise ValueError(f"align: op is {op!r}, expected one of {', '.join(OPS)}")
    if profile not in METHODS or (op != "count" and method not in METHODS[profile]):
        raise ValueError(
            f"align: method {method!r} under profile {profile!r}; expected "
            + " or ".join(f"{', '.join(names)} under {name}" for name, names in METHODS.items())
        )
    _check_roles(op, profile, method, inputs)
    pair = Pair(_tokenizer(inputs["pivotModel"]), _tokenizer(inputs["sourceModel"]))
    if op == "map":
        _map(method, inputs, pair, out)
    else:
        _check_inputs(inputs)
        work = {"count": Counting, "rows": Correcting if profile == "Corrected" else Publishing}[op]
        _blocks(work(params, inputs, pair), inputs, out)


def summarise(sums: dict[str, Any]) -> dict[str, Any]:
    """Rates from the sums over blocks: of rows by kind, of the source's probability by where it went."""
    rows, covered = sums.get("rows", 0), sums.get("rows", 0) - sums.get("empty", 0)
    if "exact" not in sums:
        return sums
    kinds = ("exact", "mapped", "oneHot", "empty")
    rates = {f"{kind}Rate": sums[kind] / rows if rows else 0.0 for kind in kinds}
    lost = sums["massLost"] / covered if covered else 0.0
    return {**sums, **rates, "coverage": covered / rows if rows else 0.0, "massLostShare": lost}


class Pair:
    """Both tokenizers, and the decoded strings of the ids that have been seen."""

    def __init__(self, pivot: Any, source: Any) -> None:
        self.pivot, self.source = pivot, source
        self.same = align_tokens.same_vocabulary(pivot, source)
        self._decoded: tuple[dict[int, str], dict[int, str]] = ({}, {})

    def pieces(self) -> tuple[list[str | None], list[str | None]]:
        """(pivot's, source's) pieces by id."""
        return align_tokens.pieces(self.pivot), align_tokens.pieces(self.source)

    def strings(self, pivot: Rows, source: Rows) -> Strings:
        """Decoded strings of both blocks' ids. ValueError for ids that a tokenizer does not have."""
        for known, tokenizer, block, side in zip(
            self._decoded, (self.pivot, self.source), (pivot, source), ("pivot", "source"), strict=True
        ):
            used = np.unique(block.input_ids).tolist()
            if used and used[-1] >= len(tokenizer):
                raise ValueError(
                    f"the {side}'s block holds token id {used[-1]}, its tokenizer has {len(tokenizer)}; "
                    "the block was extracted with another tokenizer, make it anew"
                )
            known.update(align_tokens.decoded(tokenizer, [i for i in used if i not in known]))
        return Strings(*self._decoded)


class Correcting:
    """op rows, profile Corrected."""

    def __init__(self, params: Mapping[str, Any], inputs: Mapping[str, Input], pair: Pair) -> None:
        pivot = align_tokens.vocabulary(pair.pivot, params["pivotTemplate"])
        source = align_tokens.vocabulary(pair.source, params["sourceTemplate"])
        first = align_tokens.first_tokens(pair.pivot, pivot)
        self._tokens = ByteMap(source, pivot, first, same=pair.same)
        self._tables = align_corrected.byte_table(pivot), align_corrected.byte_table(source)

    def __call__(self, number: int, pivot: Rows, source: Rows, out: Output) -> dict[str, Any]:
        return _write(number, *align_corrected.align_block(pivot, source, self._tokens, *self._tables), out)


class Publishing:
    """op rows, profile Published."""

    def __init__(self, params: Mapping[str, Any], inputs: Mapping[str, Input], pair: Pair) -> None:
        self._pair, self._method, self._counts = pair, params["method"], inputs.get("counts")
        if pair.same:
            return
        pivot, source = pair.pieces()
        self._equal = vocabulary.equal_map(source, pivot, **_markers(pivot, source))
        self._mapped = self._equal
        if self._method != "EM":
            self._mapped = _read_map(inputs, len(source), len(pivot))

    def __call__(self, number: int, pivot: Rows, source: Rows, out: Output) -> dict[str, Any]:
        if self._pair.same:
            return _write(number, *align_published.join_block(pivot, source), out)
        strings = self._pair.strings(pivot, source)
        spans = self._spans(number, pivot, source, strings)
        tables = self._equal, self._mapped
        return _write(
            number, *align_published.align_block(pivot, source, spans, self._method, strings, *tables), out
        )

    def _spans(self, number: int, pivot: Rows, source: Rows, strings: Strings) -> np.ndarray:
        """The warping that op count has kept, else a new one (EM and MinED count nothing)."""
        if self._counts is None:
            return align_published.warp_block(pivot, source, strings)
        spans = np.load(self._counts.path(f"spans-{number:05d}.npy"), mmap_mode="r")
        if spans.shape != (2, len(pivot.input_ids)):
            raise ValueError(
                f"the warping of block {number} is for {spans.shape[1]} ids, the pivot's block has "
                f"{len(pivot.input_ids)}; the counts were made from another extract, make them anew"
            )
        return spans


class Counting:
    """op count: how often tokens were matched, and the warping."""

    def __init__(self, params: Mapping[str, Any], inputs: Mapping[str, Input], pair: Pair) -> None:
        self._pair = pair

    def __call__(self, number: int, pivot: Rows, source: Rows, out: Output) -> dict[str, Any]:
        pivots = len(align_tokens.pieces(self._pair.pivot))
        counts = PairCounts(np.zeros(0, np.int64), np.zeros(0, np.int64), pivots)
        spans = np.full((2, len(pivot.input_ids)), -1, dtype=np.int32)
        if not self._pair.same:
            spans = align_published.warp_block(pivot, source, self._pair.strings(pivot, source))
            counts = align_published.count_block(pivot, source, spans, pivots)
        arrays = {"counts": np.stack([counts.keys_P, counts.counts_P]), "spans": spans}
        files = {f"{kind}-{number:05d}.npy": array for kind, array in arrays.items()}
        for name, array in files.items():
            np.save(out.folder / name, array)
        metrics = {"samples": pivot.samples, "tokens": len(pivot.input_ids), "pairs": len(counts.keys_P)}
        out.publish_block(number, {name: out.folder / name for name in files}, metrics)
        return metrics


def _blocks(work: Any, inputs: Mapping[str, Input], out: Output) -> None:
    names = _block_names(inputs["pivot"])
    for number in out.blocks(len(names)):
        name = shards.block_name(number)
        pivot, source = (shards.read_rows(inputs[role].path(name)) for role in ("pivot", "source"))
        work(number, pivot, source, out)
        out.progress(number + 1, len(names), "blocks", **{"from": out.first_block})


def _write(number: int, aligned: Aligned, mass_R: np.ndarray, out: Output) -> dict[str, Any]:
    path = out.folder / shards.block_name(number)
    shards.write_aligned(path, aligned)
    metrics = block_metrics(aligned, mass_R)
    out.publish_block(number, {path.name: path}, metrics)
    return metrics


def block_metrics(aligned: Aligned, mass_R: np.ndarray) -> dict[str, Any]:
    """Sums of one block: rows by kind, and the probability kept, in the tail, and lost (no pivot token)."""
    kinds = np.bincount(aligned.kind, minlength=4)
    wins = aligned.ce_source < aligned.ce_pivot
    return {
        "samples": aligned.samples,
        "rows": len(aligned.kind),
        "exact": int(kinds[EXACT]),
        "mapped": int(kinds[MAPPED]),
        "oneHot": int(kinds[ONE_HOT]),
        "empty": int(kinds[EMPTY]),
        "mass": _total(mass_R),
        "massTail": _total(aligned.tail),
        "massLost": _total(aligned.unmapped),
        "sourceWins": int(wins.sum()),
    }


def _total(values_R: np.ndarray) -> float:
    """Sum without what is not a number: filter drops those samples, and JSON cannot hold it."""
    return float(np.nansum(values_R, dtype=np.float64))


def _map(method: str, inputs: Mapping[str, Input], pair: Pair, out: Output) -> None:
    pivot, source = pair.pieces()
    markers = _markers(pivot, source)
    default = pair.pivot.unk_token_id if pair.pivot.unk_token_id is not None else pair.pivot.eos_token_id
    if method == "MS":
        if default is None:
            raise ValueError(
                "the pivot's tokenizer has neither unk nor eos, method MS needs one; take MinED or EM"
            )
        roles = ("bos_token_id", "eos_token_id")
        forced = [(getattr(pair.source, role), getattr(pair.pivot, role)) for role in roles]
        counts = _read_counts(inputs["counts"], len(pivot))
        target = vocabulary.surface_map(counts, source, pivot, default=default, forced=forced, **markers)
    elif method == "EM":
        target = vocabulary.equal_map(source, pivot, **markers)
    else:
        target = vocabulary.nearest_map(source, pivot, default=0 if default is None else default, **markers)
    path = out.folder / "map.json"
    path.write_text(json.dumps(target.tolist()))
    out.add("map.json", path)
    mapped = (target >= 0) & (target != (-1 if default is None else default))
    out.metrics.update(sourceTokens=len(source), pivotTokens=len(pivot), mapped=int(mapped.sum()))


def _markers(pivot: Iterable[str | None], source: Iterable[str | None]) -> dict[str, str]:
    return {
        "source_marker": vocabulary.space_marker(list(source)),
        "pivot_marker": vocabulary.space_marker(list(pivot)),
    }


def _read_counts(counts: Input, pivots: int) -> list[PairCounts]:
    names = [name for name in counts.names() if name.startswith("counts-")]
    arrays = [np.load(counts.path(name), mmap_mode="r") for name in names]
    return [PairCounts(array[0], array[1], pivots) for array in arrays]


def _read_map(inputs: Mapping[str, Input], sources: int, pivots: int) -> np.ndarray:
    target = np.array(json.loads(inputs["map"].path("map.json").read_text()), dtype=np.int32)
    if len(target) != sources or target.max(initial=-1) >= pivots:
        raise ValueError(
            f"the vocabulary map has {len(target)} entries up to id {target.max(initial=-1)}, the tokenizers "
            f"have {sources} and {pivots} tokens; the map was made for other tokenizers, make it anew"
        )
    return target


def _tokenizer(model: Input) -> Any:
    return models.load_tokenizer(model.folder(only=lambda name: models.needed(name) and not _weights(name)))


def _weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _block_names(extract: Input) -> list[str]:
    return [name for name in extract.names() if name.startswith("block-")]


def _check_roles(op: str, profile: str, method: str, inputs: Mapping[str, Input]) -> None:
    needed = ["pivotModel", "sourceModel"] + (["pivot", "source"] if op != "map" else [])
    needed += ["counts"] if op == "map" and method == "MS" else []
    needed += ["map"] if op == "rows" and profile == "Published" and method != "EM" else []
    if missing := [role for role in needed if role not in inputs]:
        raise ValueError(
            f"align: op {op} with {method} got no input {', '.join(missing)}; expected {', '.join(needed)}"
        )


def _check_inputs(inputs: Mapping[str, Input]) -> None:
    """ValueError for extracts that cannot be of one dataset, before any block is read."""
    counts = {role: len(_block_names(inputs[role])) for role in ("pivot", "source")}
    if counts["pivot"] != counts["source"]:
        raise ValueError(
            f"the pivot's extract has {counts['pivot']} blocks and the source's {counts['source']}; expected "
            "blocks of one dataset: extract both models on the same one"
        )
