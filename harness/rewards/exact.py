"""Equality of two values that math-verify has read, decided exactly.

math-verify compares numbers to 6 or 15 places and names without their case: `2^{-2024}` is `2^{-2025}`, and `X` is `x`.
`install` puts the functions of this module in the place of those four comparisons. Sets, tuples and relations stay the
library's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PLACES = 30
MAX_PLACES = 20_000
POINTS = ((7, 5), (11, 3), (13, 17))
"""Numerators and denominators of the first symbol's values where two formulas are compared."""


@lru_cache(maxsize=1)
def install() -> None:
    """Replace the comparisons in `math_verify.grader`."""
    import math_verify.grader as library

    replaced = {
        "sympy_numeric_eq": lambda a, b, *_: same_value(a, b),
        "sympy_symbolic_eq": lambda a, b: False,  # `same_value` has tried it
        "sympy_compare_symbols": same_name,
        "sympy_solve_and_compare": lambda a, b, *_: same_solutions(a, b),
    }
    assert set(replaced) <= set(vars(library)), "math_verify.grader has other names: this module has to be adapted"
    vars(library).update(replaced)


def same_value(a: Any, b: Any) -> bool:
    """Whether two expressions or matrices are equal; numbers to the last digit."""
    import sympy

    if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr) and isinstance(b, sympy.MatrixBase | sympy.MatrixExpr):
        a, b = a.doit(), b.doit()
        if not (isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase)):
            return bool(a == b)
        return a.shape == b.shape and all(map(same_value, a.flat(), b.flat()))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return bool(a == b)
    if a == b:
        return True
    if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational):
        return False
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return _same_constant(a, b)
    for numerator, denominator in POINTS:
        point = {s: sympy.Rational(numerator + 2 * i, denominator) for i, s in enumerate(symbols)}
        if _differ(a.subs(point), b.subs(point), PLACES):
            return False
    return sympy.simplify(a - b).is_zero is True


def _same_constant(a: Any, b: Any) -> bool:
    import sympy

    if _differ(a, b, PLACES):
        return False
    difference = sympy.expand((a - b).doit())
    if difference.is_zero is not None:
        return bool(difference.is_zero)
    # Long numbers may differ late. Two values of so short a formula that agree to so many places are equal.
    digits = sum(abs(n).bit_length() for r in difference.atoms(sympy.Rational) for n in (r.p, r.q)) // 3
    places = 100 + 4 * digits
    if places > MAX_PLACES or _differ(a, b, places):
        return False
    return _agree(a, b, places) or sympy.simplify(difference).is_zero is True


def _differ(a: Any, b: Any, places: int) -> bool:
    """Whether two constants are surely different. False where their digits are not sure."""
    distance = _distance(a, b, places)
    return distance is not None and bool(distance > _unit(10 - places))


def _agree(a: Any, b: Any, places: int) -> bool:
    distance = _distance(a, b, places)
    return distance is not None and bool(distance <= _unit(10 - places))


def _unit(power: int) -> Any:
    import sympy

    return sympy.Float(f"1e{power}", 15)


def _distance(a: Any, b: Any, places: int) -> Any:
    """Relative distance; None where one of the two has no sure digits."""
    import sympy

    try:
        values = [x.evalf(places, maxn=2 * places + 100) for x in (a, b)]
        parts = [part for value in values for part in value.as_real_imag()]
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return None
    if not all(part == 0 or (isinstance(part, sympy.Float) and part._prec > 1) for part in parts):
        return None
    size = max(map(abs, parts))
    return None if size == 0 else max(abs(parts[0] - parts[2]), abs(parts[1] - parts[3])) / size


def same_name(a: Any, b: Any) -> bool:
    r"""Whether two values are equal of which one is a symbol: `\text{ab}` is the product `ab`, but not `AB`."""
    import sympy

    if isinstance(a, sympy.Symbol) and isinstance(b, sympy.Symbol):
        return bool(a.name == b.name)
    name, product = (a, b) if isinstance(a, sympy.Symbol) else (b, a)
    if isinstance(product, sympy.Mul) and all(arg == sympy.E or arg.is_Symbol for arg in product.args):
        letters = "".join("e" if arg == sympy.E else arg.name for arg in product.args)
        if letters == name.name:
            return True
    return same_value(a, b)


def same_solutions(a: Any, b: Any) -> bool:
    """Whether two equations, or two inequalities in one symbol, hold for the same values, of which there are some."""
    import sympy

    if a.free_symbols != b.free_symbols:
        return False
    if not (isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq)):
        return len(a.free_symbols) == 1 and bool(a.as_set() == b.as_set())
    solutions = [_solutions(equation) for equation in (a, b)]
    if not solutions[0] or len(solutions[0]) != len(solutions[1]):
        return False
    return all(
        left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
        for left, right in zip(*solutions, strict=True)
    )


def _solutions(equation: Any) -> list[Any]:
    import sympy

    found = sympy.solve(equation, sorted(equation.free_symbols, key=str), dict=True)
    return sorted(found, key=lambda one: [(str(key), sympy.default_sort_key(one[key])) for key in sorted(one, key=str)])
