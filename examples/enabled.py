"""Runs a program with fastconv's conv2d, max_pool2d and relu, fused where they can be; the program stays as it is.

python examples/enabled.py program.py [its arguments]
"""

import runpy
import sys

import fastconv

del sys.argv[0]  # the program is to find its own name and arguments
with fastconv.enabled(fuse=True):
    runpy.run_path(sys.argv[0], run_name="__main__")
