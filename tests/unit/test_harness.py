"""Benchmarks: a section is replaced in place, memory is the fork's own, a failure is never a number."""

import pytest

from benchmarks import harness
from benchmarks.harness import Row, Stats

ROW = Row("merge 1 GB", "45 s", "4 s", "11x", "<= 4.5 s", True)
MIB = 1 << 20


def test_measure_gives_the_middle_and_the_spread():
    assert harness.summarise([3.0, 1.0, 2.0]) == Stats(2.0, 1.0, 3.0)
    calls = []
    harness.measure(lambda: calls.append(1), repeat=2, warm=1)
    assert len(calls) == 3


def test_peak_memory_is_what_the_call_touched_and_not_what_the_parent_holds():
    held = bytearray(64 * MIB)
    added = harness.peak_rss(lambda: bytearray(b"x") * (100 * MIB), over_start=True)
    assert 95 * MIB < added < 140 * MIB
    assert harness.peak_rss(lambda: None, over_start=True) < 20 * MIB < len(held)


def test_a_call_that_fails_gives_no_figure(capfd):
    with pytest.raises(RuntimeError, match="failed in its process"):
        harness.peak_rss(lambda: 1 / 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_section_is_replaced_in_place_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr("sys.argv", ["merge.py", "--write"])
    (tmp_path / "results.md").write_text("# Results\n")
    harness.publish("merge", [ROW], ["a note"])
    harness.publish("align", [ROW])
    harness.publish("merge", [Row("merge | 2 GB", "-", "8 s", "-", "<= 9 s", False)])
    page = (tmp_path / "results.md").read_text()
    assert page.startswith("# Results\n\n<!-- begin merge -->\n## merge\n")
    assert page.index("## merge") < page.index("## align")
    assert "merge \\| 2 GB | - | 8 s | - | <= 9 s | **no** |" in page
    assert "a note" not in page
    assert page.count("merge 1 GB") == 1


def test_without_write_nothing_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr("sys.argv", ["merge.py", "--quick"])
    harness.publish("merge", [ROW])
    assert "quick size" in capsys.readouterr().out
    assert not (tmp_path / "results.md").exists()
