"""``python -m unlearn.store``."""

import sys

from unlearn.store.inventory import main

sys.exit(main())
