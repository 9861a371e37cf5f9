"""`make cluster-demo`: examples/tiny.yaml by `kubectl apply` on a real node, followed until it has scores.

Brings up ../shared/kube with this checkout's images and chart (or takes the cluster of KUBECONFIG: see
node.py), puts the tiny models and their data on S3, and leaves all of it standing to look around in until
Enter or Ctrl-C; with --no-wait, or where nobody sits at a terminal, it is gone at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from fusechat import outcome, scores
from fusechat.plan import plan
from fusechat.spec import load

from tests.cluster import installed
from tests.cluster.node import Node, running_node
from tests.conftest import CHECKOUT

TINY = CHECKOUT / "examples" / "tiny"
NAMESPACE = "fusion"
FUSECHAT = Path(sys.executable).with_name("fusechat")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-wait", action="store_true", help="take everything down after the scores")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left standing
    wait = not parser.parse_args().no_wait and sys.stdin.isatty()
    subprocess.run([sys.executable, str(TINY / "make_tiny.py")], check=True)
    with tempfile.TemporaryDirectory(prefix="fusechat-demo-") as place:
        begun = time.monotonic()
        print("a Kubernetes with one real node, the images of this checkout, an S3 ...", flush=True)
        with running_node(Path(place)) as node:
            print(f"... {time.monotonic() - begun:.0f} s: {_parts(node)}")
            return show(node, Path(place), wait)


def show(node: Node, place: Path, wait: bool) -> int:
    """Install, apply, follow, print; the exit code."""
    os.environ["KUBECONFIG"] = node.kubeconfig
    with told("helm upgrade --install fusechat charts/fusechat"):
        installed.install(node)
    installed.restricted_namespace(node, NAMESPACE)
    node.give_secret(NAMESPACE)
    with told(f"the models and their data to {node.origins}"):
        installed.put_folder(TINY / "build", node.origins)
    run = installed.on_cluster(TINY.with_suffix(".yaml"), "file://./tiny/build", node.origins)
    path = place / "tiny.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    begun = time.monotonic()
    say("kubectl", "apply", "-n", NAMESPACE, "-f", str(path))
    follow(node, begun)
    code = say(str(FUSECHAT), "cluster", "status", "tiny", "-n", NAMESPACE)
    say("kubectl", "get", "fusionruns", "-n", NAMESPACE)
    if code == 0:
        print_scores(node)
    if wait:
        look_around(node, path)
    return code


def follow(node: Node, begun: float) -> None:
    """A line whenever a step changes its state, or the run is stalled, until the run has ended."""
    seen: dict[str, str] = {}
    while True:
        status = node.status("tiny", NAMESPACE)
        conditions = {c["type"]: c for c in status.get("conditions", ())}
        now = {line["name"]: line["state"] for line in status.get("steps", ()) if line["state"] != "Pending"}
        if stalled := conditions.get("Stalled"):
            now["Stalled"] = stalled["message"]
        for name in now:
            if seen.get(name) != now[name]:
                done = status.get("progress", "")
                print(f"{time.monotonic() - begun:6.0f} s  {done:>6}  {name:<26} {now[name]}", flush=True)
        seen = now
        if conditions.get("Succeeded", {}).get("status") in ("True", "False"):
            return
        time.sleep(0.5)


def print_scores(node: Node) -> None:
    """The table that `fusechat run` prints, from the artifacts that the cluster made."""
    found: dict[str, Any] = node.get("fusionrun", "tiny", NAMESPACE) or {}
    pins = {pin["name"]: pin["pin"] for pin in found["status"]["plan"]["pins"]}
    ended = SimpleNamespace(plan=plan(load(found), pins))
    for table in outcome.tables(node.store, ended):  # type: ignore[arg-type]
        print("\n" + scores.render_text(table))
    print(f"\nmodel  {found['status']['model']}", flush=True)


def look_around(node: Node, path: Path) -> None:
    """Say how, and wait."""
    print(
        f"""
Look around, in another terminal:

  export KUBECONFIG={node.kubeconfig}
  kubectl get fusionruns,jobs,pytorchjobs,pods -n {NAMESPACE}
  kubectl get fusionrun tiny -n {NAMESPACE} -o yaml
  {FUSECHAT} cluster logs tiny merge -n {NAMESPACE}
  kubectl logs -n fusechat-system deploy/fusechat

  # the same again, all of it cached:
  sed 's/name: tiny$/name: again/' {path} | kubectl apply -n {NAMESPACE} -f -
  {FUSECHAT} cluster status again -n {NAMESPACE} --watch

Enter takes everything down."""
    )
    with suppress(KeyboardInterrupt, EOFError):
        input()


def say(*command: str) -> int:
    """Run a command as a person would see it; its exit code."""
    print(f"\n$ {' '.join(command).replace(str(FUSECHAT), 'fusechat')}", flush=True)
    return subprocess.run(command).returncode


@contextmanager
def told(what: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - begun:.0f} s", flush=True)


def _parts(node: Node) -> str:
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in node.seconds.items())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
