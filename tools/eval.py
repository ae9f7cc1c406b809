"""`detect eval` from a clone: python tools/eval.py …."""

import sys

from detect.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
