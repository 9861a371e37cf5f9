"""The operator process stays light: whatever it imports, no tensor library is among it."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import fusechat_operator
names = [found.name for found in pkgutil.iter_modules(fusechat_operator.__path__)]
for name in names:
    importlib.import_module(f"fusechat_operator.{name}")
heavy = ("torch", "transformers", "numpy", "pyarrow", "scipy", "fusechat_stages")
print(len(names), [name for name in heavy if name in sys.modules])
"""


def test_all_modules_of_the_operator_together_import_no_torch_and_no_stage():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    count, _, heavy = done.stdout.strip().partition(" ")
    assert (heavy, done.stderr) == ("[]", "")
    assert int(count) >= 20, "all modules, __main__ among them"
