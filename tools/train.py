"""`detect train` from a clone: python tools/train.py …."""

import sys

from detect.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
