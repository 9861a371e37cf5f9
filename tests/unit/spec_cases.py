"""Runs that are good, and runs that are bad in one way each; also for the API server of tests/cluster."""

from __future__ import annotations

from dataclasses import dataclass

TINY = """\
apiVersion: fusechat.io/v1alpha1
kind: FusionRun
metadata: {name: tiny}
spec:
  pivot: {name: pivot-1, uri: file://models/pivot}
  sources:
  - {name: adder, uri: file://models/adder}
  - {name: sorter, uri: file://models/sorter}
  dataset: {uri: file://data.jsonl}
"""

PAPER = """\
apiVersion: fusechat.io/v1alpha1
kind: FusionRun
metadata: {name: fusechat-7b}
spec:
  pivot: {name: openchat, uri: hf://openchat/openchat_3.5, template: openchat_3.5}
  sources:
  - {name: starling, uri: hf://berkeley-nest/Starling-LM-7B-alpha, template: openchat_3.5}
  - {name: solar, uri: hf://NousResearch/Nous-Hermes-2-SOLAR-10.7B}
  - {name: internlm, uri: hf://internlm/internlm2-chat-20b, template: internlm2, resources: {gpus: 1}}
  - {name: mixtral, uri: hf://mistralai/Mixtral-8x7B-Instruct-v0.1, template: mistral, resources: {gpus: 2}}
  - {name: qwen, uri: hf://Qwen/Qwen1.5-72B-Chat, template: qwen, resources: {gpus: 4}}
  dataset: {uri: hf://datasets/FuseAI/FuseChat-Mixture, shards: 4}
  resources: {fuse: {gpus: 8}}
  merge: {method: sce, selectTopK: 0.1}
  evaluate: {mtBench: {judge: {model: gpt-4-0125-preview, secretRef: {name: openai}}}}
"""


@dataclass(frozen=True)
class Bad:
    """`old` replaced by `new` in TINY (at its end if `old` is empty) is refused with `says`.

    `rule`: the message is a rule's of spec_rules, which the API server must say word for word.
    """

    what: str
    old: str
    new: str
    says: str
    rule: bool = False
    python_only: bool = False


ADDER = "{name: adder, uri: file://models/adder}"
DATA = "dataset: {uri: file://data.jsonl}"
DIGEST = "sha256:" + "a" * 64

