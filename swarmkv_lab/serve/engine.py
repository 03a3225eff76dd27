"""Engine: one thread at work on one cache, for all requests together.

Every llama_decode carries the next token of each answer and a piece of some prompts. A prompt goes on from the longest
prefix that is there; one whose prefix is just being decoded waits until the two part. Long prompts are decoded one
after another, and what nobody shares makes room: each token's attention walks over all cells of the cache.

exact: one request at a time. Its document is decoded by itself, and stays alone; its own cells come right behind.
"""

import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampler, decode_together
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.prefixes import GRAM, NOTHING, Held, Match, Prefixes, common
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot

LONG = 256  # tokens: a prompt with as many to decode has no other long one beside it
STEPS = 8  # answers' steps between two pieces of a long prompt: together about as much work as one piece
_KEPT = 16  # the most documents that are there after a restart
RESERVE = 64  # cells kept for an answer when a request begins; for more it may have to wait


class Refused(SwarmKVError):
    """What is not answered: an HTTP status, and why."""

    def __init__(self, status: int, about: str) -> None:
        super().__init__(about)
        self.status = status


@dataclass(eq=False)
class Request:
    """A prompt, how to answer it, and what became of it. Times are seconds of time.perf_counter."""

    tokens: np.ndarray  # int32 (n,)
    max_tokens: int
    sampler: Sampler
    deliver: Callable[[Any], None]
    """called in the engine's thread with each token (an int), and last with why it ended: a word, or an error"""
    marks: frozenset[int] = frozenset()
    """numbers of tokens of which a copy is kept where one cannot go back; of exact: those of its document"""
    cancelled: bool = False  # set by whoever does not wait for it any more
    preempted: int = 0  # how often it had to wait again
    match: Match = NOTHING  # whose cells it will take: it begins once they are there, and takes them where they follow
    n_answer: int = 0
    shared: int = 0  # tokens of the prompt that were there
    computed: int = 0  # of the prompt, and again what a pre-empted request had
    how: str = "computed"
    times: dict[str, float] = field(default_factory=dict)
    """arrived, started, first (token), ended"""
    ended: str = ""

    def __post_init__(self) -> None:
        self.held = Held(self.tokens)  # its sequence, once it is at work; until then, what that is to hold

    @property
    def missing(self) -> int:
        """Tokens of it that are to be decoded, without those whose cells it will take."""
        return self.held.missing - self.match.n


