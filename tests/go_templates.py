"""A small evaluation of Go's text/template, of what our `*.gotmpl` use and no more: anything else is an error here.

By https://pkg.go.dev/text/template: `{{- ` takes the blanks before it away, ` -}}` those after it; a variable lives to
the end of the block that declares it with `:=`, and `=` changes it there; `range` and `if` are blocks; `and` gives its
first empty argument or its last.
"""

import json
import re

BLANKS = " \t\r\n"
ACTION = re.compile(r"\{\{(-(?=[ \t\r\n]))?(.*?)((?<=[ \t\r\n])-)?\}\}", re.DOTALL)
TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\d+|\.\w*|\$\w*|\w+|:=|[=(),])')


def render(source, values):
    """The text that a template makes of a mapping."""
    written = []
    _run(_parse(_pieces(source)), values, [{}], written)
    return "".join(written)


def collate(messages):
    """As Ollama hands them to a template (template/template.go): messages in a row of one role are one."""
    together = []
    for message in messages:
        if together and together[-1]["Role"] == message["role"]:
            together[-1]["Content"] += f"\n\n{message['content']}"
        else:
            together.append({"Role": message["role"], "Content": message["content"]})
    return together


def _pieces(source):
    """Texts and lists of tokens in turn."""
    pieces, start, trimmed = [], 0, False
    for action in ACTION.finditer(source):
        text = source[start : action.start()]
        text = text.lstrip(BLANKS) if trimmed else text
        pieces += [text.rstrip(BLANKS) if action[1] else text, _tokens(action[2])]
        start, trimmed = action.end(), bool(action[3])
    rest = source[start:]
    return [*pieces, rest.lstrip(BLANKS) if trimmed else rest]


def _tokens(inside):
    found, place = [], 0
    inside = inside.strip()
    while place < len(inside):
        token = TOKEN.match(inside, place)
        assert token, f"not known here: {inside[place:]}"
        found.append(token[1])
        place = token.end()
    return found


def _parse(pieces):
    """Nodes: a text, or (kind, tokens, nodes, other nodes)."""
    nodes, end = _block(pieces, 0)
    assert end == len(pieces)
    return nodes


def _block(pieces, place):
    """Nodes up to an `else` or `end`, and where that stands."""
    nodes = []
    while place < len(pieces):
        piece = pieces[place]
        if isinstance(piece, str):
            nodes.append(piece)
        elif piece[0] in ("else", "end"):
            return nodes, place
        elif piece[0] in ("if", "range"):
            node, place = _branch(pieces, place, piece)
            nodes.append(node)
        else:
            nodes.append(("action", piece, [], []))
        place += 1
    return nodes, place


def _branch(pieces, place, opening):
    inside, place = _block(pieces, place + 1)
    otherwise = []
    if pieces[place][0] == "else" and len(pieces[place]) > 1:  # else if: it shares the end
        node, place = _branch(pieces, place, pieces[place][1:])
        otherwise = [node]
    elif pieces[place][0] == "else":
        otherwise, place = _block(pieces, place + 1)
    assert pieces[place] == ["end"]
    return (opening[0], opening[1:], inside, otherwise), place


def _run(nodes, dot, scopes, written):
    for node in nodes:
        if isinstance(node, str):
            written.append(node)
            continue
        kind, tokens, inside, otherwise = node
        if kind == "if":
            _run(inside if _value(tokens, dot, scopes) else otherwise, dot, [*scopes, {}], written)
        elif kind == "range":
            names, items = ([tokens[0], tokens[2]], tokens[4:]) if ":=" in tokens else ([], tokens)
            for number, item in enumerate(_value(items, dot, scopes)):
                _run(inside, item, [*scopes, dict(zip(names, (number, item), strict=False))], written)
        elif tokens[1:2] == [":="]:
            scopes[-1][tokens[0]] = _value(tokens[2:], dot, scopes)
        elif tokens[1:2] == ["="]:
            next(scope for scope in reversed(scopes) if tokens[0] in scope)[tokens[0]] = _value(tokens[2:], dot, scopes)
        else:
            value = _value(tokens, dot, scopes)
            assert isinstance(value, str)
            written.append(value)


def _value(tokens, dot, scopes):
    values, left = [], list(tokens)
    name = left.pop(0) if left[0] in FUNCTIONS else None
    while left:
        values.append(_operand(left, dot, scopes))
    if name:
        return FUNCTIONS[name](*values)
    (value,) = values
    return value


def _operand(left, dot, scopes):
    token = left.pop(0)
    if token == "(":
        depth, inside = 1, []
        while depth:
            inside.append(left.pop(0))
            depth += {"(": 1, ")": -1}.get(inside[-1], 0)
        return _value(inside[:-1], dot, scopes)
    if token.startswith('"'):
        return json.loads(token)
    if token.startswith("."):
        return dot[token[1:]]
    if token.startswith("$"):
        return next(scope[token] for scope in reversed(scopes) if token in scope)
    return int(token)


def _printf(form, *values):
    assert re.fullmatch(r"(?:[^%]|%s)*", form)
    return form % values


FUNCTIONS = {
    "eq": lambda one, other: one == other,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "printf": _printf,
}
