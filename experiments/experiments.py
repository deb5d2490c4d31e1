"""Found in the place of the package where a command is started as a file: says how it is started."""

import sys
from pathlib import Path

sys.exit(f"{Path(sys.argv[0]).name} is part of a package: python -m experiments.{Path(sys.argv[0]).stem} …, from the "
         "folder of the checkout")
