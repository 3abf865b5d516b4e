"""``python -m unlearn VERB …``."""

import sys

from unlearn.command import main

sys.exit(main())
