"""What survives of a download that was killed, and what does not."""

import pytest
from fusechat.errors import TemporaryFailure
from fusechat.store_partfile import need, owned

FACTS = {"key": "k", "size": 100, "sha256": "s", "range": 10}


def leave(target, *starts, facts=FACTS):
    with owned(target, facts) as part:
        for start in starts:
            part.add(start)


def found(target, facts=FACTS):
    with owned(target, facts) as part:
        return part.done


def test_a_new_download_has_nothing(tmp_path):
    assert found(tmp_path / "x") == set()
    assert (tmp_path / "x.part").stat().st_size == 100


def test_a_killed_download_knows_what_it_has(tmp_path):
    leave(tmp_path / "x", 0, 30)
    leave(tmp_path / "x", 20)
    assert found(tmp_path / "x") == {0, 20, 30}


@pytest.mark.parametrize("other", [{"key": "other"}, {"size": 101}, {"sha256": "t"}, {"range": 20}])
def test_the_download_of_something_else_is_not_gone_on_with(tmp_path, other):
    leave(tmp_path / "x", 0, 30)
    assert found(tmp_path / "x", {**FACTS, **other}) == set()


def test_a_half_written_last_line_counts_for_nothing(tmp_path):
    leave(tmp_path / "x", 0)
    with (tmp_path / "x.part.done").open("a") as file:
        file.write("3")
    assert found(tmp_path / "x") == {0}


def test_a_journal_without_its_file_counts_for_nothing(tmp_path):
    leave(tmp_path / "x", 0)
    (tmp_path / "x.part").unlink()
    assert found(tmp_path / "x") == set()


def test_keeping_makes_the_target_and_dropping_leaves_nothing(tmp_path):
    with owned(tmp_path / "x", FACTS) as part:
        part.keep()
    with owned(tmp_path / "y", FACTS) as part:
        part.drop()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_disk_without_room_says_how_much_is_needed_and_free(tmp_path):
    need(tmp_path / "x", 1)
    with pytest.raises(TemporaryFailure, match=r"1099511627776 MiB more are needed, \d+ MiB are free"):
        need(tmp_path / "x", 1 << 60)
