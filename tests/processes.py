"""What torchrun starts in test_parallel.py: every run, in the folder that is given."""

import json
import sys
import tempfile
from pathlib import Path

from chanprune.pipeline.prepare import prepare
from chanprune.pipeline.run import run
from chanprune.processes import ranks
from chanprune.processes.parallel import joined

if __name__ == "__main__":
    configs, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    with joined(), tempfile.TemporaryDirectory() as scratch:
        for name, config in configs.items():
            place = (folder if ranks.is_first() else Path(scratch)) / name
            place.mkdir()
            run(config, prepare(config), place)
