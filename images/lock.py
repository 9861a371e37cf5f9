"""Write images/operator.txt and images/stages.txt: every package of an image, at constraints.txt's version.

`make lock`, after a change to pyproject.toml's dependencies or to constraints.txt; asks the package index
what depends on what. tests/unit/test_images.py says when it was forgotten.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IMAGES = ("operator", "stages")


def direct(extra: str) -> list[str]:
    """The requirements that pyproject.toml names for one image, which is called as its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def resolved(requirements: list[str]) -> list[str]:
    """NAME==VERSION of all that pip would install; a build of torch for one device counts as torch."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        told = [f"--report={report.name}", f"--constraint={ROOT / 'constraints.txt'}", *requirements]
        subprocess.run([*command, *told], check=True)
        found = [item["metadata"] for item in json.loads(Path(report.name).read_text())["install"]]
    return sorted(
        f"{item['name'].lower().replace('_', '-')}=={item['version'].split('+')[0]}" for item in found
    )


def main() -> None:
    for image in IMAGES:
        lines = resolved(direct(image))
        (HERE / f"{image}.txt").write_text(f"# Written by images/lock.py.\n{chr(10).join(lines)}\n")
        print(f"images/{image}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
