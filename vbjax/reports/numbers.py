"""Numbers for people: twelve digits where they are exact, two digits of the error where they are not."""

import math
from typing import SupportsFloat


def number(value: SupportsFloat, digits: int = 6) -> str:
    """A number to so many significant digits, with a true minus sign, in powers of ten when far from one."""
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < max(digits, 6):
        rounded = f"{value:.{max(digits - 1 - exponent, 0)}f}"
        shown = rounded.rstrip("0").rstrip(".") if "." in rounded else rounded
        return shown.replace("-", "−")
    mantissa, power = f"{value:.{min(digits, 3) - 1}e}".split("e")
    if value == float(f"1e{int(power)}"):
        return f"10{_superscript(int(power))}"
    return f"{mantissa} × 10{_superscript(int(power))}".replace("-", "−")


def uncertain(value: SupportsFloat, standard_error: SupportsFloat, *, plus_minus: bool = False) -> str:
    """A number with its standard error, to two digits of the error: `−1.4212(16)`, or `−1.4212 ± 0.0016`.

    Zero error shows the plain number, an infinite or NaN one shows `±` with it.
    """
    value, error = float(value), float(standard_error)
    if error == 0 or not math.isfinite(value):
        return number(value)
    if not math.isfinite(error):
        return f"{number(value)} ± {number(error)}"
    size = math.floor(math.log10(max(abs(value), error)))
    scale = size if size < -3 or size > 6 else 0
    value, error = value / 10.0**scale, error / 10.0**scale
    decimals = max(1 - math.floor(math.log10(error)), 0)
    if float(f"{error:.{decimals}f}") >= 10.0 ** (2 - decimals):  # 0.0996 rounds up to 0.10
        decimals = max(decimals - 1, 0)
    shown, width = f"{value:.{decimals}f}", f"{error:.{decimals}f}"
    power = f" × 10{_superscript(scale)}" if scale else ""
    if plus_minus:
        text = f"{shown} ± {width}"
        return (f"({text}){power}" if scale else text).replace("-", "−")
    short = width if "." in width and error >= 1 else width.replace(".", "").lstrip("0") or "0"
    return f"{shown}({short}){power}".replace("-", "−")


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
