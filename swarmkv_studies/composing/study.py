"""The same questions by agents with roles of their own, over cells that were computed behind something else.

And, in rounds, how early eight such agents end.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import swarmkv_lab as lab
from swarmkv_lab.errors import whole_number
from swarmkv_lab.fanout.recorder import BASELINE
from swarmkv_lab.llama.sampling import GREEDY, generate_together
from swarmkv_lab.llama.settings import ContextSettings
from swarmkv_studies.answers.questions import Question, Questions, load_questions, parts
from swarmkv_studies.answers.study import INSTRUCTION, Rows, answer_row, ask_all

FULL = "full"
NEUTRAL = "You are a helpful assistant. You read with care the text that the user gives you, and answer from it."
ROLES = {
    "short": "You are an auditor. Be exact.",
    "middle": "You advise a buyer. You look for what could cost the buyer money: contracts that end, licences that "
    "bind, invoices that grow. You quote amounts and dates as they stand in the text.",
    "long": "You are the technical reviewer of a due-diligence team. You check source code, configuration, backups, "
    "alerts and incidents. Your readers are lawyers and accountants: they need short sentences, without jargon. You "
    "never guess. Where the text gives a number, a name, a version or a date, you repeat it exactly as it is written. "
    "Where the text does not answer a question, you say that it is not stated, and nothing more. You do not greet, "
    "you do not sum up, and you do not offer further help.",
}
OTHER = dict(zip(ROLES, [*list(ROLES)[1:], *ROLES], strict=False))  # whose cells an agent reads
_FORCED = 16  # tokens of the reference's answer, after each of which predictions are compared
_AGENT, _CELLS, _BRANCHES = 0, 1, 3  # sequences: the agent's, up to two documents', and the questions'
_FOR = ("the buyer", "the seller", "a bank", "an insurer", "the board", "a regulator", "the press", "a court")
_WAYS = {BASELINE: False, "composed": False, "composed, packed": True}
_KEPT = ["end_to_end_ms", "first_ttft_ms", "last_ttft_ms", "prefill_ms", "share_ms"]
_KEPT += ["prompt_tokens", "computed_tokens", "copied_bytes"]


class Arm(NamedTuple):
    """How an agent gets role, document and question together.

    behind: what the document's cells were computed behind; None: the agent's own role, a full prefill. recompute: of
    the document's tokens, its first or (middle) those from its middle on, decoded in the agent's own sequence.
    documents: 0, the whole part, or 1 and 2, its halves as two documents, in this order. on: positions before the role.
    """

    behind: str | None = None
    recompute: int = 0
    middle: bool = False
    documents: tuple[int, ...] = (0,)
    on: int = 0
    flash_attn: bool = False
    document_first: bool = False

    @property
    def reference(self) -> str:
        """The name of the arm that it is compared with: a full prefill of the same prompt."""
        return FULL if len(self.documents) == 1 else _two(self.documents, FULL)


def _two(order: tuple[int, ...], how: str) -> str:
    return f"two documents, {'in order' if order == (1, 2) else 'swapped'}: {how}"


BEHIND = ("nothing", "a neutral prompt", "another role")
ARMS = {
    FULL: Arm(),
    "full, 64 positions on": Arm(on=64),
    "full, flash attention": Arm(flash_attn=True),
    "document first": Arm(document_first=True),
    **{f"behind {who}, k = {k}": Arm(who, k) for who, k in product(BEHIND, (0, 8, 32, 128))},
    "behind nothing, 32 in the middle": Arm("nothing", 32, middle=True),
    **{_two(order, FULL): Arm(documents=order) for order in ((1, 2), (2, 1))},
    **{
        _two(order, f"apart, k = {k}"): Arm("a neutral prompt", k, documents=order)
        for order, k in product(((1, 2), (2, 1)), (0, 32))
    },
}


def composed_study(
    model: lab.Model,
    questions: Questions = None,
    document: str | Path = "dossier",
    *,
    arms: Sequence[str] = tuple(ARMS),
    n_parts: int = 4,
    max_tokens: int = 40,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Ask all questions in each of the ways of ARMS, greedily: a DataFrame, a row per answer, for ``score``.

    Agents have ROLES in turns; of two documents (a part's halves) every fourth question is asked. kl: nats from
    the arm's reference, mean over the question's last token and up to 16 tokens of the reference's answer. own_tokens:
    of the prompt, decoded for this agent alone. The rest is as in ``ask_all``.
    """
    return ask_all(
        model, partial(_Part, model, max_tokens), questions, document, arms, ARMS, n_parts=n_parts, path=path
    )


