"""An endpoint for agents that speak the OpenAI API: ``lab.serve(model, ...)`` starts a Server (see there)."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """This package, which is also the call."""

    def __call__(self, model: Any, **settings: Any) -> Any:
        from swarmkv_lab.serve.server import Server

        return Server(model, **settings)


sys.modules[__name__].__class__ = _Package
