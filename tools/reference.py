"""
Write docs/reference from the docstrings; with --check, only tell which of its files are not up to date.

What an administrator can call is found by reading the source, not by importing it: no machine has all that the
modules need. The docstrings are reStructuredText as Salt writes it; the subset in use becomes Markdown.
"""

import ast
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
REFERENCE = CHECKOUT / "docs/reference"
KINDS = {
    "runners": ("Runner", "on the master: `salt-run {name}.FUNCTION`"),
    "modules": ("Execution module", "on minions: `salt TARGET {name}.FUNCTION`"),
    "states": ("State module", "in SLS files: `{name}.FUNCTION`"),
    "clouds": ("Cloud driver", "in cloud providers: `driver: {name}`"),
    "engines": ("Engine", "in the master's configuration: `engines`"),
    "netapi": ("Door of salt-api", "in the master's configuration: `{name}`"),
}
NOTE = "<!-- Made by `make docs` from {source}: edit the docstrings there. -->\n"
# Salt itself calls these; they are no interface of ours.
LOADER = {"get_configured_provider", "get_dependencies"}

FIELD = re.compile(r":(?P<what>param|returns?|rtype|raises|depends)(?: (?P<rest>[^:]+))?: ?(?P<text>.*)")
DIRECTIVE = re.compile(r"\.\. code-block:: (\w+)$")
ROLE = re.compile(r":\w+:`~?([^`]+)`")


def main(check):
    """Write the reference, or check it; returns the exit status."""
    pages = {"README.md": index()}
    pages |= {page_name(kind, path): page(kind, path) for kind, path in sources()}
    there = {path.name: path.read_text() for path in REFERENCE.glob("*.md")}
    stale = sorted(name for name in pages.keys() | there.keys() if pages.get(name) != there.get(name))
    if check:
        for name in stale:
            sys.stdout.write(f"docs/reference/{name} is not what the docstrings say: run make docs\n")
        return bool(stale)
    REFERENCE.mkdir(exist_ok=True)
    for name in stale:
        if name in pages:
            (REFERENCE / name).write_text(pages[name])
        else:
            (REFERENCE / name).unlink()
    return 0


def sources():
    """The kind and path of each module that Salt loads."""
    return [(kind, path) for kind in KINDS for path in sorted((CHECKOUT / f"salt/_{kind}").glob("*.py"))]


def page_name(kind, path):
    """The name of a module's page."""
    return f"{kind.removesuffix('s')}-{path.stem}.md"


def index():
    """The list of all pages."""
    lines = [NOTE.format(source="salt/_*"), "# Reference", "", "| | | |", "|---|---|---|"]
    for kind, path in sources():
        title, where = KINDS[kind]
        first = inline(ast.get_docstring(ast.parse(path.read_text())).split("\n\n")[0].replace("\n", " "))
        link = f"[{title} `{path.stem}`]({page_name(kind, path)})"
        lines.append(f"| {link} | {where.format(name=path.stem)} | {first} |")
    return "\n".join(lines) + "\n"


def page(kind, path):
    """The page of one module."""
    tree = ast.parse(path.read_text())
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name not in LOADER
    ]
    title, where = KINDS[kind]
    parts = [
        NOTE.format(source=path.relative_to(CHECKOUT)),
        f"# {title} `{path.stem}`\n\nUsed {where.format(name=path.stem)}\n",
        markdown(ast.get_docstring(tree)),
        *(
            f"## {path.stem}.{node.name}\n\n{signature(path.stem, node)}\n\n{markdown(docstring(path, node))}"
            for node in functions
        ),
    ]
    return "\n".join(parts)


def docstring(path, node):
    """The docstring of a function; there must be one."""
    text = ast.get_docstring(node)
    if not text:
        sys.exit(f"{path.relative_to(CHECKOUT)}:{node.lineno}: {node.name} is public and has no docstring")
    return text


def signature(module, node):
    """How a function is called."""
    arguments = ast.unparse(node.args)
    return f"```python\n{module}.{node.name}({arguments})\n```"


def markdown(text):
    """A docstring as Markdown."""
    out, lines = [], text.split("\n")
    while lines:
        line = lines.pop(0)
        if code := DIRECTIVE.match(line):
            out += [f"```{code[1]}", *block(lines), "```"]
        elif line.endswith("::") and not line.startswith(" "):
            out += [inline(line[:-1]), "", "```", *block(lines), "```"]
        elif FIELD.match(line):
            out.append(entry(FIELD.match(" ".join([line, *indented(lines)]))))
        elif line.isidentifier() and lines and lines[0].startswith("    "):  # an argument, as Salt describes its own
            out.append(inline(f"* **{line}**: {' '.join(indented(lines))}"))
        else:
            out.append(inline(line))
    return "\n".join(out).strip() + "\n"


def indented(lines):
    """Take the indented lines at the head of the lines, each without its indentation."""
    taken = []
    while lines and lines[0].startswith("    "):
        taken.append(lines.pop(0).strip())
    return taken


def block(lines):
    """Take the indented block at the head of the lines, without its indentation and outer blank lines."""
    taken = []
    while lines and (not lines[0].strip() or lines[0].startswith("    ")):
        taken.append(lines.pop(0).removeprefix("    "))
    lines.insert(0, "")
    return "\n".join(taken).strip("\n").split("\n")


def entry(field):
    """One field of the field list as an item of a list."""
    text = inline(field["text"])
    match field["what"]:
        case "param":
            kind, _, name = field["rest"].rpartition(" ")
            return f"* **{name}**{f' ({kind})' if kind else ''}: {text}"
        case "raises":
            return f"* *raises* `{field['rest']}`: {text}"
        case "depends":
            return f"* *needs* {text}"
        case "rtype":
            return f"* *type returned*: {text}"
        case _:
            return f"* *returns* {text}"


def inline(text):
    """Roles and double backticks as Markdown."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
