"""δ-Unlearning and its relatives, as grids of experiments."""

import os
import sys

# ``python -m unlearn.VERB`` would look in the working directory first: a user's own evaluate.py or datasets/ would be
# imported for the library of that name, by this process and by those that it starts.
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and sys.path and sys.path[0] == os.getcwd() != _HERE:
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"
