"""The public API, listed in `__init__.pyi` and described in docs/library.md.

A name is imported at its first use, so that a command can parse its flags before torch is loaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
