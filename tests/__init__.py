"""Tests: unit (one module), http (a server), contracts (both engines, both runners), docs, slow."""
