"""`python -m dreamloom` is the `dreamloom` command."""

import sys

from dreamloom.cli import main

sys.exit(main())
