"""`python -m detect`, for example for torchrun."""

import sys

from detect.cli import main

sys.exit(main())
