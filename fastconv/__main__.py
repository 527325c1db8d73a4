"""``python -m fastconv``: the command ``fastconv``."""

import sys

from fastconv.classifier.cli import main

if __name__ == "__main__":
    sys.exit(main())
