"""The structure of the sources: the direction of the imports, and the lengths of files and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastconv"
LONGEST_FILE = 350
LONGEST_FUNCTION = 60

#: From top to bottom. A module may import modules of its own layer and of the layers below.
LAYERS = (
    {"__main__"},
    {"classifier"},
    {"benchmarking", "builder"},
    {"public"},
    {"conversion", "freezing", "override", "tuning"},
    {"nn", "functional", "normalization", "linear", "models", "optim", "reference", "flops"}
    | {"_ahead", "_deferred", "_frozen", "_layer", "_scripted"},
    {"environment"},
    {"_ops"},
    {"installation", "processor", "startup", "version"},
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}

#: The files and functions that are still too long, with their present lengths. A length may only fall. Remove the entry
#: of a file or function that has become short enough.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.stmt]:
    """The statements that run at import, also within ``if`` and ``try``. With ``everywhere``, all statements."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not everywhere:
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from statements(child, everywhere)


def imported(name: str, everywhere: bool = False) -> set[str]:
    """The modules of fastconv that the module ``name`` imports."""
    package = name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for statement in statements(TREES[name], everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
            origin = ".".join([*above, *([statement.module] if statement.module else [])])
            # `from package import name` imports the module `name` or, for any other name, the package's __init__.
            names = {f"{origin}.{alias.name}" for alias in statement.names} - {"fastconv._C"}  # compiled
            found |= {full if full in SOURCES else origin for full in names}
    return {other for other in found if other in SOURCES and other != name}


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one cycle of imports. Empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if found := visit(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_imports_have_no_cycle() -> None:
    assert cycle_in({name: imported(name) for name in SOURCES}) == []


def test_the_search_finds_a_cycle() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_has_a_layer() -> None:
    assert {name.split(".")[1] for name in SOURCES if "." in name} == set(LAYER)


@pytest.mark.parametrize("name", sorted(LAYER))
def test_a_layer_imports_only_its_own_and_lower_ones(name: str) -> None:
    """Imports within functions count, too."""
    mistakes = [
        f"{module} imports {other}"
        for module in SOURCES
        if module.split(".")[1:2] == [name]
        for other in imported(module, everywhere=True)
        if LAYER.get(other.split(".")[1] if "." in other else "", LAYER[name]) < LAYER[name]
    ]
    assert mistakes == []


def function_lengths(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, int]]:
    """The name of each function, and its lines without its docstring."""
    for node in ast.iter_child_nodes(tree):
        name = outer
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{outer}.{node.name}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            yield name, (node.end_lineno or 0) - node.lineno + 1 - docstring
        yield from function_lengths(node, name)


def too_long(lengths: dict[str, int], limit: int, exceptions: dict[str, int]) -> list[str]:
    """Messages about lengths above their limit, and about exceptions that are no longer needed."""
    mistakes = [
        f"{name} has {length} lines, at most {exceptions.get(name, limit)} are allowed"
        for name, length in lengths.items()
        if length > exceptions.get(name, limit)
    ]
    return mistakes + [f"{name} needs no exception any more" for name in exceptions if lengths.get(name, 0) <= limit]


def test_no_source_file_is_too_long() -> None:
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh"}
    paths = [path for folder in ("csrc", "fastconv") for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert too_long(lengths, LONGEST_FILE, LONG_FILES) == []


def test_no_function_is_too_long() -> None:
    lengths = {f"{module}{name}": length for module, tree in TREES.items() for name, length in function_lengths(tree)}
    assert too_long(lengths, LONGEST_FUNCTION, LONG_FUNCTIONS) == []


def unworded_calls(code: str) -> list[str]:
    """The lines that call torch's C functions without ``in_words``, which gives their errors PyTorch's text."""
    calls = r"ERROR_CODE_CHECK\(|_data_ptr\(|torch::stable::(empty_like|contiguous|narrow|copy_|clone)\("
    return [line for line in code.splitlines() if re.search(calls, line) and "in_words(" not in line]


def test_errors_of_torch_have_pytorchs_words() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    others = [path for path in sources if path.name != "tensor.cpp"]
    assert len(others) > 50
    assert {path.name: lines for path in others if (lines := unworded_calls(path.read_text()))} == {}


def test_a_call_without_words_is_found() -> None:
    unworded, worded = "torch::stable::copy_(to, from);", "in_words([&] { torch::stable::copy_(to, from); });"
    assert unworded_calls(f"{unworded}\n{worded}") == [unworded]


def test_lengths_above_their_limit_and_needless_exceptions_are_found() -> None:
    lengths = {"short": 3, "long": 9, "grown": 9}
    assert too_long(lengths, 5, {"long": 9, "grown": 8, "short": 6, "gone": 7}) == [
        "grown has 9 lines, at most 8 are allowed",
        "short needs no exception any more",
        "gone needs no exception any more",
    ]
