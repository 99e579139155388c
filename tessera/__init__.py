"""Tessera: a self-hosted multimodal warehouse. Files in, search by meaning out.

Importing this package imports nothing else: heavy libraries are loaded where they are used.
"""

__version__ = "0.5.0"
