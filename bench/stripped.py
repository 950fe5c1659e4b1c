"""A copy of ftd without its trace calls: what watching that nobody does costs, is what the copy is quicker by."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import ftd
from ftd.trace import TRACE_EVENTS


class _Strip(ast.NodeTransformer):
    """
    Takes every event for one that is off, and leaves out what then never happens, tests included.

    :ivar count: how many tests of an event there were.
    """

    def __init__(self) -> None:
        self.count = 0

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """``trace.ft_trans_… is not None``."""
        self.generic_visit(node)
        if not (isinstance(node.left, ast.Attribute) and node.left.attr in TRACE_EVENTS and len(node.ops) == 1):
            return node
        self.count += 1
        return ast.Constant(isinstance(node.ops[0], ast.Is))

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """``… and …``, ``… or …``."""
        self.generic_visit(node)
        neutral = isinstance(node.op, ast.And)
        known = [_known(value) for value in node.values]
        if (not neutral) in known:
            # What stands before it is still asked, if it may be more than a question.
            before = node.values[: known.index(not neutral)]
            if not any(value is None for value in known[: len(before)]):
                return ast.Constant(not neutral)
            return ast.BoolOp(node.op, [*before, ast.Constant(not neutral)])
        left = [value for value, constant in zip(node.values, known, strict=True) if constant is not neutral]
        if not left:
            return ast.Constant(neutral)
        return left[0] if len(left) == 1 else ast.BoolOp(node.op, left)

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        """``if``, with all that is in it."""
        self.generic_visit(node)
        known = _known(node.test)
        if known is None:
            return node
        # A block has to have something in it.
        return (node.body if known else node.orelse) or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``… if … else …``."""
        self.generic_visit(node)
        known = _known(node.test)
        if known is None:
            return node
        return node.body if known else node.orelse


def _known(value: ast.expr) -> bool | None:
    """What an expression is in any case; ``None`` where that is not known."""
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None


def make(directory: Path) -> int:
    """
    Copy the package ftd to ``directory``.

    :return: how many tests of trace events are left out.
    """
    source = Path(ftd.__file__).parent
    target = directory / "ftd"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "test", "testing"))
    count = 0
    for path in target.rglob("*.py"):
        text = path.read_text()
        if "ft_trans_" not in text or path.name == "trace.py":
            continue
        strip = _Strip()
        tree = strip.visit(ast.parse(text))
        if strip.count:
            count += strip.count
            path.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    return count
