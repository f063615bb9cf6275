"""Colour ramp of every picture: pale tokens retired early, strong ones are alive to the end."""

from __future__ import annotations

STEPS = 20  # of the ramp; finer is not seen, and a page needs one style rule per step

Color = tuple[int, int, int]
# (pale, strong): the backgrounds between which the ramp runs, chosen so that an ink of contrast 4.5 exists all along it
LIGHT: tuple[Color, Color] = ((240, 243, 248), (22, 74, 158))
DARK: tuple[Color, Color] = ((33, 40, 54), (160, 196, 255))
INKS: tuple[Color, Color] = ((255, 255, 255), (0, 0, 0))  # anything less than black falls short in the middle


def step(survived: int, layers: int) -> int:
    """Place on the ramp, 0 to ``STEPS``, of a token that took part in ``survived`` of ``layers`` layers.

    The last fifth is for tokens that are alive to the end: whether a token made it is the first question of a reader.
    """
    return STEPS if survived >= layers else round(0.8 * STEPS * survived / layers)


def colors(place: int, ramp: tuple[Color, Color] = LIGHT) -> tuple[str, str]:
    """Choose background and ink at a place on the ramp, as ``#rrggbb``; the ink is the one of higher contrast."""
    share = place / STEPS
    pale, strong = ramp
    background = tuple(round(a + (b - a) * share) for a, b in zip(pale, strong, strict=True))
    ink = max(INKS, key=lambda color: contrast(color, background))
    return _hex(background), _hex(ink)


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Contrast of two colours after WCAG 2, 1 to 21; text needs 4.5."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: tuple[int, ...]) -> float:
    """Relative luminance of an sRGB colour after WCAG 2, 0 to 1."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rules(selector: str, background: str | None = None, ink: str | None = None) -> str:
    """Style rules ``.s0`` to ``.s20``, light and dark.

    Args:
        selector: the kind of element, such as ``"span"``.
        background: the property that takes the background's colour, if any.
        ink: the property that takes the ink's colour, if any.
    """

    def ramp(colours: tuple[Color, Color]) -> str:
        lines = []
        for place in range(STEPS + 1):
            values = zip((background, ink), colors(place, colours), strict=True)
            declared = ";".join(f"{name}:{color}" for name, color in values if name)
            lines.append(f"{selector}.s{place}{{{declared}}}")
        return "".join(lines)

    return f"{ramp(LIGHT)}\n@media(prefers-color-scheme:dark){{{ramp(DARK)}}}"


def _hex(color: tuple[int, ...]) -> str:
    return "#" + "".join(f"{c:02x}" for c in color)
