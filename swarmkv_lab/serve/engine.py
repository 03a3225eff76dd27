"""Engine: one thread at work on one cache, for all requests together.

Every llama_decode carries the next token of each answer and a piece of some prompts. A prompt goes on from the longest
prefix that is there; one whose prefix is just being decoded waits until the two part. Long prompts are decoded one
after another, and what nobody shares makes room: each token's attention walks over all cells of the cache.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from swarmkv_lab.errors import ContextBudgetError, SwarmKVError
from swarmkv_lab.llama.interrupt import Stopped
from swarmkv_lab.llama.model import Model
from swarmkv_lab.llama.sampling import Sampler, decode_together
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_lab.serve.prefixes import GRAM, NOTHING, Held, Prefixes, Segment, Source, common
from swarmkv_lab.snapshot.prefix_cache import PrefixCache
from swarmkv_lab.snapshot.snapshot import KVSnapshot

WINDOW = 32  # waiting requests that are looked at in each step
LONG = 256  # tokens: a prompt with as many to decode has no other long one beside it
STEPS = 8  # answers' steps between two pieces of a long prompt: together about as much work as one piece
_KEPT = 64  # sequences outside the cache, each of which is compared with each new prompt
RESERVE = 64  # cells kept for an answer when a request begins; for more it may have to wait


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
    seq_id: int = -1
    segment: Segment | None = None  # to be spliced
    plan: "Plan | None" = None
    n_answer: int = 0
    last: int = -1  # token of the answer
    shared: int = 0  # tokens of the prompt that were there
    computed: int = 0  # of the prompt, and again what a pre-empted request had
    how: str = "computed"
    times: dict[str, float] = field(default_factory=dict)
    """arrived, started, first (token), ended"""
    ended: str = ""

    def __post_init__(self) -> None:
        self.pending = self.tokens  # with its answer so far, where it was pre-empted


class Plan(NamedTuple):
    """What a waiting request goes on from, as long as no sequence comes or goes."""

    version: int
    source: Source
    start: int  # position of its first token, where there is no source
    segment: Segment | None
    awaits: Source  # it begins once this sequence has so many tokens


class Engine:
    """Answers requests until it is closed. settings: of its context; see Server for the others.

    Raises ContextBudgetError in ``submit`` for a prompt that can never fit, Busy when too many wait.
    """

    host_bytes = 1 << 30
    """the most bytes of states that are kept outside the cache"""

    def __init__(
        self, model: Model, settings: ContextSettings, exact: bool, cache: bool, room: int, recompute: int, waiting: int
    ) -> None:
        self.model, self.exact, self.room, self.recompute, self.most_waiting = model, exact, room, recompute, waiting
        self.cache = cache
        self.ctx = model.open_context(settings)
        goes_back = not model.kind.recurrent and not self.ctx.window
        self.prefixes = Prefixes(self.ctx.n_ctx, self.ctx.n_seq_max, goes_back)
        self.host: dict[int, tuple[Held, np.ndarray]] = {}
        """what had to make room, and its state, the latest last"""
        self.live: dict[int, Request] = {}
        self.queue: deque[Request] = deque()
        self.done: deque[Request] = deque(maxlen=10_000)
        self.counts: Counter[str] = Counter()
        self._eog = frozenset(filter(model.is_eog, range(model.n_vocab)))
        self._document = np.empty(0, np.int32)  # of exact: what sequence 0 holds
        self._owed = 0  # steps of answers alone before the next piece of a long prompt
        self._wake, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="swarmkv-engine", daemon=True)
        self._thread.start()

    @property
    def limit(self) -> int:
        """The most tokens of a prompt and its answer."""
        return min(self.ctx.n_ctx_seq, self.model.n_ctx_train) - self.room

    def submit(self, request: Request) -> None:
        """Have a request answered, from any thread."""
        n = len(request.tokens)
        if n >= self.limit:
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
        request.cancelled = True
        with self._wake:
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
                busy = self._exact_step() if self.exact else self._step()
            except Exception as error:  # a fault of ours: those at work are told, and the next ones begin anew
                for request in list(self.live.values()):
                    self._end(request, error)
                self._clear()
                busy = True
            if not busy:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self.queue or self._gone(), timeout=1)
        for request in [*self.live.values(), *self.queue]:
            self._end(request, Closed("the server was closed"))

    def _gone(self) -> list[Request]:
        return [request for request in [*self.live.values(), *self.queue] if request.cancelled]

    def _clear(self) -> None:
        self._document = self._document[:0]
        for seq_id in list(self.prefixes.entries):
            self.prefixes.drop(seq_id)
        with suppress(SwarmKVError):  # the model was closed
            self.ctx.clear()

    def _step(self) -> bool:
        """One llama_decode: whether there was anything to do."""
        for request in self._gone():
            self._end(request, "cancelled")
        self._admit()
        rows = self._rows()
        if any(self._missing(i) >= LONG for i in self.live):
            self._prune()
        while self.prefixes.free < sum(len(rows[i]) for i in rows if i in self.live):
            self._make_room()
        rows = {i: row for i, row in rows.items() if i in self.live}
        starts = {i: held.start for i in rows if not (held := self.prefixes.entries[i]).n and held.start}
        failed = lambda i, error: self._end(self.live[i], error)  # noqa: E731
        for seq_id in decode_together(self.ctx, rows, failed, starts):
            self._go_on(self.live[seq_id], len(rows[seq_id]))
        return bool(rows)

    def _rows(self) -> dict[int, np.ndarray]:
        """The tokens of the next decode, by sequence: answers' next ones, and pieces of prompts."""
        answers = [i for i, request in self.live.items() if request.n_answer and self._missing(i) == 1]
        prompts = [i for i in self.live if i not in answers]
        rows = {i: self._next(i, 1) for i in answers}
        long = next((i for i in prompts if self._missing(i) >= LONG), None)
        short = [i for i in prompts if self._missing(i) < LONG]
        if rows and not short and self._owed:
            self._owed -= 1
            fewest = min(answers, key=lambda i: self.live[i].n_answer)
            return rows if self.model.kind.packs else {fewest: rows[fewest]}
        self._owed = STEPS
        if not self.model.kind.packs:  # one sequence a decode, answers and prompts in turns
            one = next(iter([*prompts, *answers]), None)
            return {} if one is None else {one: self._next(one, self._piece(one, self.ctx.n_batch))}
        left = (self.ctx.n_batch // 2 if rows else self.ctx.n_batch) - len(rows)
        some = left if long is None else left // 2  # the rest is the long one's: it always goes on
        for i in short:
            n = self._piece(i, some)
            rows |= {i: self._next(i, n)} if n else {}
            some, left = some - n, left - n
        if long is not None and (n := self._piece(long, left)):
            rows[long] = self._next(long, n)
        return rows

    def _missing(self, seq_id: int) -> int:
        """Tokens that a sequence is yet to decode, or take from others."""
        held = self.prefixes.entries[seq_id]
        return len(held.tokens) - held.n

    def _next(self, seq_id: int, n: int) -> np.ndarray:
        held = self.prefixes.entries[seq_id]
        return held.tokens[held.n : held.n + n]

    def _piece(self, seq_id: int, most: int) -> int:
        """How many tokens of a prompt to decode: up to where a waiting one parts from it, or cells of others follow."""
        held, request = self.prefixes.entries[seq_id], self.live[seq_id]
        ends = {len(held.tokens), held.n + most}
        if request.segment:
            ends.add(request.segment.ours + self.recompute)
        if not self.prefixes.goes_back:
            ends |= request.marks
        ends |= {plan.awaits.n for plan in self._plans() if plan.awaits.seq_id == seq_id}
        return min((end for end in ends if end > held.n), default=held.n + most) - held.n if most > 0 else 0

    def _go_on(self, request: Request, n: int) -> None:
        """After n more tokens of a request: cells of others, or the next token of its answer."""
        seq_id, held = request.seq_id, self.prefixes.entries[request.seq_id]
        if held.n < len(request.tokens) or n > 1:
            self._count(request, n)
        self.prefixes.extend(seq_id, n)
        self._splice(request)
        if held.n == len(held.tokens):
            if self._take(request, self.ctx.pop_logits(seq_id)):
                self.prefixes.append(seq_id, request.last)
        elif not self.prefixes.goes_back and held.n in request.marks:
            copy = self._fork(held.tokens[: held.n], Source(seq_id, held.n), 0)
            if copy is not None:
                self.prefixes.rest(copy)

    def _count(self, request: Request, n: int) -> None:
        request.computed += n
        self.counts["computed_tokens"] += n

    def _take(self, request: Request, logits: np.ndarray) -> bool:
        """The next token of an answer, request.last: whether there is one to go on from."""
        try:
            token = request.sampler.sample(logits)
        except SwarmKVError as error:
            self._end(request, error)
            return False
        if token in self._eog:
            self._end(request, "stop")
            return False
        request.times.setdefault("first", time.perf_counter())
        request.last, request.n_answer = token, request.n_answer + 1
        self.counts["generated_tokens"] += 1
        self._tell(request, token)
        if request.n_answer >= request.max_tokens:
            self._end(request, "length")
        return request.n_answer < request.max_tokens

    def _tell(self, request: Request, what: Any) -> None:
        try:
            request.deliver(what)
        except Exception:  # whoever asked is gone
            request.cancelled = True

    def _end(self, request: Request, why: Any) -> None:
        """A request has ended: why is a word, or an error."""
        self.live.pop(request.seq_id, None)
        if request in self.queue:
            with self._wake:
                self.queue.remove(request)
        if request.seq_id in self.prefixes.entries:
            self._forget(request.seq_id) if isinstance(why, Exception) else self.prefixes.rest(request.seq_id)
        request.ended = why if isinstance(why, str) else "error"
        request.times["ended"] = time.perf_counter()
        self.counts[f"requests_{request.ended}"] += 1
        self.done.append(request)
        self._tell(request, why)

    # -- what is held

    def _plans(self) -> list[Plan]:
        return [request.plan for request in islice(self.queue, WINDOW) if request.plan]

    def _admit(self) -> None:
        """Let waiting requests begin in their order, unless more of their prefix is just being decoded."""
        for request in list(islice(self.queue, WINDOW)):
            plan = self._plan(request)
            if plan.awaits.n and self.prefixes.entries[plan.awaits.seq_id].n < plan.awaits.n:
                continue
            if not self._fits(request, plan.source, plan.segment):
                return
            seq_id = self._fork(request.pending, plan.source, plan.start, {plan.source.seq_id, plan.awaits.seq_id})
            if seq_id is None:
                return
            with self._wake:
                self.queue.remove(request)
            self.live[seq_id], request.seq_id = request, seq_id
            request.plan, request.segment = None, plan.segment
            request.times.setdefault("started", time.perf_counter())
            self._share(request, plan.source.n, "prefix" if plan.source.n else "computed")
            self._splice(request)

    def _plan(self, request: Request) -> Plan:
        if request.plan and request.plan.version == self.prefixes.version:
            return request.plan
        tokens, entries = request.pending[:-1], self.prefixes.entries  # the last one's logits are needed
        source = self.prefixes.match(tokens)
        segment = self.prefixes.segment(tokens, 2 * GRAM) if self.room else None
        if self._restored(tokens, max(source.n, segment.n if segment else 0) + GRAM):
            return self._plan(request)
        request.plan = Plan(self.prefixes.version, source, self.room, None, source)
        if segment and segment.n - self.recompute > source.n:
            held = entries[segment.seq_id]
            start = held.start + segment.theirs - segment.ours
            there = entries.get(source.seq_id)
            if not there or there.start != start or not source.n <= min(there.n, segment.ours + self.recompute):
                source = NOTHING
            if start >= 0:
                awaits = Source(segment.seq_id, segment.theirs + segment.n)
                request.plan = Plan(self.prefixes.version, source, start, segment, awaits)
        return request.plan

    def _fits(self, request: Request, source: Source, segment: Segment | None) -> bool:
        """Whether its cells can be had beside what those at work are yet to need."""
        live, entries = self.prefixes.is_live(), self.prefixes.entries
        taken = [entries[source.seq_id].cells[: source.n]] if source.n else []
        if segment:
            taken.append(entries[segment.seq_id].cells[segment.theirs + self.recompute : segment.theirs + segment.n])
        new = len(request.pending) - sum(int(live[cells].sum()) for cells in taken)
        answers = [min(RESERVE, one.max_tokens - one.n_answer) for one in [request, *self.live.values()]]
        missing = sum(self._missing(i) for i in self.live)
        return not self.live or int(live.sum()) + missing + new + sum(answers) <= self.ctx.n_ctx

    def _spared(self) -> set[int]:
        """Sequences that requests at work will yet take cells from."""
        return {request.segment.seq_id for request in self.live.values() if request.segment}

    def _fork(self, tokens: np.ndarray, source: Source, start: int, spared: Collection[int] = ()) -> int | None:
        """A sequence with the cells of a source's first n tokens, or None where there is none free."""
        while len(self.prefixes.entries) >= self.prefixes.n_seq:
            if (resting := self.prefixes.droppable(self._spared() | {*spared})) is None:
                return None
            self._drop(resting)
        seq_id = self.prefixes.take(tokens, source, start)
        if source.n:
            held = self.prefixes.entries[source.seq_id]
            self.ctx.share(source.seq_id, seq_id)
            if source.n < held.n:
                self.ctx.truncate(held.start + source.n, seq_id)
        return seq_id

    def _splice(self, request: Request) -> None:
        """Take a segment's cells, once what comes before them is decoded."""
        segment, seq_id = request.segment, request.seq_id
        if segment is None or self.prefixes.entries[seq_id].n < segment.ours + self.recompute:
            return
        held = self.prefixes.entries[segment.seq_id]
        start = self.prefixes.entries[seq_id].start + self.prefixes.entries[seq_id].n
        self.ctx.share(segment.seq_id, seq_id, start)
        self.ctx.truncate(held.start + segment.theirs + segment.n, seq_id)
        self._share(request, self.prefixes.splice(seq_id, segment), "composed")
        request.segment = None

    def _share(self, request: Request, n: int, how: str) -> None:
        if not request.n_answer:
            request.shared, request.how = request.shared + n, how
            self.counts["shared_tokens"] += n

    def _make_room(self) -> None:
        """Free some cells: of what rests, or of the request that began last, which waits again then."""
        if (resting := self.prefixes.droppable(self._spared())) is not None:
            self._drop(resting)
            return
        request = list(self.live.values())[-1]
        if len(self.live) == 1:
            self._end(request, "length" if request.n_answer else ContextBudgetError("there are no cells left"))
            return
        del self.live[request.seq_id]
        request.segment = None
        request.pending = self.prefixes.entries[request.seq_id].tokens
        self.counts["preempted"] += 1
        self.prefixes.rest(request.seq_id)
        request.seq_id = -1
        with self._wake:
            self.queue.appendleft(request)

    def _prune(self) -> None:
        """Before a long piece of work: what rests, and shares nothing with anybody here, makes room."""
        live, spared = self.prefixes.is_live(), self._spared()
        for plan in self._plans():
            spared |= {plan.source.seq_id, plan.awaits.seq_id}
        for i, held in list(self.prefixes.entries.items()):
            if not held.live and i not in spared and live[held.cells].sum() < GRAM:
                self._drop(i)

    def _drop(self, seq_id: int) -> None:
        """Forget a resting sequence; what nobody else has of it is kept outside the cache."""
        held = self.prefixes.entries[seq_id]
        if self.prefixes.own(seq_id) >= 2 * GRAM:
            try:
                state = self.ctx.get_state(seq_id)
                kept = Held(held.tokens, held.start, live=False)
                self.host[max(self.host, default=0) + 1] = kept, state
            except SwarmKVError:  # not every model's states can be taken from a context of many sequences
                self.counts["not_kept"] += 1
        while len(self.host) > _KEPT or sum(state.nbytes for _, state in self.host.values()) > self.host_bytes:
            del self.host[min(self.host)]
        self._forget(seq_id)

    def _forget(self, seq_id: int) -> None:
        self.ctx.clear(seq_id)
        self.prefixes.drop(seq_id)

    def _restored(self, tokens: np.ndarray, least: int) -> bool:
        """Whether more than so many tokens were found outside the cache, and are in it again."""
        found = {}
        for key, (held, _) in self.host.items():
            n = common(tokens, held.tokens)
            found[key] = n if self.prefixes.goes_back or n == len(held.tokens) else 0
        if self.room and (
            segment := self.prefixes.segment(tokens, least, {i: held for i, (held, _) in self.host.items()})
        ):
            found[segment.seq_id] = max(found[segment.seq_id], segment.n)
        key = max(found, key=found.__getitem__, default=-1)
        if key < 0 or found[key] < least:
            return False
        held, state = self.host[key]
        if self.prefixes.is_live().sum() + len(held.tokens) > self.ctx.n_ctx:
            return False
        while (
            self.prefixes.free < len(held.tokens) and (resting := self.prefixes.droppable(self._spared())) is not None
        ):
            self._drop(resting)
        if self.prefixes.free < len(held.tokens) or (seq_id := self._fork(held.tokens, NOTHING, held.start)) is None:
            return False
        self.host.pop(key, None)
        self.ctx.set_state(state, seq_id)
        self.ctx.origins[seq_id] = held.start, ""
        self.prefixes.extend(seq_id, len(held.tokens))
        self.prefixes.rest(seq_id)
        return True

    # -- exact

    def _exact_step(self) -> bool:
        """One request from its beginning to its end: its document once, its own cells right behind it."""
        with self._wake:
            request = self.queue.popleft() if self.queue else None
        if request is None:
            return False
        if request.cancelled:
            self._end(request, "cancelled")
            return True
        self.live[1], request.seq_id = request, 1
        request.times["started"] = time.perf_counter()
        ctx, end = self.ctx, request.document_end
        document = request.tokens[:end]
        try:
            with ctx.stopping(lambda: request.cancelled or self._closing):
                if end and np.array_equal(document, self._document):
                    self._share(request, end, "prefix")
                else:
                    self._clear()
                    if end:
                        self._read(request, document)
                    self._document = document
                if end:
                    ctx.share(0, 1)
                tokens = request.tokens[end:]
                self._count(request, len(tokens))
                ctx.decode(tokens, 1)
                while self._take(request, ctx.pop_logits(1)):
                    if request.cancelled or self._closing:
                        raise Stopped
                    ctx.decode([request.last], 1)
        except Stopped:
            self._end(request, "cancelled")
        except SwarmKVError as error:
            self._end(request, error)
        finally:
            ctx.clear(1)
        return True

    def _read(self, request: Request, document: np.ndarray) -> None:
        """Have a document in sequence 0: from the lab's folder where it is there, and kept, or else decoded."""
        kept = PrefixCache(self.model, self.ctx.settings) if self.cache else None
        found = kept.find(document) if kept else None
        if found is not None and len(found.tokens) == len(document):
            found.restore(self.ctx)
            self._share(request, len(document), "snapshot")
            return
        self._count(request, len(document))
        self.ctx.decode(document)
        if kept is not None:
            kept.keep(KVSnapshot.capture(self.ctx, document))


class Busy(SwarmKVError):
    """Too many requests wait."""

    status = 429


class Closed(SwarmKVError):
    """The server was closed before the answer was whole."""

    status = 503
