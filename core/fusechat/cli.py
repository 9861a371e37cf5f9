"""`fusechat plan | run | status | logs | get | retry | gc`: a FusionRun on a machine with no cluster.

The console script. Each command is a few lines over plan, local and store; a cluster's commands come from the
operator package by entry point (`fusechat.commands`). The exit code and the last line say what happened.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fusechat.errors import FusechatError, UsageError
from fusechat.recipe import not_scored
from fusechat.spec import FusionRun, load

HOME = ".fusechat"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0; 64 usage; 65 bad data; 66, 69, 70, 75 as a stage's; 130)."""
    parser = _parser()
    told = parser.parse_args(arguments)
    if not hasattr(told, "command"):
        parser.print_help()
        return 64
    try:
        return int(told.command(told))
    except FusechatError as error:
        print(f"fusechat: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"fusechat: {error}", file=sys.stderr)
        return 65
    except KeyboardInterrupt:
        print("fusechat: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        print(f"fusechat: {message}", file=sys.stderr)
        raise SystemExit(64)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fusechat", description="Knowledge fusion of chat LLMs, as content-addressed steps."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add(commands, "plan", plan_command, "print the steps: addresses, what is cached, shards, an estimate")
    run = _add(
        commands, "run", run_command, "carry a FusionRun out on this machine; again: goes on from there"
    )
    retry = _add(
        commands, "retry", retry_command, "make steps anew (their artifacts are forgotten), then run"
    )
    _add(commands, "status", status_command, "print how the last run of a FusionRun stands")
    logs = _add(commands, "logs", logs_command, "print the log of a step's last attempt")
    retry.add_argument("steps", nargs="+", metavar="STEP", help="names as in `fusechat plan`")
    logs.add_argument("step", metavar="STEP", help="name as in `fusechat plan`")
    for command in (run, retry):
        command.add_argument(
            "--slots", type=_positive, help="steps at a time (default: one a core, at most 8)"
        )
        command.add_argument(
            "--threads", type=_positive, help="threads of each step (default: its share of cores)"
        )
        command.add_argument("--quiet", action="store_true", help="print the outcome only")
    plan = commands.choices["plan"]
    plan.add_argument(
        "--offline", action="store_true", help="ask no store: pins, addresses, nothing of the cache"
    )
    plan.add_argument("--gpu", default="A100", help="the GPU that the estimate is for: A100, H100, L40S, ...")
    _add_get(commands)
    gc = commands.add_parser(
        "gc", help="delete artifacts that no run names and that are older than some days"
    )
    gc.add_argument(
        "--drop-ref",
        action="append",
        default=[],
        metavar="KEY",
        help="a run that is gone: its refs/CLUSTER/UID.json keeps nothing any more, and goes too",
    )
    gc_options(gc)
    _store_options(gc)
    gc.set_defaults(command=gc_command, file=None)
    for point in entry_points(group="fusechat.commands"):
        point.load()(commands)
    return parser


def _add(commands: Any, name: str, command: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("file", metavar="FILE", help="a FusionRun in YAML; - is standard input")
    _store_options(parser)
    parser.set_defaults(command=command)
    return parser


def _add_get(commands: Any) -> None:
    text = "bring the fused model, or what another step made, into a folder"
    get = commands.add_parser("get", help=text, description=text)
    get.add_argument(
        "what", metavar="WHAT", help="a FusionRun in YAML that was run here, or s3://BUCKET/PREFIX/STAGE/HASH"
    )
    get.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="made if it is not there")
    get.add_argument(
        "--step", help="name as in `fusechat plan` (default: the step that makes the fused model)"
    )
    _store_options(get)
    get.set_defaults(command=get_command)


def gc_options(parser: argparse.ArgumentParser) -> None:
    """What every command has that may delete."""
    parser.add_argument("--days", type=float, default=30.0, help="least age in days (default: 30)")
    parser.add_argument("--delete", action="store_true", help="delete; without it, only say what would go")


def _store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", help="s3://bucket/prefix (default: spec.storage, else our own)")
    parser.add_argument(
        "--home", type=Path, default=Path(HOME), help="local data and logs (default: ./.fusechat)"
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def plan_command(told: argparse.Namespace) -> int:
    """`fusechat plan`."""
    from fusechat import estimate, outline

    run = _load(told.file)
    if told.offline:
        seen = outline.offline(run)
        print(outline.text(seen))
        print(estimate.text(estimate.estimate(run, seen), told.gpu))
        return 0
    with _store(told, run) as (store, _, environment):
        seen = outline.online(run, store, told.home, environment)
        print(outline.text(seen))
        print(estimate.text(estimate.estimate(run, seen), told.gpu))
    return 0


def run_command(told: argparse.Namespace) -> int:
    """`fusechat run`."""
    return _run(told, forget=())


def retry_command(told: argparse.Namespace) -> int:
    """`fusechat retry`."""
    return _run(told, forget=told.steps)


def _run(told: argparse.Namespace, forget: Sequence[str]) -> int:
    from fusechat import local, outcome

    run = _load(told.file)
    _check_local(run)
    with _store(told, run) as (store, server, environment), outcome.screen(told.quiet) as screen:
        settings = local.default_settings(told.home, told.slots, told.threads, environment)
        ended = local.Runner(run, store, settings, screen, server, frozenset(forget)).run()
        outcome.save(told.home, run, ended, None if server else store.uri)
        screen.close()
        return outcome.tell(run, store, ended, told.home)


def status_command(told: argparse.Namespace) -> int:
    """`fusechat status`."""
    from fusechat import outcome

    print(outcome.status(told.home, _load(told.file)))
    return 0


def logs_command(told: argparse.Namespace) -> int:
    """`fusechat logs`."""
    run = _load(told.file)
    folder = told.home / "runs" / run.metadata.name / "logs"
    found = sorted([*folder.glob(f"{told.step}.log"), *folder.glob(f"{told.step}-[0-9]*.log")])
    if not found:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.log"))) or "none yet"
        raise UsageError(f"no log of a step {told.step!r} of {run.metadata.name}; there are: {known}")
    for path in found:
        sys.stdout.write(path.read_text(errors="replace"))
    return 0


def get_command(told: argparse.Namespace) -> int:
    """`fusechat get`."""
    from fusechat import get

    run = None
    if told.what.startswith("s3://"):
        if told.step or told.store:
            raise UsageError("a URI names the store and the step; leave --store and --step out")
        told.store, address = get.split(told.what)
        if _is_ours(told.home, told.store):
            told.store = None
    else:
        run = _load(told.what)
        at, address = get.recorded(told.home, run.metadata.name, told.step)
        told.store = told.store or at
    with _store(told, run) as (store, _, _environment):
        for line in get.get(store, address, told.to):
            print(line, flush=True)
    return 0


def gc_command(told: argparse.Namespace) -> int:
    """`fusechat gc`."""
    from fusechat import store_gc

    with _store(told, None) as (store, _, _environment):
        print(store_gc.collect(store, told.drop_ref, told.days, delete=told.delete))
    return 0


def _load(file: str) -> FusionRun:
    if file == "-":
        return load(sys.stdin.read())
    if not Path(file).is_file():
        raise UsageError(f"{file}: no such file; expected a FusionRun in YAML")
    return load(Path(file))


def _check_local(run: FusionRun) -> None:
    """What this machine cannot do is said before anything starts."""
    if sentence := not_scored(run):
        raise UsageError(sentence)


@contextmanager
def _store(told: argparse.Namespace, run: FusionRun | None) -> Iterator[tuple[Any, Any, dict[str, str]]]:
    """(store, the server if we run it, the environment that a stage needs to reach it)."""
    from fusechat.store import Store

    storage = run.spec.storage if run else None
    uri = told.store or (storage.uri if storage else None)
    if uri:
        environment = {"AWS_ENDPOINT_URL": storage.endpoint} if storage and storage.endpoint else {}
        environment |= {"AWS_DEFAULT_REGION": storage.region} if storage and storage.region else {}
        os.environ.update(environment)
        yield Store(uri), None, environment
        return
    from fusechat.s3server import LocalS3

    with LocalS3(told.home / "s3") as server:
        environment = dict(server.environment())
        os.environ.update(environment)
        yield Store(server.uri), server, environment


def _is_ours(home: Path, uri: str) -> bool:
    """Whether the URI is what `fusechat run` prints of its own server, which no variable names."""
    from fusechat.s3server import LocalS3

    ours = LocalS3(home / "s3")
    return ours.folder.is_dir() and uri.rstrip("/") == ours.uri.rstrip("/")


if __name__ == "__main__":
    sys.exit(main())
