"""Run a program with fastconv, which computes its conv2d, max_pool2d and relu and fuses them where possible.

usage: python examples/enabled.py program.py [its arguments]
"""

import runpy
import sys
from pathlib import Path

import fastconv

if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
    print(__doc__, file=sys.stdout if len(sys.argv) > 1 else sys.stderr)
    sys.exit(0 if len(sys.argv) > 1 else 2)
if not Path(sys.argv[1]).exists():
    sys.exit(f"enabled.py: there is no program {sys.argv[1]}")
del sys.argv[0]  # The program must see its own name and arguments, and import modules of its folder.
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
with fastconv.enabled(fuse=True):
    runpy.run_path(sys.argv[0], run_name="__main__")
