"""Stage evaluate: one model on one benchmark, under its own template.

exactMatch (inputs model, questions): greedy answers, right when equal to the expected one; writes
`answers.jsonl`. perplexity (inputs model, dataset): cross-entropy of the conversations' answers; writes
`samples.jsonl`. Both files carry what a paired comparison of two models needs. The stage knows nothing of
other models, of how this one came to be, or of judges.

params: {"benchmark", "template", "dtype"}; exactMatch: "maxNewTokens", "casefold" (default false);
perplexity: "maxLength". runtime: {"tokensPerBatch", "device"}.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusechat.errors import BadData
from fusechat.intervals import ratio, wilson

from fusechat_stages.artifacts import Input, Output, Stopped

VERSION = 1
TOKENS_PER_BATCH = 16384


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Score the model. BadData for an unknown benchmark, for no data, and for what chat and models refuse."""
    benchmark = str(params["benchmark"])
    if benchmark in _JUDGED:
        raise BadData(
            f"benchmark {benchmark}: scoring by a judge is not in this version, which has exactMatch and "
            f"perplexity; take {benchmark} out of spec.evaluate"
        )
    if benchmark not in _BENCHMARKS:
        raise BadData(f"unknown benchmark {benchmark!r}, expected one of {', '.join(_BENCHMARKS)}")
    out.metrics.update({"benchmark": benchmark, **_BENCHMARKS[benchmark](params, inputs, out)})


def normalised(text: str, casefold: bool = False) -> str:
    """What is compared: Unicode NFC, white space at both ends removed, case folded if asked; nothing else."""
    text = unicodedata.normalize("NFC", text)
    return (unicodedata.normalize("NFC", text.casefold()) if casefold else text).strip()


