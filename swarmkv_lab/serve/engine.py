"""Engine: one thread at work on one cache, for all requests together.

Every llama_decode carries the next token of each answer and a piece of some prompts. A prompt goes on from the longest
prefix that is there; one whose prefix is just being decoded waits until the two part. Long prompts are decoded one
after another, and what nobody shares makes room: each token's attention walks over all cells of the cache.
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
from swarmkv_lab.llama.interrupt import Stopped
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampler, decode_together
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.prefixes import GRAM, NOTHING, Held, Prefixes, Run, common
from swarmkv_lab.snapshot.identity import KVIdentity
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot

LONG = 256  # tokens: a prompt with as many to decode has no other long one beside it
STEPS = 8  # answers' steps between two pieces of a long prompt: together about as much work as one piece
_KEPT = 16  # the most documents that are there after a restart
RESERVE = 64  # cells kept for an answer when a request begins; for more it may have to wait


class Busy(SwarmKVError):
    """Too many requests wait."""

    status = 429


class Closed(SwarmKVError):
    """The server was closed before the answer was whole."""

    status = 503


@dataclass(eq=False)
class Request:
    """A prompt, how to answer it, and what became of it. Times are seconds of time.perf_counter."""

    tokens: np.ndarray  # int32 (n,)
    max_tokens: int
    sampler: Sampler
    deliver: Callable[[Any], None]
    """called in the engine's thread with each token (an int), and last with why it ended: a word, or an error"""
    document_end: int = 0  # tokens up to the end of its longest text, for exact
    marks: frozenset[int] = frozenset()  # numbers of tokens at which its messages end
    cancelled: bool = False
    preempted: int = 0  # how often it had to wait again
    run: Run = NOTHING  # whose cells it will take: it begins once they are there, and takes them where they follow
    n_answer: int = 0
    shared: int = 0  # tokens of the prompt that were there
    computed: int = 0  # of the prompt, and again what a pre-empted request had
    how: str = "computed"
    times: dict[str, float] = field(default_factory=dict)
    """arrived, started, first (token), ended"""
    ended: str = ""

    def __post_init__(self) -> None:
        self.held = Held(self.tokens)  # its sequence, once it is at work; until then, what that is to hold


