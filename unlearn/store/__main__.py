"""List, verify and prune the store, which all runs share: models of the embedded world, frozen rows, references.

python -m unlearn.store list                     every entry: kind, size, last use, what it was made from
python -m unlearn.store verify                   compare every file with its checksum; exit status 1 if one is damaged
python -m unlearn.store prune                    say what is damaged, left over by killed jobs, or of another format
python -m unlearn.store prune unused=30 yes=true    remove that, and what was not used for 30 days
  store=FOLDER     the folder (default: the environment's UNLEARN_STORE, or store)
  kind=rows,model  prune only these kinds

Nothing in it is lost: what is pruned is built again when a run needs it. What black boxes were asked
(answers/) cost requests, and is never pruned: remove it by hand.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.command import acts
from unlearn.config.schema import ConfigError
from unlearn.config.setting import at_least, setting
from unlearn.store import entries


@dataclass
class Keys:
    store: Path = field(default_factory=lambda: Path(os.environ.get("UNLEARN_STORE", "store")))
    kind: list[str] = setting([])
    unused: float | None = setting(None, at_least(0, "must be a number of days, 0 or more"))
    yes: bool = False  # else it only says what would go

    def __post_init__(self) -> None:
        if not self.store.is_dir():
            raise ConfigError(f"store={str(self.store)!r}: no such folder; runs make it (paths.store, UNLEARN_STORE)")


main = acts(__doc__, Keys, {
    "list": (lambda k: entries.show(k.store), "store"), "verify": (lambda k: entries.verify(k.store), "store"),
    "prune": (lambda k: entries.prune(k.store, k.unused, k.kind, k.yes), "store", "kind", "unused", "yes"),
})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