class _Answer(NamedTuple):
    id: str
    tokens: list[int]
    logits: list[np.ndarray]
    """after the question, and after each of the reference's tokens"""
    own_tokens: int


class _Part:
    """A part of the document, whole and as two, and its questions with their roles."""

    def __init__(self, model: lab.Model, max_tokens: int, text: str, questions: Sequence[Question]) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.questions = list(questions)
        self.role = {question.id: list(ROLES)[i % len(ROLES)] for i, question in enumerate(questions)}
        self.heads = {name: model.head(role) for name, role in ROLES.items()}
        self.first = model.read(text)  # as it begins a prompt
        self.documents = [model.document(one) for one in (text, *parts(text, 2))]
        self.at = max(map(len, self.heads.values()))
        self.cells = cache(self._cells)
        self.reference = cache(lambda arm: list(self._answered(arm)))

    def asked(self, arm: Arm) -> list[Question]:
        return self.questions[:: 1 if len(arm.documents) == 1 else 4]  # so that each role is among them

    def rows(self, arm: Arm) -> Rows:
        """A row per question that this arm is asked."""
        reference = self.reference(ARMS[arm.reference])
        rows = []
        for it in reference if arm == ARMS[arm.reference] else self._answered(arm, reference):
            against = next(one for one in reference if one.id == it.id)
            kl = float(np.mean([lab.kl_divergence(p, q) for p, q in zip(against.logits, it.logits, strict=True)]))
            row = {"id": it.id, "role": self.role[it.id], "own_tokens": it.own_tokens, "kl": float(f"{kl:.3e}")}
            rows.append(row | answer_row(self.model, it.tokens))
        return rows

    def _answered(self, arm: Arm, reference: Sequence["_Answer"] = ()) -> Iterator["_Answer"]:
        along = {one.id: one.tokens[:_FORCED] for one in reference}
        documents = [self.documents[i] for i in arm.documents]
        n_ctx = arm.on + self.at + sum(map(len, documents)) + 128 * (len(self.questions) + 1)
        # One thread a token: with flash attention the bits depend on how many there are, and machines differ.
        how = {"n_threads": 1, "n_threads_batch": ContextSettings().threads, "flash_attn": arm.flash_attn}
        with self.model.context(n_ctx, n_seq_max=_BRANCHES + len(self.questions), **how) as ctx:
            for role in ROLES:
                asked = [question for question in self.asked(arm) if self.role[question.id] == role]
                own = self._prepare(ctx, arm, role, documents) if asked else 0
                prompts = {}
                for i, question in enumerate(asked, _BRANCHES):
                    words = f"{question.question} {INSTRUCTION}"
                    prompts[i] = self.model.ask(f"{ROLES[role]}\n\n{words}" if arm.document_first else words)
                    ctx.share(_AGENT, i)
                    ctx.decode(prompts[i], i)
                forced = {i: along[question.id] for i, question in enumerate(asked, _BRANCHES)} if along else None
                answers, logits = self._read(ctx, list(prompts), forced)
                for i, question in enumerate(asked, _BRANCHES):
                    yield _Answer(question.id, answers[i], logits[i], own + len(prompts[i]))
                    ctx.clear(i)

    def _prepare(self, ctx: lab.Context, arm: Arm, role: str, documents: list[np.ndarray]) -> int:
        """Have role and documents in the agent's sequence; the number of tokens that were decoded for this agent."""
        if arm.document_first:
            if not ctx.n_past():
                ctx.decode(self.first)
            return 0
        ctx.clear()
        head = self.heads[role]
        if arm.behind is None:
            ctx.decode(np.concatenate([head, *documents]), start=arm.on)
            return ctx.n_past() - arm.on
        at = self.at
        for i, document in enumerate(documents):
            before = OTHER[role] if arm.behind == "another role" else arm.behind
            self.cells(arm.documents[i], before, at).restore(ctx, _CELLS + i)
            at += len(document)
        ctx.decode(head, start=self.at - len(head))
        for i, document in enumerate(documents):
            begins = len(document) // 2 if arm.middle else 0
            if begins:
                joint = ctx.n_past() + begins
                ctx.splice(_CELLS + i, _AGENT)
                ctx.truncate(joint, _AGENT)
            if arm.recompute:
                ctx.decode(document[begins : begins + arm.recompute], _AGENT)
            ctx.splice(_CELLS + i, _AGENT)
        return len(head) + arm.recompute * len(documents)

    def _cells(self, document: int, behind: str, at: int) -> lab.KVSnapshot:
        """A document's cells from a position on."""
        before = (ROLES | {"a neutral prompt": NEUTRAL}).get(behind)
        return lab.prefill(self.model, self.documents[document], behind=before, at=at, progress=False)

    def _read(
        self, ctx: lab.Context, branches: Sequence[int], forced: Mapping[int, list[int]] | None
    ) -> tuple[dict[int, list[int]], dict[int, list[np.ndarray]]]:
        """The branches' greedy answers, and their predictions along forced tokens, or their answers' own first ones.

        All branches take a step in one decode, in every arm.
        """
        ends = {i: ctx.n_past(i) for i in branches}
        logits = {i: [ctx.logits(i)] for i in branches}
        answers: dict[int, list[int]] = {i: [] for i in branches}
        for step in generate_together(ctx, {i: (self.max_tokens, GREEDY) for i in branches}):
            for i, token in step.items():
                answers[i].append(token)
        for i in branches:
            ctx.truncate(ends[i], i)
        for row in zip_longest(*((forced or answers)[i][:_FORCED] for i in branches)):
            tokens = {i: [token] for i, token in zip(branches, row, strict=True) if token is not None}
            ctx.decode_many(tokens)
            for i in tokens:
                logits[i].append(ctx.logits(i))
        return answers, logits