BAD: tuple[Bad, ...] = (
    Bad("unknown field", "", "  fusee: {}\n", "line 10: spec.fusee: there is no such field; did you mean fuse?"),
    Bad("snake case", "", "  fuse: {learning_rate: 1}\n", "spec.fuse.learning_rate: there is no such field; did you mean learningRate?"),
    Bad("unknown field of a source", ADDER, "{name: a, uri: file://a, templ: qwen}", "line 7: spec.sources[0].templ: there is no such field; did you mean template?"),
    Bad("a field like no other", "", "  zzz: 1\n", "spec.zzz: there is no such field; there are profile, pivot,"),
    Bad("no pivot", "pivot: {", "pivto: {", "spec.pivot: is missing; add it"),
    Bad("no sources", "  - {name: adder, uri: file://models/adder}\n  - {name: sorter, uri: file://models/sorter}\n", "    []\n", "spec.sources: got a list of 0, expected at least 1 entry"),
    Bad("too many sources", "  - " + ADDER + "\n", "".join(f"  - {{name: s{i}, uri: file://s}}\n" for i in range(51)), "spec.sources: got a list of 52, expected at most 50 entries"),
    Bad("a source without a uri", ADDER, "{name: adder}", "line 7: spec.sources[0].uri: is missing; add it: hf://owner/name"),
    Bad("nothing at a field", "dataset: {uri: file://data.jsonl}", "dataset:", "spec.dataset: got nothing, expected an object with fields", python_only=True),
    Bad("duplicate source", ADDER, "{name: sorter, uri: file://x}", "spec.sources: two sources have the same name"),
    Bad("source named as the pivot", ADDER, "{name: pivot-1, uri: file://x}", "a source has the pivot's name", rule=True),
    Bad("source named as a step", ADDER, "{name: dataset, uri: file://x}", "a source has a name that a step of the plan needs", rule=True),
    Bad("upper case name", ADDER, "{name: Adder, uri: file://x}", 'spec.sources[0].name: got "Adder", expected a short name of lower-case'),
    Bad("long name", ADDER, "{name: " + "a" * 41 + ", uri: file://x}", "expected at most 40 characters"),
    Bad("unknown scheme", ADDER, "{name: adder, uri: http://x}", 'spec.sources[0].uri: got "http://x", expected hf://owner/name'),
    Bad("a dataset as model", ADDER, "{name: adder, uri: hf://datasets/x}", "is a dataset's: a model of the hub is hf://owner/name", rule=True),
    Bad("a model as dataset", DATA, "dataset: {uri: hf://owner/name}", "spec.dataset.uri: got \"hf://owner/name\", expected hf://datasets/owner/name"),
    Bad("a number as revision", ADDER, "{name: adder, uri: hf://a/b, revision: 1234567}", "spec.sources[0].revision: got 1234567, expected a full commit"),
    Bad("a branch of a folder", ADDER, "{name: adder, uri: s3://bucket/x, revision: main}", "is pinned by its content: write sha256:", rule=True),
    Bad("a branch of a dataset's folder", DATA, "dataset: {uri: s3://bucket/d, revision: main}", "is pinned by its content: write sha256:", rule=True),
    Bad("remote code at a branch", ADDER, "{name: adder, uri: hf://a/b, revision: main, allowRemoteCode: true}", "name a full commit as its revision", rule=True),
    Bad("unknown template", ADDER, "{name: adder, uri: file://x, template: chatml}", "expected one of auto, openchat_3.5"),
    Bad("quoted number", "", '  extract: {topK: "10"}\n', 'spec.extract.topK: got "10", expected a whole number'),
    Bad("truth value as number", "", "  extract: {topK: true}\n", "spec.extract.topK: got true, expected a whole number"),
    Bad("fraction of a count", "", "  fuse: {epochs: 1.5}\n", "spec.fuse.epochs: got 1.5, expected a whole number"),
    Bad("below its bound", "", "  extract: {topK: 0}\n", "spec.extract.topK: got 0, expected at least 1"),
    Bad("above its bound", "", "  merge: {selectTopK: 1.5}\n", "spec.merge.selectTopK: got 1.5, expected at most 1"),
    Bad("not a number", "", "  fuse: {learningRate: .nan}\n", "spec.fuse.learningRate: got nan, expected a finite number", python_only=True),
    Bad("unknown method", "", "  merge: {method: scee}\n", "expected one of sce, linear, task_arithmetic"),
    Bad("unknown subject", "", "  evaluate: {subjects: [Pivots]}\n", "spec.evaluate.subjects[0]: got \"Pivots\", expected one of Pivot, Sources"),
    Bad("method of the other profile", "", "  align: {method: MS}\n", "Bytes belongs to profile Corrected", rule=True),
    Bad("Bytes under Published", "", "  profile: Published\n  align: {method: Bytes}\n", "Bytes belongs to profile Corrected", rule=True),
    Bad("longer than extracted", "", "  extract: {maxLength: 64}\n  fuse: {maxLength: 65}\n", "is more than extract.maxLength", rule=True),
    Bad("micro batch above global", "", "  fuse: {globalBatch: 2}\n", "is more than globalBatch", rule=True),
    Bad("weights of a stranger", "", "  merge: {method: linear, weights: {stranger: 1}}\n", "names something that is no source", rule=True),
    Bad("weights that are not used", "", "  merge: {weights: {adder: 1}}\n", "are used by linear, task_arithmetic, ties", rule=True),
    Bad("a weight that is no number", "", "  merge: {method: linear, weights: {adder: x}}\n", 'spec.merge.weights.adder: got "x", expected a number'),
    Bad("slerp of one", "  - {name: sorter, uri: file://models/sorter}\n  dataset:", "  merge: {method: slerp}\n  dataset:", "slerp lies between exactly two targets", rule=True),
    Bad("two credentials", "", "  storage: {secretRef: {name: a}, serviceAccountName: b}\n", "are two ways to the same store", rule=True),
    Bad("a store that is no bucket", "", "  storage: {uri: gs://x}\n", "spec.storage.uri: got \"gs://x\", expected s3://bucket"),
    Bad("no quantity", "", "  resources: {fuse: {memory: lots}}\n", 'spec.resources.fuse.memory: got "lots", expected a Kubernetes quantity'),
    Bad("a fraction as quantity", "", "  resources: {fuse: {cpu: 0.5}}\n", "spec.resources.fuse.cpu: got 0.5, expected a Kubernetes quantity"),
    Bad("unknown stage", "", "  resources: {fusee: {gpus: 1}}\n", "spec.resources.fusee: there is no such field; did you mean fuse?"),
    Bad("no duration", "", "  ttl: tomorrow\n", 'spec.ttl: got "tomorrow", expected a time such as 90s'),
    Bad("a time of a century", "", "  ttl: 999999h\n", 'spec.ttl: got "999999h", expected a time such as 90s, 90m or 1h30m (at most 8760h)'),
    Bad("a ttl of more than a year", "", "  ttl: 8760h1s\n", "a finished child is kept for at least 1m", rule=True),
    Bad("a ttl of more minutes than fit", "", "  ttl: 999999m\n", "and at most 8760h (a year)", rule=True),
    Bad("a ttl that nobody sees", "", "  ttl: 59s\n", "a finished child is kept for at least 1m", rule=True),
    Bad("a deadline of more than a year", "", "  deadline: 9999h\n", "is more than 8760h (a year)", rule=True),
    Bad("a gate above one", "", "  gates: {keptShare: 90}\n", "spec.gates.keptShare: got 90, expected at most 1"),
    Bad("a toleration of nothing", "", "  scheduling: {tolerations: [{value: x}]}\n", "is missing: name the taint, or set operator to Exists", rule=True),
    Bad("no judge", "", "  evaluate: {mtBench: {}}\n", "spec.evaluate.mtBench.judge: is missing; add it: Who grades"),
    Bad("long run name", "name: tiny", "name: " + "n" * 64, "has at most 63 characters", rule=True),
    Bad("run name with a space", "name: tiny", "name: a b", "metadata.name: got \"a b\", expected a Kubernetes name"),
    Bad("another kind", "kind: FusionRun", "kind: Fusion", 'kind: got "Fusion", expected one of FusionRun'),
    Bad("another version", "v1alpha1", "v1", 'apiVersion: got "fusechat.io/v1", expected one of fusechat.io/v1alpha1'),
    Bad("a key twice", "", "  ttl: 1h\n  ttl: 2h\n", "line 11: not YAML: the key 'ttl' is given twice (first in line 10)", python_only=True),
    Bad("bad indentation", "  dataset:", " dataset:", "line 9: not YAML", python_only=True),
)  # fmt: skip


def broken(case: Bad) -> str:
    """The text of the bad run."""
    assert case.old in TINY
    return TINY.replace(case.old, case.new, 1) if case.old else TINY + case.new
