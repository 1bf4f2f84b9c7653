"""``python -m lit_debias``: the command line."""

import sys

from lit_debias.cli.main import main

sys.exit(main())