@dataclass(frozen=True)
class _Chat:
    """A model ready to be asked: `context` positions, `vocabulary` ids that its tokenizer knows."""

    tokenizer: Any
    model: Any
    template: Any

    @property
    def context(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1


def _load(params: Mapping[str, Any], model: Input, out: Output) -> _Chat:
    from fusechat_stages import models

    device = out.runtime.get("device")
    folder = model.folder(models.needed)
    tokenizer = models.load_tokenizer(folder)
    loaded = models.load_model(folder, str(params["dtype"]), device=device, tokenizer=tokenizer)
    # Elsewhere the last bit of a logit, and with it a tie, depends on kernels and on the rest of the batch.
    out.deterministic = loaded.device.type == "cpu" and params["dtype"] == "float32"
    return _Chat(tokenizer, loaded, params["template"])


# exactMatch


def _exact_match(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> dict[str, Any]:
    questions = _records(inputs["questions"], "question")
    asked = _load(params, inputs["model"], out)
    answers, too_long = _ask(asked, questions, params, out)
    fold = bool(params.get("casefold"))
    judged = []
    for question, (output, truncated) in zip(questions, answers, strict=True):
        right = normalised(output, fold) == normalised(question["answer"], fold)
        known = {"id": question["id"], "output": output, "answer": question["answer"], "correct": right}
        judged.append({**known, "category": question.get("category"), "truncated": truncated})
    _publish(out, "answers.jsonl", judged)
    return {**exact_match_metrics(judged), "tooLong": too_long}


def _ask(
    asked: _Chat, questions: Sequence[Mapping[str, Any]], params: Mapping[str, Any], out: Output
) -> tuple[list[tuple[str, bool]], int]:
    """(output, truncated) of every question in order, and how many prompts left no room for an answer."""
    from fusechat_stages import chat
    from fusechat_stages.chat_own import find
    from fusechat_stages.generation import greedy

    tokenizer, total = asked.tokenizer, len(questions)
    prompts = [chat.prompt_ids(tokenizer, asked.template, question["messages"]) for question in questions]
    too_long = sum(asked.context is not None and len(prompt) >= asked.context for prompt in prompts)
    if too_long == total:
        shortest = min(map(len, prompts))
        raise BadData(
            f"none of the {total} questions fits: the shortest prompt has {shortest} tokens, the model "
            f"{asked.context} positions; ask shorter questions or take a model with more positions"
        )

    answers = greedy(
        asked.model,
        prompts,
        stop_ids=chat.stop_ids(tokenizer, asked.template),
        max_new_tokens=int(params["maxNewTokens"]),
        tokens_per_batch=_budget(out),
        vocabulary=asked.vocabulary,
        context=asked.context,
        each=_teller(out, total, "questions"),
    )
    end = find(asked.template, tokenizer).end
    return [answer_text(tokenizer, answer, end) for answer in answers], too_long


def answer_text(tokenizer: Any, answer: Any, end: str) -> tuple[str, bool]:
    """(text, truncated) of an answer, control tokens left out.

    An end-of-turn of several tokens is no stop id: the text is cut where it stands.
    """
    text = tokenizer.decode(answer.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    before, found, _ = text.partition(end) if end else (text, "", "")
    return before, answer.truncated and not found


def exact_match_metrics(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of right answers with its 95 % interval (Wilson), overall and by category; empty and cut answers.

    An empty or cut answer counts like any other: right only if it equals the expected one.
    """
    categories = sorted({str(j["category"]) for j in judged if j["category"] is not None})
    by = {c: _share([j for j in judged if j["category"] == c]) for c in categories}
    empty = sum(not normalised(j["output"]) for j in judged)
    return {
        **_share(judged),
        "byCategory": by,
        "empty": empty,
        "truncated": sum(j["truncated"] for j in judged),
    }


def _share(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = wilson(sum(j["correct"] for j in judged), len(judged))
    return {"score": found.value, "n": found.n, "ci95": [found.low, found.high]}


# perplexity


def _perplexity(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> dict[str, Any]:
    from fusechat_stages.likelihood import conversation_nats

    conversations = _records(inputs["dataset"], "conversation")
    asked = _load(params, inputs["model"], out)
    rendered, dropped, truncated = _render(asked, conversations, params)
    if not rendered:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise BadData(f"none of the {len(conversations)} conversations can be scored ({reasons})")
    nats = conversation_nats(
        asked.model,
        [conversation for _, conversation in rendered],
        tokens_per_batch=_budget(out),
        each=_teller(out, len(rendered), "samples"),
    )
    samples = []
    for (record, conversation), value in zip(rendered, nats, strict=True):
        tokens, size = _sizes(conversation)
        samples.append({"id": record["id"], "bits": value / math.log(2), "tokens": tokens, "bytes": size})
    _publish(out, "samples.jsonl", samples)
    return {**perplexity_metrics(samples), "dropped": dropped, "truncated": truncated}


def perplexity_metrics(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Perplexity per token of the model's own vocabulary, and bits per byte with its 95 % interval.

    Tokenizers cut the same text into different numbers of tokens, so perplexities compare only between
    models of one vocabulary; bits per byte compare between all. End-of-turn is one token and one byte. The
    interval takes conversations, not tokens, as the units of chance (see `fusechat.intervals.ratio`).
    """
    tokens, size = sum(s["tokens"] for s in samples), sum(s["bytes"] for s in samples)
    nats = math.fsum(s["bits"] for s in samples) * math.log(2)
    found = ratio([(s["bits"], s["bytes"]) for s in samples])
    limits = [found.low, found.high] if math.isfinite(found.low) else [None, None]
    return {
        "perplexity": math.exp(min(nats / tokens, 700.0)),
        "bitsPerByte": found.value,
        "ci95": limits,
        "tokens": tokens,
        "bytes": size,
        "samples": len(samples),
    }


def _render(
    asked: _Chat, conversations: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> tuple[list[tuple[Mapping[str, Any], Any]], dict[str, int], int]:
    """(record, conversation) of all that can be scored, how many cannot by reason, and how many were cut."""
    from fusechat_stages import chat

    longest = min(int(params.get("maxLength") or 2048), asked.context or 1 << 30)
    kept: list[tuple[Mapping[str, Any], Any]] = []
    dropped: dict[str, int] = {}
    truncated = 0
    for record in conversations:
        conversation = chat.render(asked.tokenizer, asked.template, record["messages"], longest)
        if conversation.reason or not any(turn.end > turn.start for turn in conversation.turns):
            reason = conversation.reason or "noSupervisedToken"
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        kept.append((record, conversation))
        truncated += _sizes(conversation)[1] < sum(turn.answer_bytes + 1 for turn in conversation.turns)
    return kept, dropped, truncated


def _sizes(conversation: Any) -> tuple[int, int]:
    """Supervised tokens of a conversation and the bytes of its answers that they stand for."""
    tokens, size = 0, 0
    for turn in conversation.turns:
        tokens += turn.end - turn.start
        size += int(conversation.end_bytes[tokens - 1]) if turn.end > turn.start else 0
    return tokens, size


# files and progress


def _budget(out: Output) -> int:
    return int(out.runtime.get("tokensPerBatch") or TOKENS_PER_BATCH)


def _teller(out: Output, total: int, unit: str) -> Callable[[int], None]:
    """What is called after every batch: tells the progress, and ends the stage when it is asked to stop."""

    def each(done: int) -> None:
        out.progress(done, total, unit)
        if out.stopping:
            raise Stopped(f"stopped after {done} of {total} {unit}; an evaluation starts over")

    return each


def _records(data: Input, what: str) -> list[dict[str, Any]]:
    found = [record for name in data.names() if name.endswith(".jsonl") for record in _lines(data.path(name))]
    if not found:
        raise BadData(f"there is no {what} to evaluate on; expected at least one")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def _publish(out: Output, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    path = out.folder / name
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    out.add(name, path)


_BENCHMARKS = {"exactMatch": _exact_match, "perplexity": _perplexity}
_JUDGED = ("mtBench", "alpacaEval")
