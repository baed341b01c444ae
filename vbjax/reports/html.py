"""The atoms of a page: escaped elements, prose with formulas, MathML, code with colours, verdict badges."""

import html
import io
import keyword
import re
import tokenize
from typing import Any, Literal

_VOID = {"img", "meta", "link", "br", "hr", "wbr", "col"}


class Html(str):
    """Markup that is safe to insert as it stands; every other string is escaped on its way in."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """`<tag attribute="…">children</tag>`, escaping every child that is not `Html`.

    children: strings, `Html`, numbers, or sequences of them; None is left out. attributes: `class_` for class,
    underscores for hyphens; True writes the bare name, None and False leave it out.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Any) -> Html:
    """Concatenate children as `element` does."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, (list, tuple)):
        return Html("".join(join(child) for child in children))
    return Html(html.escape(str(children), quote=False))


def prose(text: str, tag: str = "p", **attributes: Any) -> Html:
    """A paragraph with `$formulas$`, `` `code` `` and `*emphasis*`; the rest is escaped."""
    parts: list[Any] = []
    for piece in re.split(r"(\$[^$]+\$|`[^`]+`|\*[^*\s][^*]*\*)", text):
        marked = len(piece) > 2 and piece[0] == piece[-1] and piece[0] in "$`*"
        if marked and piece[0] == "$":
            parts.append(formula(piece[1:-1], inline=True))
        elif marked:
            parts.append(element("code" if piece[0] == "`" else "em", piece[1:-1]))
        else:
            parts.append(piece)
    return element(tag, parts, **attributes)


def formula(latex: str, *, inline: bool = False) -> Html:
    """LaTeX as MathML, which browsers lay out without a script; the source becomes its alternative text.

    Raises ValueError if a command is not understood, rather than showing it raw.
    """
    from latex2mathml.converter import convert

    # upright words, arg max and the space around log in the way that latex2mathml and MathML Core both know
    source = re.sub(r"\\mathrm\{([A-Za-z]{2,})\}", r"\\text{\1}", latex).replace(r"\arg", r"\text{arg}\,")
    source = re.sub(r"(?<=[\w})])\s*(?=\\log\b)", r"\\,", source)
    source = re.sub(r"(\\log(?:_\w)?)\s*(?![\s(_^{,]|\\left|\\right)(?=.)", r"\1\\,", source)
    mathml = convert(source, display="inline" if inline else "block")
    shown = re.sub(r"<[^>]*>", "", mathml)
    if "\\" in shown or "&#x0005C;" in shown:
        raise ValueError(f"latex2mathml does not understand {latex!r}: it would show {html.unescape(shown)!r}")
    math = mathml.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)
    return (
        Html(math)
        if inline
        else element("div", Html(math), class_="formula", tabindex="0", role="group", aria_label="Formula")
    )


def badge(text: str, kind: Literal["good", "bad", "neutral"] = "neutral") -> Html:
    """A verdict in a word; its sign says the same as its colour."""
    sign = {"good": "✓", "bad": "✗", "neutral": ""}[kind]
    return element("span", element("span", sign, aria_hidden="true") if sign else None, text, class_=f"badge {kind}")


def code(source: str) -> Html:
    """A block of Python with quiet colours; anything that does not tokenise is shown plain."""
    return element("pre", element("code", _coloured(source)), tabindex="0")


def _coloured(source: str) -> list[Html | str]:
    kinds = {tokenize.COMMENT: "c", tokenize.STRING: "s", tokenize.NUMBER: "n"}
    kinds |= {
        getattr(tokenize, name): "s"
        for name in ("FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
        if hasattr(tokenize, name)
    }
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    parts, done = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            kind = "k" if token.type == tokenize.NAME and keyword.iskeyword(token.string) else kinds.get(token.type)
            if kind:
                begin, end = (starts[line - 1] + column for line, column in (token.start, token.end))
                parts += [source[done:begin], element("span", source[begin:end], class_=kind)]
                done = end
    except (tokenize.TokenError, SyntaxError):
        return [source]
    return [*parts, source[done:]]
