"""The idea in one drawing: whose cells of the KV cache are computed, and where each agent goes on."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from swarmkv_studies.common.style import PHASES, headline, sheet

_DOCUMENT, _QUESTION, _ANSWER = 10, 2, 3  # cells, drawn
_COMPUTED, _SHARED = {"facecolor": PHASES["prefill"][1]}, {"facecolor": "#DCE9F2", "hatch": "///"}
_LOOKS = {
    "document, computed": _COMPUTED,
    "document, copied or shared": _SHARED,
    "question": {"facecolor": PHASES["branch"][1]},
    "answer": {"facecolor": PHASES["generate"][1]},
}


def idea(n_agents: int = 3) -> Figure:
    """Cells of the cache by agent and position: a prefill per agent, and one prefill for all."""
    with sheet(2.9) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for ax, title, shared in ((left, "naive: a prefill per agent", False), (right, "prefill once, fan out", True)):
            ax.set_title(title)
            if shared:
                _cells(ax, 0, 0, _DOCUMENT, _COMPUTED)
            for y in range(1, n_agents + 1):
                _cells(ax, y, 0, _DOCUMENT, _SHARED if shared else _COMPUTED)
                _cells(ax, y, _DOCUMENT, _QUESTION, _LOOKS["question"])
                _cells(ax, y, _DOCUMENT + _QUESTION, _ANSWER, _LOOKS["answer"])
            ax.set(xlim=(-0.1, _DOCUMENT + _QUESTION + _ANSWER + 0.1), ylim=(n_agents + 0.6, -0.6), xlabel="position")
            ax.set_xticks([0.5, _DOCUMENT - 0.5, _DOCUMENT + 0.7], ["0", "n - 1", "n"])
            ax.set_yticks(range(n_agents + 1), ["document", *(f"agent {i}" for i in range(1, n_agents + 1))])
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0)
        message = f"{n_agents} agents, a document of n tokens: {n_agents}n tokens are prefilled, or n"
        headline(figure, message, {name: Patch(edgecolor="white", **look) for name, look in _LOOKS.items()})
    return figure


def _cells(ax: Axes, y: int, start: int, n: int, look: dict[str, str]) -> None:
    for x in range(start, start + n):
        ax.add_patch(Rectangle((x + 0.06, y - 0.32), 0.88, 0.64, edgecolor="white", linewidth=0, **look))
