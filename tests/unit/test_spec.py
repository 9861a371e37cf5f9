"""A run is short, everything else has the paper's default, and what is read is what was written."""

from pathlib import Path

import pytest
from fusechat.spec import FusionRun, load, seconds

from tests.unit.spec_cases import PAPER, TINY


def test_a_complete_run_has_at_most_25_lines_and_the_papers_defaults():
    assert len(PAPER.strip().splitlines()) <= 25
    spec = load(PAPER).spec
    fuse = spec.fuse
    assert (spec.extract.top_k, spec.extract.max_length, spec.extract.dtype) == (10, 2048, "bfloat16")
    assert (fuse.global_batch, fuse.micro_batch, fuse.epochs, fuse.weight_decay) == (128, 4, 3, 0.0)
    assert (fuse.learning_rate, fuse.scheduler, fuse.warmup_ratio) == (5e-6, "cosine", 0.03)
    assert (fuse.lm_weight, fuse.loss, fuse.choice, fuse.temperature) == (0.9, "ce", "MinCE", 1.0)
    assert fuse.with_pivot
    assert fuse.gradient_checkpointing
    assert (spec.merge.method, spec.merge.variant, spec.merge.select_topk) == ("sce", "fuseai", 0.1)


@pytest.mark.parametrize(
    ("written", "method"),
    [
        ("", "Bytes"),
        ("  profile: Corrected\n", "Bytes"),
        ("  profile: Published\n", "MS"),
        ("  profile: Published\n  align: {method: EM}\n", "EM"),
    ],
)
def test_the_align_method_is_the_profiles(written, method):
    assert load(TINY + written).spec.align.method == method


def test_the_trainings_length_is_the_extractions():
    assert load(TINY).spec.fuse.max_length == 2048
    assert load(TINY + "  extract: {maxLength: 512}\n").spec.fuse.max_length == 512
    assert load(TINY + "  fuse: {maxLength: 256}\n").spec.fuse.max_length == 256


@pytest.mark.parametrize(
    ("written", "want"),
    [("5e-6", 5e-6), ("1", 1.0), ("0.5", 0.5), ("1E-3", 1e-3), (".25", 0.25), ("1.", 1.0)],
)
def test_numbers_are_read_as_kubernetes_reads_them(written, want):
    assert load(TINY + f"  fuse: {{learningRate: {written}}}\n").spec.fuse.learning_rate == want


def test_a_word_that_yaml_1_1_calls_a_date_or_a_truth_value_stays_text():
    text = TINY.replace(
        "metadata: {name: tiny}", "metadata: {name: tiny, labels: {day: 2024-08-15, ok: yes}}"
    )
    assert load(text).metadata.labels == {"day": "2024-08-15", "ok": "yes"}


def test_file_uris_are_taken_from_the_files_folder(tmp_path):
    (tmp_path / "run.yaml").write_text(TINY)
    spec = load(tmp_path / "run.yaml").spec
    assert spec.pivot.uri == f"file://{tmp_path}/models/pivot"
    assert load(str(tmp_path / "run.yaml")).spec == spec
    assert load(TINY, base=tmp_path).spec == spec
    assert load(TINY.replace("file://models", "file:///models")).spec.pivot.uri == "file:///models/pivot"


def test_the_api_servers_object_is_read_with_its_metadata_and_without_its_status():
    run = load(
        {
            "apiVersion": "fusechat.io/v1alpha1",
            "kind": "FusionRun",
            "metadata": {"name": "a", "namespace": "team", "uid": "u-1", "generation": 4,
                         "resourceVersion": "9", "managedFields": [{}]},
            "spec": {"pivot": {"name": "p", "uri": "s3://bucket/p"},
                     "sources": [{"name": "s", "uri": "s3://bucket/s"}],
                     "dataset": {"uri": "s3://bucket/d"}},
            "status": {"observedGeneration": 3, "anything": True},
        }
    )  # fmt: skip
    assert (run.metadata.namespace, run.metadata.uid, run.metadata.generation) == ("team", "u-1", 4)


def test_reading_does_not_change_what_was_handed_over():
    data = {"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": {"name": "a"},
            "status": {}, "spec": {"pivot": {"name": "p", "uri": "file://p"},
                     "sources": [{"name": "s", "uri": "file://s"}],
                     "dataset": {"uri": "file://d"}}}  # fmt: skip
    load(data, base=Path("/x"))
    assert data["spec"]["pivot"]["uri"] == "file://p"
    assert "status" in data


def test_what_was_read_can_be_written_and_read_again():
    run = load(PAPER)
    again = FusionRun.model_validate_json(run.model_dump_json(by_alias=True, exclude_none=True))
    assert again == run


def test_the_run_is_found_among_other_documents():
    assert load("kind: Secret\napiVersion: v1\n---\n" + TINY).metadata.name == "tiny"


@pytest.mark.parametrize(("text", "want"), [("30s", 30), ("90m", 5400), ("1h30m", 5400), ("24h", 86400)])
def test_durations_are_seconds(text, want):
    assert seconds(text) == want


@pytest.mark.parametrize(
    ("uri", "revision", "pinned"),
    [
        ("hf://a/b", "main", False),
        ("hf://a/b", "a" * 40, True),
        ("s3://bucket/p", "sha256:" + "0" * 64, True),
        ("s3://bucket/p", None, False),
    ],
)
def test_only_a_full_commit_or_a_digest_is_a_pin(uri, revision, pinned):
    line = (
        f"  pivot: {{name: p, uri: {uri}, revision: {revision}}}\n"
        if revision
        else f"  pivot: {{name: p, uri: {uri}}}\n"
    )
    text = "\n".join(row for row in TINY.splitlines() if "pivot:" not in row) + "\n" + line
    assert load(text).spec.pivot.pinned is pinned
