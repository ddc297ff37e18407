"""The public API: `from fmnist_transfer import fit, Recipe`. docs/library.md shows how it is used.

The stub beside this file, `__init__.pyi`, is the one list of public names. Each is imported at its first use, so that a
command can parse its flags before torch is loaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
