"""jaxmodel: pure-function models, and weights that know how to multiply, for JAX."""

__version__ = "0.1.0"
