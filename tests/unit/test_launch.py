"""A step and its command line are one another's inverse; a bad command line is refused with a sentence."""

import pytest
from fusechat.launch import Launch, argv, parse
from hypothesis import given
from hypothesis import strategies as st

HASH = "0" * 64
PARAMS = st.dictionaries(st.text(max_size=6), st.integers() | st.text(max_size=9) | st.booleans(), max_size=4)


@given(
    PARAMS,
    PARAMS,
    st.integers(1, 9),
    st.dictionaries(st.sampled_from(["a", "target.0", "b"]), st.just(f"x/{HASH}")),
)
def test_parse_undoes_argv(params, runtime, shards, inputs):
    told = Launch(
        "fuse", 1, f"fuse/{HASH}", "s3://b/p", params, inputs, "Published", (shards - 1, shards), runtime
    )
    assert parse(argv(told)) == told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "first argument must be a stage"),
        (["--version=1"], "first argument must be a stage"),
        (["fuse", "--version=1"], "missing argument --address"),
        (["fuse", "--colour=red"], "unknown argument --colour"),
        (["fuse", "stray"], "--name=value"),
        (["fuse", "--address=fuse/12"], "64 hex digits"),
        (["fuse", "--input=model=fetch/12"], "--input=model"),
        (["fuse", "--params=[1]"], "expected a JSON object"),
        (["fuse", "--params={"], "expected a JSON object"),
        (["fuse", "--shard=4/4"], "INDEX < COUNT"),
        (["fuse", "--shard=x"], "INDEX/COUNT"),
    ],
)
def test_a_bad_command_line_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        parse(arguments)
