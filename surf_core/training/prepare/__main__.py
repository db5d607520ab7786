"""Prepare videos for training, from a checkout: python -m surf_core.training.prepare."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
