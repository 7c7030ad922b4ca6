"""What the design promises of the code itself: models are small, and no family is known by name."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import jaxmodel
from jaxmodel.interop.huggingface.families import FAMILIES
from jaxmodel.models.presets import PRESETS

ROOT = Path(jaxmodel.__file__).parent
ROOMS = ("nn", "models", "interop/huggingface")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MOST_LINES = 4500
NO_CODE = (*(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT), tokenize.ENDMARKER)


def code_lines(path):
    """Lines that hold code: neither blank nor nothing but a comment or a docstring."""
    text = path.read_text()
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(found)


def test_the_model_code_stays_small():
    assert sum(map(code_lines, FILES)) < MOST_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_branch_or_dispatch_on_the_name_of_a_family(path):
    """No comparison with one, nor with the `name` of a family; no dict or `match` that it chooses from."""
    names = {*FAMILIES, *PRESETS} - {"tiny", "mlp"}

    def says(node):
        return isinstance(node, ast.Constant) and node.value in names

    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            parts += [each for part in parts if isinstance(part, ast.Tuple | ast.List | ast.Set) for each in part.elts]
            assert not any(map(says, parts)), where
        elif isinstance(node, ast.MatchValue):
            assert not says(node.value), where
        elif isinstance(node, ast.Dict) and path.name != "presets.py":
            assert not any(key is not None and says(key) for key in node.keys), where
