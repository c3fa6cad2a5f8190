"""`python -m jaxgen.checkpoints.verify DIR...`: the short form of the verify job.

The one file of this room that reaches upwards: it is a second front door, not part of the room.
"""

import importlib
import sys

if __name__ == "__main__":
    sys.exit(importlib.import_module("jaxgen.jobs.verify").main(sys.argv[1:]))
