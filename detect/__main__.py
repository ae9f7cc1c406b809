"""`python -m detect`, which torchrun can start."""

import sys

from detect.cli import main

sys.exit(main())