class Engine:
    """Answers requests until it is closed. settings: of its context; see Server for the others.

    Raises ContextBudgetError in ``submit`` for a prompt that can never fit, Busy when too many wait.
    """

    def __init__(
        self, model: Model, settings: ContextSettings, exact: bool, cache: bool, room: int, recompute: int, waiting: int
    ) -> None:
        if settings.n_stream > 1 or settings.n_seq_max < 1 + exact:
            about = f"n_seq_max={settings.n_seq_max}, kv_unified={settings.kv_unified}"
            raise SwarmKVError(f"{about}: a server needs {1 + exact} sequences or more, and one cache for all of them")
        self.model, self.exact = model, exact
        self.room, self.recompute, self.most_waiting = room, recompute, waiting
        self.ctx = model.open_context(settings)
        goes_back = not model.kind.recurrent and not self.ctx.window
        self.prefixes = Prefixes(self.ctx.n_ctx, self.ctx.n_seq_max, goes_back)
        self.kept = PrefixCache(model, self.ctx.settings, served=not exact) if cache else None
        if self.kept and not exact:  # what was served before, the last used parked last
            for snapshot in reversed(list(islice(self.kept.all(), _KEPT))):
                self.prefixes.park(Held(snapshot.tokens, snapshot.identity.start, live=False), snapshot.data)
        self.live: dict[int, Request] = {}
        """those at work by their sequences, the first to begin first"""
        self.queue: deque[Request] = deque()
        self.done: deque[Request] = deque(maxlen=10_000)
        self.counts: Counter[str] = Counter()
        self._eog = frozenset(filter(model.is_eog, range(model.n_vocab)))
        self._document = np.empty(0, np.int32)  # of exact: what sequence 0 holds
        self._owed = 0  # steps of answers alone before the next piece of a long prompt
        self._long_went = False  # whether the last step had a piece of one
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="swarmkv-engine", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """The most tokens of a prompt and its answer."""
        return min(self.ctx.n_ctx_seq, self.model.n_ctx_train) - self.room

    # -- from any thread

    def submit(self, request: Request) -> None:
        """Have a request answered."""
        n = len(request.tokens)
        if not 0 < n < self.limit:
            raise ContextBudgetError(
                f"this model's maximum context length here is {self.limit:,} tokens, and the messages have {n:,}"
            )
        request.max_tokens = min(request.max_tokens, self.limit - n)
        request.times["arrived"] = time.perf_counter()
        with self._wake:
            if self._closing:
                raise Closed("the server was closed")
            if len(self.queue) >= self.most_waiting:
                raise Busy(f"{len(self.queue):,} requests are waiting already: try again later")
            self.counts["prompt_tokens"] += n
            self.queue.append(request)
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Nobody waits for an answer any more."""
        with self._wake:
            request.cancelled = True
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
        step = self._exact_step if self.exact else self._step
        while not self._closing:
            try:
                for request in self._cancelled():
                    self._end(request, "cancelled")
                busy = step()
            except Exception as error:  # a fault of ours: those at work are told, and the next ones begin anew
                failed, self._document = list(self.live.values()), self._document[:0]
                self.live.clear()
                for held in list(self.prefixes.entries.values()):
                    self._forget(held)
                for request in failed:
                    self._end(request, error)
                busy = True
            if not busy:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self.queue or self._cancelled())
        for request in [*self.live.values(), *self.queue]:
            self._end(request, Closed("the server was closed"))
        try:
            if self.kept and not self.exact:
                self._keep(self.kept)
        except SwarmKVError as error:  # such as a model whose file is another one now
            warnings.warn(f"what was served could not be kept: {error}", stacklevel=1)

    def _cancelled(self) -> list[Request]:
        with self._wake:
            return [request for request in [*self.live.values(), *self.queue] if request.cancelled]

    def _draw(self, request: Request, logits: np.ndarray) -> int | None:
        """The next token of an answer; None where it ends with it."""
        try:
            token = request.sampler.sample(logits)
        except Exception as error:
            self._end(request, error)
            return None
        if token not in self._eog:
            request.times.setdefault("first", time.perf_counter())
            request.n_answer += 1
            self.counts["generated_tokens"] += 1
            self._tell(request, token)
            if request.n_answer < request.max_tokens:
                return token
        self._end(request, "stop" if token in self._eog else "length")
        return None

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
            self._forget(held) if isinstance(why, Exception) else self.prefixes.rest(held)
        request.ended = why if isinstance(why, str) else "error"
        request.times["ended"] = time.perf_counter()
        self.counts[f"requests_{request.ended}"] += 1
        self.done.append(request)
        self._tell(request, why)
        request.held, request.run, request.sampler = NOTHING.held, NOTHING, Sampler()  # it stays in done for long

    def _count(self, request: Request, computed: int = 0, shared: int = 0) -> None:
        request.computed, request.shared = request.computed + computed, request.shared + shared
        self.counts.update(computed_tokens=computed, shared_tokens=shared)

    # -- a step

    def _step(self) -> bool:
        """One llama_decode for all, or one for each where the model takes no more: whether there was anything to do."""
        self._admit()
        rows = self._rows()
        if any(request.held.missing >= LONG for request in self.live.values()):
            self._prune()
        while not self._free(sum(len(row) for i, row in rows.items() if i in self.live)):
            self._preempt()
        rows = {i: row for i, row in rows.items() if i in self.live}
        starts = {i: self.live[i].held.start for i in rows if not self.live[i].held.n}
        failed = lambda i, error: self._end(self.live[i], error)  # noqa: E731
        for some in [rows] if self.model.kind.packs else [{i: row} for i, row in rows.items()]:
            for seq_id in decode_together(self.ctx, some, failed, starts):
                self._go_on(self.live[seq_id], len(some[seq_id]))
        return bool(rows)

    def _rows(self) -> dict[int, np.ndarray]:
        """The tokens of the next step, by sequence: answers' next ones, and pieces of prompts."""
        at_work = list(self.live.values())
        answers = [one for one in at_work if one.n_answer and one.held.missing == 1]
        short = [one for one in at_work if one.held.missing < LONG and one not in answers]
        long = [one for one in at_work if one.held.missing >= LONG][:1]
        left = max(1, (self.ctx.n_batch // 2 if answers else self.ctx.n_batch) - len(answers))
        ending = all(one.max_tokens - one.n_answer <= RESERVE for one in answers)
        if answers and not short and (self._owed or ending):  # who ends soon frees cells, which cost the long one time
            self._owed, long = max(0, self._owed - 1), []
        else:
            self._owed = STEPS
            if self._long_went and 0 < sum(one.held.missing for one in short) <= left:
                long = []  # as do short ones that are read in one step; it goes on in the next
        self._long_went = bool(long)
        sizes = dict.fromkeys(answers, 1)
        for one in [*long, *short]:  # half is the long one's, so that it always goes on
            sizes[one] = min(self._pause(one), left - left // 2 if one in long and short else left)
            left -= sizes[one]
        return {one.held.seq_id: one.held.tokens[one.held.n :][:n] for one, n in sizes.items() if n}

    def _pause(self, request: Request) -> int:
        """Tokens of a prompt up to where another one parts from it, cells of others follow, or a copy is kept."""
        held = request.held
        stops = {one.run.end for one in self._queued() if one.run.held is held}
        stops |= {len(held.tokens), request.run.ours} | (set() if self.prefixes.goes_back else request.marks)
        return min(stop for stop in stops if stop > held.n) - held.n

    def _go_on(self, request: Request, n: int) -> None:
        """After n more tokens of a request: cells of others, a copy to go on from, or the next token of its answer."""
        held, at_stop = request.held, n == self._pause(request)
        if held.n < len(request.tokens) or n > 1:
            self._count(request, computed=n)
        self.prefixes.extend(held, n)
        self._take(request)
        if not held.missing:
            if (token := self._draw(request, self.ctx.pop_logits(held.seq_id))) is not None:
                held.tokens = np.append(held.tokens, np.int32(token))
        elif at_stop and not self.prefixes.goes_back and self._free(0, 1):
            self._copy(held, held.n)

    def _take(self, request: Request) -> None:
        """Have the cells of others, once what comes before them is decoded."""
        run, n = request.run, request.held.n
        if run.n and n >= run.ours:
            request.run = NOTHING
            if run.there:  # else its request has failed meanwhile, and this one decodes all
                self._share(request.held, run)
                if not request.preempted:
                    request.how = "composed" if run.theirs or run.ours else "prefix"
                    self._count(request, shared=request.held.n - n)

    def _share(self, held: Held, run: Run) -> None:
        """A sequence that ends in a run has the rest of its cells next; no bytes move."""
        at = held.start + held.n if held.n or run.theirs else 0
        self.ctx.share(run.held.seq_id, held.seq_id, at)
        self.ctx.truncate(run.held.start + run.end, held.seq_id)
        self.prefixes.share(held, run)

    # -- who begins, and with what

    def _queued(self) -> list[Request]:
        with self._wake:
            return list(self.queue)

    def _admit(self) -> None:
        """Let waiting requests begin in their order, unless more of their prefix is just being decoded."""
        for request in self._queued():
            if request.run.held.live and not request.run.there:
                continue
            try:
                request.run = self._longest(request.held.tokens[:-1])  # the last one's logits are needed
                if request.run.there and not self._begin(request):
                    return
            except Exception as error:  # or it would be met again in each step
                self._end(request, error)
                raise

    def _longest(self, tokens: np.ndarray) -> Run:
        """What saves most of a prompt: its beginning, or, of composed prompts, a run in its midst."""
        last_start = self.room + max(0, self.limit - len(tokens) - RESERVE)
        source = self.prefixes.match(tokens, last_start)
        if self.room:
            least = max(2 * GRAM, source.n + self.recompute + 1)
            held, theirs, ours, n = self.prefixes.segment(tokens, least, last_start)
            if n > self.recompute:
                return Run(held, theirs + self.recompute, ours + self.recompute, n - self.recompute)
        return source

    def _begin(self, request: Request) -> bool:
        """Whether there is room for a request, which is at work then."""
        held, run = request.held, request.run
        if self.live:
            cells, at_work = self.prefixes.is_live(), self.live.values()
            cells[run.held.cells[run.theirs : run.end]] = True
            missing = len(held.tokens) - run.n + sum(one.held.missing for one in at_work)
            answers = sum(min(RESERVE, one.max_tokens - one.n_answer) for one in [request, *at_work])
            if cells.sum() + missing + answers + (run.held.n if run.held.parked else 0) > self.ctx.n_ctx:
                return False
        if run.held.parked and not self._restore(run.held):
            self._forget(run.held)
            return False
        if not self._free(0, 1, run.held):
            if not self.live:  # the only sequence is the one to go on from
                self._forget(run.held)
            return False
        self.prefixes.enter(held)
        with self._wake:
            self.queue.remove(request)
            self.live[held.seq_id] = request
        held.start = run.start if run.n else self.room
        request.max_tokens = min(request.max_tokens, self.limit + self.room - held.start - len(request.tokens) + 1)
        request.times.setdefault("started", time.perf_counter())
        self._take(request)
        return True

    # -- room

    def _free(self, cells: int, sequences: int = 0, spared: Held = NOTHING.held) -> bool:
        """Whether so many are free: what rests makes room, unless it is spared, or somebody is to take cells of it."""
        needed = {spared, *(request.run.held for request in self.live.values())}
        while self.prefixes.free < cells or self.prefixes.n_seq - len(self.prefixes.entries) < sequences:
            if (held := self.prefixes.droppable(needed)) is None:
                return False
            self._drop(held)
        return True

    def _prune(self) -> None:
        """Before a long piece of work: what rests makes room, but for what somebody here has, or waits for."""
        cells, needed = self.prefixes.is_live(), {request.run.held for request in self.live.values()}
        waited_for = [request.run for request in self._queued()]
        for held in list(self.prefixes.entries.values()):
            gone = held.seq_id < 0  # it has made room for a copy
            if gone or held.live or held in needed or 2 * cells[held.cells].sum() >= held.n:
                continue
            kept = max((run.end for run in waited_for if run.held is held), default=0)
            if 2 * kept >= held.n:
                continue
            if kept and self.prefixes.goes_back and self._free(0, 1, held):
                self._copy(held, kept)
            self._drop(held)

    def _copy(self, held: Held, n: int) -> None:
        """Have the first n tokens of a sequence in another one, which rests."""
        copy = Held(held.tokens[:n], held.start)
        self.prefixes.enter(copy)
        self._share(copy, Run(held, 0, 0, n))
        self.prefixes.rest(copy)

    def _drop(self, held: Held) -> None:
        """A resting sequence leaves the cache; what nobody else has of it is parked."""
        state = None
        if self.prefixes.own(held) >= 2 * GRAM:
            try:
                state = self.ctx.get_state(held.seq_id)
            except SwarmKVError:  # not every model's states can be taken from a context of many sequences
                self.counts["not_kept"] += 1
        self._forget(held)
        if state is not None:
            self.prefixes.park(held, state)

    def _keep(self, folder: PrefixCache) -> None:
        """Keep what rests for the next server: the last used first, and of what begins alike the first one alone."""
        for held in sorted(self.prefixes.entries.values(), key=lambda held: held.used):
            self._drop(held)
        kept = list[Held]()
        for held in reversed(self.prefixes.parked):
            known = max((common(held.tokens, other.tokens) for other in kept), default=0)
            if held.n < LONG or len(kept) == _KEPT or (self.prefixes.goes_back and held.n - known < LONG):
                continue
            kept.append(held)
            identity = replace(KVIdentity.of(self.ctx), start=held.start, composed="served in batches")
            folder.keep(KVSnapshot(held.state, np.ascontiguousarray(held.tokens, np.int32), identity))

    def _restore(self, held: Held) -> bool:
        """Whether what is parked could be had in the cache again."""
        n, state = held.n, held.state
        if not self._free(n, 1):
            return False
        self.prefixes.enter(held)
        try:
            self.ctx.set_state(state, held.seq_id)
        except SwarmKVError:
            return False
        self.ctx.origins[held.seq_id] = held.start, ""
        self.prefixes.extend(held, n)
        return True

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
        elif not request.run.n:
            self._end(request, ContextBudgetError("there are no cells left"))
        request.run = NOTHING

    # -- exact

    def _exact_step(self) -> bool:
        """One request from its beginning to its end: its document once, its own cells right behind it."""
        with self._wake:
            if not self.queue:
                return False
            request = self.live[1] = self.queue.popleft()
        request.times["started"] = time.perf_counter()
        ctx, end, document = self.ctx, request.document_end, request.tokens[: request.document_end]
        stopped: Callable[[], bool] = lambda: request.cancelled or self._closing  # noqa: E731
        try:
            with ctx.stopping(stopped):
                ctx.clear(1)
                if not np.array_equal(document, self._document):
                    ctx.clear()
                    self._document = document[:0]
                    if end:
                        self._read(request, document)
                    self._document = document
                elif end:
                    request.how = "prefix"
                    self._count(request, shared=end)
                if end:
                    ctx.share(0, 1)
                ctx.decode(request.tokens[end:], 1)
                self._count(request, computed=len(request.tokens) - end)
                while (token := self._draw(request, ctx.pop_logits(1))) is not None:
                    if stopped():
                        raise Stopped
                    ctx.decode([token], 1)
        except Stopped:
            self._end(request, "cancelled" if request.cancelled else Closed("the server was closed"))
        except SwarmKVError as error:
            self._end(request, error)
        self.live.clear()
        return True

    def _read(self, request: Request, document: np.ndarray) -> None:
        """Have a document in sequence 0: from the lab's folder where it is there, and kept, or else decoded."""
        found = self.kept.find(document) if self.kept else None
        if found is not None and len(found.tokens) == len(document):
            found.restore(self.ctx)
            request.how = "snapshot"
            self._count(request, shared=len(document))
            return
        self.ctx.decode(document)
        self._count(request, computed=len(document))
        if self.kept:
            self.kept.keep(KVSnapshot.capture(self.ctx, document))
