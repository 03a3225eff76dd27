"""Store: where captured snapshots lie, under names that say all that they depend on."""

import threading
import warnings
from pathlib import Path

import numpy as np

from swarmkv_lab.errors import SnapshotCorruptError, SnapshotMismatchError, SwarmKVError
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot


class Store(PrefixCache):
    """A folder that all workers reach; nothing is evicted from it.

    With ``place`` None it is the prefix cache of each machine. What is damaged is said, and prefilled again.
    """

    def __init__(self, model: Model, settings: ContextSettings, place: str | None) -> None:
        super().__init__(model, settings)
        self.place = place

    def find(self, tokens: np.ndarray) -> KVSnapshot | None:
        """The snapshot of these tokens, or, in the prefix cache, of the longest beginning that can be gone on from."""
        if self.place is None:
            return super().find(tokens)
        path = self._path(tokens)
        try:
            if not path.exists():
                return None
            snapshot = KVSnapshot.load(path, self.model)
            if not np.array_equal(snapshot.tokens, tokens):
                raise SnapshotCorruptError(f"{path.name} holds other tokens than its name says")
            return snapshot
        except (SnapshotCorruptError, SnapshotMismatchError) as error:
            warnings.warn(f"not used from the store: {error}", stacklevel=2)
        except SwarmKVError as error:
            warnings.warn(f"the store could not be read: {error}", stacklevel=2)
        return None

    def keep(self, snapshot: KVSnapshot) -> None:
        """Write a snapshot; a store that takes none is said, and the run goes on without."""
        if self.place is None:
            super().keep(snapshot)
            return
        try:
            Path(self.place).mkdir(parents=True, exist_ok=True)
            snapshot.save(self._path(snapshot.tokens))
        except (SwarmKVError, OSError) as error:
            warnings.warn(f"the store could not keep the snapshot: {error}", stacklevel=2)

    def goes_on_from(self, snapshot: KVSnapshot, name: str, tokens: np.ndarray) -> bool:
        """Whether a snapshot of this name is of a beginning of the tokens, prefilled as they would be."""
        n = len(snapshot.tokens)
        return n < len(tokens) and name == self.name(tokens[:n]) and self.usable(n, len(tokens)) > 0

    def keep_later(self, snapshot: KVSnapshot) -> None:
        """What another machine sent goes to this machine's own folder while the agents answer."""
        if self.place is None:
            threading.Thread(target=self.keep, args=(snapshot,)).start()

    def _path(self, tokens: np.ndarray) -> Path:
        return Path(str(self.place), self.name(tokens))
