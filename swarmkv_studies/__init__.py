"""The studies behind the notebooks: what they measure, compute, draw and show, one folder per notebook.

The names are listed in __init__.pyi, each with its file, which is loaded when the name is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