class Engine:
    """Answers requests until it is closed. settings: of its context; see Server for the others."""

    def __init__(
        self, model: Model, settings: ContextSettings, exact: bool, cache: bool, room: int, recompute: int
    ) -> None:
        if settings.n_seq_max < 1 + exact:
            raise SwarmKVError(f"n_seq_max={settings.n_seq_max}: a server needs {1 + exact} sequences or more")
        self.model, self.exact, self.room, self.recompute = model, exact, room, recompute
        self.ctx = model.open_context(settings)
        self.limit = min(self.ctx.n_ctx_seq, model.n_ctx_train) - room
        """the most tokens of a prompt and its answer"""
        goes_back = not (exact or model.kind.recurrent or self.ctx.window)
        self.prefixes = Prefixes(self.ctx.n_ctx, self.ctx.n_seq_max, goes_back)
        self.kept = PrefixCache(model, self.ctx.settings, served=not exact) if cache else None
        for snapshot in reversed(list(islice(self.kept.all(), _KEPT)) if self.kept else []):  # the last used last
            self.prefixes.park(Held(snapshot.tokens, snapshot.identity.start, live=False), snapshot.data)
        self.live: dict[int, Request] = {}
        """those at work by their sequences, the first to begin first"""
        self.queue: deque[Request] = deque()
        self.done: deque[Request] = deque(maxlen=10_000)
        self.counts = Counter(prompt_tokens=0, computed_tokens=0, shared_tokens=0, generated_tokens=0)
        self._eog = model.ends
        self._owed = 0  # steps of all others before the next piece of a long prompt
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="swarmkv-engine", daemon=True)
        self._thread.start()

    # -- from any thread

    def submit(self, request: Request) -> None:
        """Have a request answered. Raises ContextBudgetError where it can never fit, Refused once this is closed."""
        n, limit = len(request.tokens), self.limit
        if not 0 < n < limit:
            raise ContextBudgetError(f"the maximum context length is {limit:,} tokens, and the messages have {n:,}")
        request.max_tokens = min(request.max_tokens, limit - n)
        request.times["arrived"] = time.perf_counter()
        with self._wake:
            if self._closing:
                raise Refused(503, "the server was closed")
            self.counts["prompt_tokens"] += n
            self.queue.append(request)
            self._wake.notify()

    def close(self) -> None:
        """End all requests and the thread, and free the cache."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self.ctx.close()

    # -- the thread

    def _run(self) -> None:
        while not self._closing:
            try:
                for request in [*self.live.values(), *self._queued()]:
                    if request.cancelled:
                        self._end(request, "cancelled")
                self._step()
            except Exception as error:  # a fault of ours: those at work are told, and the next ones begin anew
                for request in list(self.live.values()):
                    self._end(request, error)
                for held in list(self.prefixes.entries.values()):
                    self._forget(held)
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self.live or self.queue)
        for request in [*self.live.values(), *self.queue]:
            self._end(request, Refused(503, "the server was closed"))
        try:
            if self.kept:
                self._keep(self.kept)
        except SwarmKVError as error:  # such as a model whose file is another one now
            warnings.warn(f"what was served could not be kept: {error}", stacklevel=1)

    def _tell(self, request: Request, what: Any) -> None:
        try:
            request.deliver(what)
        except Exception:  # whoever asked is gone
            request.cancelled = True

    def _end(self, request: Request, why: Any) -> None:
        """A request has ended: why is a word, or an error. What it has decoded stays, unless that was at fault."""
        held = request.held
        with self._wake:
            if request in self.queue:
                self.queue.remove(request)
            at_work = self.live.pop(held.seq_id, None)
        if at_work:
            self._forget(held) if self.exact or isinstance(why, Exception) else self.prefixes.rest(held)
        request.ended = why if isinstance(why, str) else "error"
        request.times["ended"] = time.perf_counter()
        self.counts[f"requests_{request.ended}"] += 1
        self.done.append(request)
        self._tell(request, why)
        request.held, request.match, request.sampler = NOTHING.held, NOTHING, Sampler()  # it stays in done for long

    def _step(self) -> None:
        """One llama_decode for all, or one for each where the model takes no more."""
        self._admit()
        rows = self._rows()
        if any(request.missing >= LONG for request in self.live.values()):
            self._prune()
        while not self._free(sum(map(len, rows.values()))):
            self._preempt()
            rows = {i: row for i, row in rows.items() if i in self.live}
        starts = {i: self.live[i].held.start for i in rows if not self.live[i].held.n}
        failed = lambda i, error: self._end(self.live[i], error)  # noqa: E731
        for some in [rows] if self.model.kind.packs else [{i: row} for i, row in rows.items()]:
            for seq_id in decode_together(self.ctx, some, failed, starts):
                self._go_on(self.live[seq_id], len(some[seq_id]))

    def _rows(self) -> dict[int, np.ndarray]:
        """The tokens of the next step, by sequence: answers' next ones, and pieces of prompts."""
        others = sorted((one for one in self.live.values() if one.missing < LONG), key=lambda it: it.missing)
        long = [one for one in self.live.values() if one.missing >= LONG][:1]
        answering = any(one.n_answer for one in others)
        # Who ends soon frees cells, which cost the long one time.
        ending = all(one.n_answer and one.max_tokens - one.n_answer <= RESERVE for one in others)
        if others and (self._owed or ending):
            self._owed, long = max(0, self._owed - 1), []
        elif long:
            self._owed = STEPS if answering else 1
        sizes, left = dict[Request, int](), max(1, self.ctx.n_batch // (1 + answering))
        for one in [*long, *others]:  # half is the long one's, so that it always goes on
            sizes[one] = min(self._pause(one), left - left // 2 if one in long and others else left)
            left -= sizes[one]
        return {one.held.seq_id: one.held.tokens[one.held.n :][:n] for one, n in sizes.items() if n}

    def _pause(self, request: Request) -> int:
        """Tokens of a prompt up to where another one parts from it, cells of others follow, or a copy is kept."""
        held = request.held
        stops = {one.match.end for one in self._queued() if one.match.held is held}
        stops |= {len(held.tokens), request.match.ours} | (set() if self.prefixes.goes_back else request.marks)
        return min(stop for stop in stops if stop > held.n) - held.n

    def _go_on(self, request: Request, n: int) -> None:
        """After n more tokens of a request: cells of others, a copy to go on from, or the next token of its answer."""
        held, at_stop = request.held, n == self._pause(request)
        if held.n < len(request.tokens) or n > 1:
            request.computed += n
            self.counts["computed_tokens"] += n
        self.prefixes.extend(held, n)
        self._join(request)
        if held.missing:
            if at_stop and not self.prefixes.goes_back and self._free(0, 1):
                self._copy(held, held.n)
            return
        try:
            token = request.sampler.sample(self.ctx.pop_logits(held.seq_id))
        except Exception as error:
            self._end(request, error)
            return
        if token not in self._eog:
            request.times.setdefault("first", time.perf_counter())
            request.n_answer += 1
            self.counts["generated_tokens"] += 1
            self._tell(request, token)
            if request.n_answer < request.max_tokens:
                held.tokens = np.append(held.tokens, np.int32(token))
                return
        self._end(request, "stop" if token in self._eog else "length")

    def _join(self, request: Request) -> None:
        """Have the cells of others, once what comes before them is decoded."""
        match, n = request.match, request.held.n
        if match.n and n >= match.ours:
            request.match = NOTHING
            if match.there:  # else its request has failed meanwhile, and this one decodes all
                self._share(request.held, match)
                if not request.preempted:
                    request.how = "composed" if match.theirs or match.ours else "prefix"
                    request.shared += request.held.n - n
                    self.counts["shared_tokens"] += request.held.n - n

    def _share(self, held: Held, match: Match) -> None:
        """A sequence that ends in a match has the rest of its cells next; no bytes move."""
        at = held.start + held.n if held.n or match.theirs else 0
        self.ctx.share(match.held.seq_id, held.seq_id, at)
        self.ctx.truncate(match.held.start + match.end, held.seq_id)
        self.prefixes.share(held, match)

    # -- who begins, and with what

    def _queued(self) -> list[Request]:
        with self._wake:
            return list(self.queue)

    def _admit(self) -> None:
        """Let waiting requests begin in their order, unless more of their prefix is just being decoded."""
        for request in self._queued():
            if self.exact and self.live:
                return
            if request.match.held.live and not request.match.there:
                continue
            try:
                request.match = self._longest(request)
                if request.match.there and not self._begin(request):
                    return
            except Exception as error:  # or it would be met again in each step
                self._end(request, error)
                raise

    def _longest(self, request: Request) -> Match:
        """What saves most of a prompt: its beginning, or, of composed prompts, a match in its midst."""
        tokens = request.held.tokens[:-1]  # the last one's logits are needed
        if self.exact:  # all of its document: other batches have other last bits
            source = self.prefixes.match(tokens[: max(request.marks, default=0)])
            return source if source.n in request.marks else NOTHING
        last_start = self.room + max(0, self.limit - len(tokens) - RESERVE)
        source = self.prefixes.match(tokens, last_start)
        if self.room:
            least = max(2 * GRAM, source.n + self.recompute + 1)
            held, theirs, ours, n = self.prefixes.segment(tokens, least, last_start)
            if n > self.recompute:
                return Match(held, theirs + self.recompute, ours + self.recompute, n - self.recompute)
        return source

    def _begin(self, request: Request) -> bool:
        """Whether there is room for a request, which is at work then."""
        held, match = request.held, request.match
        if self.live:
            cells, everyone = self.prefixes.is_live(), [request, *self.live.values()]
            for one in everyone:  # those that it has yet to take are there already
                cells[one.match.held.cells[one.match.theirs : one.match.end]] = True
            missing = sum(one.missing for one in everyone) + (match.held.n if match.held.parked else 0)
            answers = sum(min(RESERVE, one.max_tokens - one.n_answer) for one in everyone)
            if cells.sum() + missing + answers > self.ctx.n_ctx:
                return False
        for other in [one for one in self.prefixes.entries.values() if self.exact and one is not match.held]:
            self._drop(other)
        restored = not match.held.parked or self._restore(match.held)
        if not restored or not self._free(0, 1, match.held):
            if not restored or not self.live:  # it cannot be had, or the only sequence is the one to go on from
                self._forget(match.held)
            return False
        self.prefixes.enter(held)
        with self._wake:
            self.queue.remove(request)
            self.live[held.seq_id] = request
        held.start = match.start if match.n else self.room
        request.max_tokens = min(request.max_tokens, self.limit + self.room - held.start - len(request.tokens) + 1)
        request.times.setdefault("started", time.perf_counter())
        self._join(request)
        return True

    # -- room

    def _free(self, cells: int, sequences: int = 0, spared: Held = NOTHING.held) -> bool:
        """Whether so many are free: what rests makes room, unless it is spared, or somebody is to take cells of it."""
        needed = {spared, *(request.match.held for request in self.live.values())}
        while self.prefixes.free < cells or self.prefixes.n_seq - len(self.prefixes.entries) < sequences:
            if (held := self.prefixes.droppable(needed)) is None:
                return False
            self._drop(held)
        return True

    def _prune(self) -> None:
        """Before a long piece of work: what rests makes room, but for what somebody here has, or waits for."""
        cells, needed = self.prefixes.is_live(), {request.match.held for request in self.live.values()}
        waited_for = [request.match for request in self._queued()]
        for held in list(self.prefixes.entries.values()):
            kept = max((match.end for match in waited_for if match.held is held), default=0)
            gone = held.seq_id < 0  # it has made room for a copy
            if gone or held.live or held in needed or 2 * max(kept, cells[held.cells].sum()) >= held.n:
                continue
            if kept and self.prefixes.goes_back and self._free(0, 1, held):
                self._copy(held, kept)
            self._drop(held)

    def _copy(self, held: Held, n: int) -> None:
        """Have the first n tokens of a sequence in another one, which rests."""
        copy = Held(held.tokens[:n], held.start)
        self.prefixes.enter(copy)
        self._share(copy, Match(held, 0, 0, n))
        self.prefixes.rest(copy)

    def _drop(self, held: Held) -> None:
        """A resting sequence leaves the cache; what nobody else has of it is parked."""
        state = None
        if self.prefixes.own(held) >= 2 * GRAM:
            with suppress(SwarmKVError):  # not every model's states can be taken from a context of many sequences
                state = self.ctx.get_state(held.seq_id)
        self._forget(held)
        if state is not None:
            self.prefixes.park(held, state)

    def _keep(self, folder: PrefixCache) -> None:
        """Keep what rests for the next server: the last used first, and of what begins alike the first one alone."""
        for held in list(self.prefixes.entries.values()):
            self._drop(held)
        kept = list[Held]()
        for held in reversed(self.prefixes.parked):
            known = max((common(held.tokens, one.tokens) for one in kept if self.prefixes.goes_back), default=0)
            if held.n - known >= LONG and len(kept) < _KEPT:
                kept.append(held)
                composed = "" if self.exact else "served in batches"
                identity = replace(KVIdentity.of(self.model, self.ctx.settings), start=held.start, composed=composed)
                folder.keep(KVSnapshot(held.state, np.ascontiguousarray(held.tokens, np.int32), identity))

    def _restore(self, held: Held) -> bool:
        """Whether what is parked could be had in the cache again."""
        n, state = held.n, held.state
        if self._free(n, 1):
            self.prefixes.enter(held)
            with suppress(SwarmKVError):
                self.ctx.set_state(state, held.seq_id)
                self.ctx.origins[held.seq_id] = held.start, ""
                self.prefixes.extend(held, n)
                return True
        return False

    def _forget(self, held: Held) -> None:
        if held.seq_id >= 0:
            with suppress(SwarmKVError):  # the model was closed
                self.ctx.clear(held.seq_id)
        self.prefixes.forget(held)

    def _preempt(self) -> None:
        """The request that began last waits again; the only one goes on without another's cells."""
        *others, request = list(self.live.values())
        held = request.held
        if others:
            request.held, request.preempted = Held(held.tokens), request.preempted + 1
            with self._wake:
                del self.live[held.seq_id]
                self.queue.appendleft(request)
            self.counts["preempted"] += 1
            self.prefixes.rest(held)
        elif not request.match.n:
            self._end(request, ContextBudgetError("there are no cells left"))
        request.match = NOTHING
