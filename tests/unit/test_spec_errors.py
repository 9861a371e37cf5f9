"""Every mistake is one plain sentence: where, what was found, what was expected, what to do."""

import pytest
from fusechat.spec import load
from fusechat.spec_rules import RULES

from tests.unit.spec_cases import BAD, TINY, broken


@pytest.mark.parametrize("case", BAD, ids=[case.what for case in BAD])
def test_a_bad_run_is_refused_with_a_sentence(case):
    with pytest.raises(ValueError, match=r".") as caught:
        load(broken(case))
    said = str(caught.value)
    assert case.says in said
    first = next(line for line in said.splitlines() if case.says in line)
    assert len(first) < 400
    assert "pydantic" not in said
    assert "Value error" not in said


def test_every_rule_has_a_case_that_breaks_it():
    said = []
    for case in BAD:
        with pytest.raises(ValueError, match=r".") as caught:
            load(broken(case))
        said.append(str(caught.value))
    for rule in RULES:
        assert any(rule.message in text for text in said), rule.name


def test_each_problem_is_told_once_and_all_are_told():
    text = TINY + "  extract: {topK: 0}\n  merge: {method: x}\n  fuse: {epochs: no}\n"
    with pytest.raises(ValueError, match=r".") as caught:
        load(text)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["line 10", "line 12", "line 11"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "byte 0 is not UTF-8; save the file as UTF-8"),
        (b"", "expected one FusionRun, got none"),
        (b"- a\n- b\n", "expected one FusionRun, got none"),
        (TINY.encode() + b"---\n" + TINY.encode(), "expected one FusionRun, got 2"),
        (b"a: &x [*x]\n", "not YAML"),
        (b"a: !!python/object:os.system {}\n", "not YAML"),
        (b"a" * ((1 << 20) + 1), "more than 1 MiB"),
        (b"{" * 500, "not YAML"),
        (b"? {a: 1}\n: 2\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path, content, says):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        load(tmp_path / "run.yaml")
    assert says in str(caught.value)
    assert "run.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.yaml: cannot be read \(No such file or directory\)"):
        load(tmp_path / "none.yaml")
