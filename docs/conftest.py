"""The examples run as the tests do: on eight CPU devices, with their compile cache."""

import tests.conftest  # noqa: F401
from tests import minilm

collect_ignore = [] if minilm.DIRECTORY.exists() else ["retrieval.md"]  # whose weights are no dependency
