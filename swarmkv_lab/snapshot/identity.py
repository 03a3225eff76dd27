"""KVIdentity: what must agree between the context that was captured and the one that is restored."""

from dataclasses import dataclass, field, fields

from swarmkv_lab.errors import SnapshotMismatchError
from swarmkv_lab.llama.api import LLAMA_CPP_VERSION, STATE_VERSION
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.sizing.geometry import KVGeometry, pad


@dataclass(frozen=True)
class KVIdentity:
    """The model and the settings that a KV state belongs to."""

    model: str  # Model.content_hash
    architecture: str
    geometry: KVGeometry | None  # None where the architecture's state does not follow from it
    kv_type: tuple[str, str]  # of K and of V
    flash_attn: bool  # without it V is stored transposed
    swa_full: bool  # windowed layers keep everything
    n_threads: int  # of a decode of one token, where they decide its last bits: with flash attention on a CPU; else 0
    long_rope: bool  # the context was larger than LongRoPE's limit, above which keys are turned otherwise
    state_version: int  # llama.cpp's LLAMA_STATE_SEQ_VERSION
    llama_cpp: str  # its versions and the binding's: the state's version does not count every change of its meaning
    model_name: str = field(default="", compare=False)
    start: int = field(default=0, compare=False)  # position of the first token
    composed: str = field(default="", compare=False)  # behind which other prompt it was computed, and where; else ""

    @property
    def settings(self) -> ContextSettings:
        """Settings of a context that it can be restored into; SwarmKVError when there can be none."""
        return ContextSettings(
            n_ctx=1,
            kv_type=self.kv_type,
            flash_attn=self.flash_attn,
            swa_full=self.swa_full,
            n_threads=self.n_threads or None,
        )

    @property
    def exact(self) -> bool:
        """Whether a prefill of its tokens from position 0 on gives these bits."""
        return not self.start and not self.composed

    @classmethod
    def of(cls, model: Model, settings: ContextSettings) -> "KVIdentity":
        """The identity that a context with these settings will have."""
        model.require_unchanged()
        flash_attn, limit = settings.uses_flash_attn(model.on_gpu), model.kind.long_rope_from
        return cls(
            model=model.content_hash,
            architecture=model.architecture,
            geometry=model.geometry if model.sized else None,
            kv_type=settings.kv_pair,
            flash_attn=flash_attn,
            swa_full=settings.swa_full and model.kind.window > 0,
            n_threads=settings.threads if flash_attn and not model.on_gpu else 0,
            long_rope=limit is not None and pad(settings.cells) > limit,
            state_version=STATE_VERSION,
            llama_cpp=LLAMA_CPP_VERSION,
            model_name=model.name,
        )

    def require(self, other: "KVIdentity") -> None:
        """Raise SnapshotMismatchError naming each difference between this snapshot's identity and a context's."""
        pairs = {one.name: (getattr(self, one.name), getattr(other, one.name)) for one in fields(self) if one.compare}
        if self.model != other.model:  # the rest of the model differs with it
            del pairs["architecture"], pairs["geometry"]
            pairs["model"] = f"{self.model_name} {self.model[:12]}", f"{other.model_name} {other.model[:12]}"
        if found := [f"{name} {mine!r}, and here it is {its!r}" for name, (mine, its) in pairs.items() if mine != its]:
            remedy = "restore it into a context with the snapshot's model and settings, or prefill again"
            raise SnapshotMismatchError(f"the snapshot has {'; '.join(found)}: {remedy}")
