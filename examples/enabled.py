"""Run an unmodified program with fastconv's conv2d, max_pool2d and relu, fused where possible.

python examples/enabled.py program.py [its arguments]
"""

import runpy
import sys

import fastconv

del sys.argv[0]  # The program must see its own name and arguments.
with fastconv.enabled(fuse=True):
    runpy.run_path(sys.argv[0], run_name="__main__")
