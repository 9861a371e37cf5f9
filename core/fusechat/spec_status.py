"""What the operator tells of a run: the fields of FusionRun's status, bounded so that 50 sources fit 32 KB.

Used by crd.py for the schema and by the operator to write one. Conditions are the truth, as kstatus, Flux and
Argo CD read them; the flat texts (stage, progress, cached, score) exist for kubectl's columns only. The whole
list of steps lies in the store at `runs/<uid>.json`. The operator writes fewer words where a run is large.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusechat.spec_types import Base

CONDITIONS = ("Ready", "Reconciling", "Stalled", "Succeeded", "Suspended", "Reproducible")
StepState = Literal["Pending", "Waiting", "Running", "Cached", "Succeeded", "Failed"]
Time = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
Short = Annotated[str, Field(max_length=64)]
Name = Annotated[str, Field(max_length=128)]
Sentence = Annotated[str, Field(max_length=1024)]
Uri = Annotated[str, Field(max_length=1280)]
Count = Annotated[int, Field(ge=0)]
Numbers = Annotated[dict[Short, float], Field(max_length=16)]


class Condition(Base):
    """A condition of Kubernetes' API conventions."""

    type: Annotated[str, Field(min_length=1, max_length=316)] = Field(description=", ".join(CONDITIONS) + ".")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=256)] = (
        Field(description="One CamelCase word for programs.")
    )
    message: Annotated[str, Field(max_length=4096)] = Field("", description="One sentence for people.")
    observed_generation: Count | None = Field(None, description="Generation of the spec it is about.")
    last_transition_time: Time = Field(description="When the status last changed.")


class Attempts(Base):
    """How often a step was started, by what ended the attempt."""

    disruption: Count = Field(0, description="Evicted, preempted, or its node was lost.")
    infrastructure: Count = Field(0, description="Trouble outside: store, hub, full disk.")
    bug: Count = Field(0, description="Bad data, out of memory, NaN loss: not tried again.")


class StepLine(Base):
    """One step, in as few bytes as can be; what is counted here survives the operator."""

    name: Name = Field(description="Name of the step in the plan.")
    state: StepState = Field(description="Where it stands.")
    address: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="First hex digits of its artifact's address."
    )
    tries: Attempts | None = Field(None, description="Attempts that ended without an artifact, by cause.")
    ended: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="UID of the last child whose end was counted."
    )
    replanned: bool | None = Field(None, description="Whether it lacked an input once, which was made anew.")
    within: tuple[Count, ...] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Of the tries: disruptions, and trouble outside, that its Job of now went on from.",
    )


class StepDetail(Base):
    """An active or failed step."""

    name: Name = Field(description="Name of the step in the plan.")
    child: Name | None = Field(None, description="Kind and name of the object that runs it.")
    attempts: Attempts = Field(default_factory=Attempts, description="Attempts by cause of their end.")
    started: Time | None = Field(None, description="When its first attempt began.")
    finished: Time | None = Field(None, description="When it ended.")
    shards: Annotated[str, Field(max_length=16)] | None = Field(None, description="Shards done, as 3/4.")
    percent: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="Progress.")
    rate: Short | None = Field(None, description="Speed with its unit.")
    eta_seconds: Count | None = Field(None, description="Seconds to its end at this rate.")
    last_checkpoint: Time | None = Field(None, description="When training last saved a checkpoint.")
    artifact: Uri | None = Field(None, description="Where its artifact is or will be.")
    metrics: Numbers = Field(default_factory=dict, description="Its key figures.")
    message: Sentence = Field("", description="Why it waits or failed, in one sentence.")


class Score(Base):
    """A model's result in one benchmark."""

    subject: Short = Field(description="Pivot, Fused, or the kind and name of another model.")
    benchmark: Short = Field(description="exactMatch, perplexity, mtBench or alpacaEval.")
    score: float = Field(description="The result.")
    low: float | None = Field(None, description="Lower end of its 95 % interval.")
    high: float | None = Field(None, description="Upper end of its 95 % interval.")


class Pin(Base):
    """What an input was pinned to."""

    name: Short = Field(description="pivot, dataset, a source or a benchmark.")
    pin: Annotated[str, Field(max_length=80)] = Field(description="hf:<commit> or sha256:<digest>.")
    asked: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Digest of what was asked for; an edit that leaves it keeps the pin."
    )


class FrozenPlan(Base):
    """What a generation's addresses were made of; an upgrade of the operator does not change it."""

    generation: Count = Field(description="Generation of the spec.")
    store: Annotated[str, Field(max_length=2100)] | None = Field(
        None, description="Store in which it began; of a run's own also the service."
    )
    pins: tuple[Pin, ...] = Field((), max_length=64, description="Inputs.")
    versions: Annotated[dict[Short, int], Field(max_length=16)] = Field(
        default_factory=dict, description="Version of each stage."
    )
    digest: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Digest of all addresses: another plan for the same spec shows."
    )
    images: Annotated[dict[Short, Annotated[str, Field(max_length=512)]], Field(max_length=16)] = Field(
        default_factory=dict, description="Image of each stage as the chart named it."
    )
    packed: Annotated[str, Field(max_length=16384)] | None = Field(
        None, description="Pins and images, where there is no room for them (JSON, zlib, base64)."
    )


class Status(Base):
    """Status of a FusionRun."""

    observed_generation: Annotated[int, Field(ge=-1)] = Field(
        -1, description="Generation that the operator last looked at; -1: none yet."
    )
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        description="Reconciling and Stalled are there only while they are true.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stage: Short | None = Field(None, description="Stages that are at work.")
    progress: Short | None = Field(None, description="Steps done of all, as 7/23.")
    cached: Short | None = Field(None, description="Steps that were published before, of all, as 5/23.")
    score: Short | None = Field(None, description="The fused model's first score.")
    steps: tuple[StepLine, ...] = Field(
        (),
        max_length=600,
        description="Every step; some of those that are at work, wait or failed where `packed` has them all.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    packed: Annotated[str, Field(max_length=65536)] | None = Field(
        None,
        description="Every step, where there is no room for them (JSON, zlib, base64): "
        "`fusechat cluster status` shows them.",
    )
    details: tuple[StepDetail, ...] = Field(
        (),
        max_length=20,
        description="Active and failed steps.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    plan: FrozenPlan | None = Field(None, description="What the addresses are made of.")
    launcher: Short | None = Field(None, description="What starts trainings of several pods, and why.")
    model: Uri | None = Field(None, description="Where the fused model is.")
    report: Uri | None = Field(None, description="Where the report is.")
    scores: tuple[Score, ...] = Field((), max_length=256, description="Results.")
    gpu_seconds: Annotated[float, Field(ge=0)] | None = Field(None, description="GPU time used so far.")
    last_retry: Short | None = Field(None, description="The last fusechat.io/retry-at that was obeyed.")
    started: Time | None = Field(None, description="When the run's first step began.")
    finished: Time | None = Field(None, description="When it ended.")
    cleared: bool | None = Field(
        None, description="Whether an ended run's finished TrainJobs are cleared away."
    )
