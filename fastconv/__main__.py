"""``python -m fastconv``: the command ``fastconv``."""

import sys

from fastconv.classifier.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
