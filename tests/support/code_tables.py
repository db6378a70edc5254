"""Tables of the documents that come from the code: codes of errors and reasons, locks, privileges.

    python -m tests.support.code_tables        rewrites them; a test fails when that is due

Sources are parsed, not imported, so that no optional library is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    bases: tuple[str, ...]
    code: str | None
    retryable: bool | None
    text: str


_RELAYED = {"Finding", "Obstacle", "Refusal"}
"""What leaf libraries have in place of a Reason; adapters relay it."""


def _trees(folder: str = "appliance") -> Iterator[ast.Module]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield ast.parse(path.read_text(), str(path))


def _constant(node: ast.ClassDef, name: str) -> object:
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, ast.Constant)
            and any(isinstance(t, ast.Name) and t.id == name for t in statement.targets)
        ):
            return statement.value.value
    return None


def _classes() -> dict[str, _Class]:
    found = {}
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                code, retryable = _constant(node, "code"), _constant(node, "retryable")
                assert code is None or node.name not in found, f"two classes {node.name}"
                found[node.name] = _Class(
                    bases=tuple(base.id for base in node.bases if isinstance(base, ast.Name)),
                    code=code if isinstance(code, str) else None,
                    retryable=retryable if isinstance(retryable, bool) else None,
                    text=" ".join((ast.get_docstring(node) or "").split()),
                )
    return found


def _lineage(classes: dict[str, _Class], name: str) -> Iterator[_Class]:
    """The class and what it derives from, nearest first."""
    if name in classes:
        yield classes[name]
        for base in classes[name].bases:
            yield from _lineage(classes, base)


def error_table() -> str:
    """One row per code of an ApplianceError: code, whether to try again, the operator's text."""
    classes = _classes()
    root = classes["ApplianceError"]
    rows = {}
    for name, found in classes.items():
        lineage = list(_lineage(classes, name))
        if found.code is None or root not in lineage:
            continue
        again = next(c.retryable for c in lineage if c.retryable is not None)
        assert found.code not in rows, f"two errors with the code {found.code}"
        rows[found.code] = f"| `{found.code}` | {'yes' if again else 'no'} | {found.text} |"
    return _table("| code | try again | meaning and next step |", rows)


def reason_table() -> str:
    """One row per code of a Reason, or of an enum of reasons: code, kind, next step."""
    rows = {}
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Reason") and node.bases:
                for statement in node.body:
                    value = statement.value if isinstance(statement, ast.Assign) else None
                    if isinstance(value, ast.Constant):
                        rows[str(value.value)] = f"| `{value.value!s}` | note | – |"
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reason":
                code, row = _reason(node)
                rows[code] = row
    for tree in (*_trees("vmware"), *_trees("hyperv")):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in _RELAYED:
                given = _given(node)
                if isinstance(given["code"], ast.Constant):  # else it passes another one on
                    code, row = _reason(node)
                    rows[code] = row
    return _table("| code | kind | next step |", rows)


def _given(call: ast.Call) -> dict[str, ast.expr]:
    names = ("code", "text", "next_step", "warning")
    given = dict(zip(names, call.args, strict=False))
    return given | {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _reason(call: ast.Call) -> tuple[str, str]:
    given = _given(call)
    code = given["code"]
    assert isinstance(code, ast.Constant), "the code of a Reason must be a literal"
    warning = given.get("warning") or given.get("weight")
    quiet = (isinstance(warning, ast.Constant) and warning.value is False) or (
        isinstance(warning, ast.Attribute) and warning.attr == "NOTE"
    )
    step = given["next_step"]
    text = str(step.value) if isinstance(step, ast.Constant) else "(said with the reason)"
    return str(code.value), f"| `{code.value!s}` | {'note' if quiet else 'warning'} | {text} |"


def _table(header: str, rows: dict[str, str]) -> str:
    rule = "|---" * (header.count("|") - 1) + "|"
    return "\n".join([header, rule, *(rows[code] for code in sorted(rows))])


def lock_table() -> str:
    """The table in the docstring of the module that keeps it true."""
    tree = ast.parse((ROOT / "appliance" / "repository" / "locks.py").read_text())
    lines = (ast.get_docstring(tree) or "").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def privilege_table() -> str:
    """One row per purpose, in the order of the code."""
    tree = ast.parse((ROOT / "vmware" / "privileges.py").read_text())
    purposes: dict[str, str] = {}
    rows = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Purpose":
            for item in node.body:
                if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                    purposes[item.targets[0].id] = ast.literal_eval(item.value)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PRIVILEGES":
            assert isinstance(node.value, ast.Dict)
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                assert isinstance(key, ast.Attribute)
                names = ", ".join(f"`{name}`" for name in ast.literal_eval(value))
                rows.append(f"| {purposes[key.attr]} | {names} |")
    assert rows, "vmware/privileges.py has no table"
    return "\n".join(["| purpose | privileges |", "|---|---|", *rows])


TABLES = {
    "docs/operations.md": {"errors": error_table, "reasons": reason_table},
    "docs/locking.md": {"locks": lock_table},
    "docs/vsphere-access.md": {"privileges": privilege_table},
}


def replaced(page: str, text: str) -> str:
    """Return the text of a page with its generated tables as they should be."""
    for name, make in TABLES[page].items():
        begin, end = f"<!-- generated: {name} -->\n", f"\n<!-- end: {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"{page} has no place for the table of {name}"
        text = f"{before}{begin}{make()}{end}{after}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        (ROOT / page).write_text(replaced(page, (ROOT / page).read_text()))