def role_agents(n: int = 8) -> dict[str, tuple[str, str]]:
    """So many agents, each with a role of its own, of three lengths: {name: (role, question)}."""
    roles = [f"You work for {who}. {list(ROLES.values())[i % len(ROLES)]}" for i, who in enumerate(_FOR)]
    asked = load_questions()[: whole_number("n", n, 1, len(roles))]
    return {one.id: (role, one.question) for one, role in zip(asked, roles, strict=False)}


def composed_rounds(
    model: lab.Model, document: np.ndarray, *, repeats: int = 8, n_agents: int = 8, max_tokens: int = 16
) -> pd.DataFrame:
    """Agents with roles of their own answer over a document's tokens: full prefills, composed, composed and packed.

    A row per run, for ``speedups``; all three take turns in a round (repeat), after a warm-up. The composed runs
    prefill the document too, once, behind the first agent's role.
    """
    agents, rows = role_agents(n_agents), []
    for repeat in tqdm(range(-1, whole_number("repeats", repeats, 1)), desc="composed rounds", disable=None):
        for way, packed in _WAYS.items():
            ids = document if repeat >= 0 else document[:64]
            run = lab.fan_out(model, ids, agents, way.partition(",")[0], max_tokens=max_tokens, packed=packed)
            about = {"repeat": repeat, "strategy": way, "depth": len(ids), "n_agents": len(agents)}
            rows.append(about | {name: run.metrics[name] for name in _KEPT})
    return pd.DataFrame([row for row in rows if row["repeat"] >= 0])
