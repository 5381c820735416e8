"""An `eval` for answers: arithmetic, Python literals and sympy's mathematics, nothing else.

An answer is hostile text, and libraries evaluate it as Python: some scorers of reasoning-gym by `eval`, others and
mathruler by `sympy.parse_expr`. Unguarded, `\\boxed{__import__('os').system('...')}` runs with the rights of the run.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any


def install() -> None:
    """Make this the `eval` of sympy's parser and of the modules of reasoning-gym that are loaded."""
    from sympy.parsing import sympy_parser

    vars(sympy_parser)["eval"] = evaluate
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym."):
            vars(module)["eval"] = evaluate


def evaluate(source: Any, names: dict[str, Any] | None = None, local_names: dict[str, Any] | None = None) -> Any:
    """`eval` of text or of what `compile` makes of it. Raises ValueError for code that uses a name of anything else.

    `names` and `local_names` are looked up as by `eval`, without Python's built-in functions. What is called by name is
    all that a code object can do beyond arithmetic: attributes are names too; functions in it are refused.
    """
    code = source if isinstance(source, CodeType) else compile(source.lstrip(" \t"), "<answer>", "eval")
    names, local_names = names or {}, local_names or {}
    for name in code.co_names:
        if not _is_mathematics(local_names.get(name, names.get(name))):
            raise ValueError(f"{name!r} is no mathematics")
    if any(isinstance(constant, CodeType) for constant in code.co_consts):
        raise ValueError("a function or a comprehension is no mathematics")
    return eval(code, {**names, "__builtins__": {}}, local_names)


def _is_mathematics(value: Any) -> bool:
    """Sympy's numbers, symbols, functions and operators; their constructors read text with this `eval`."""
    import sympy

    if isinstance(value, type):
        return issubclass(value, sympy.Basic)
    return isinstance(value, sympy.Basic) or value in (abs, sympy.sqrt, sympy.cbrt, sympy.root)
