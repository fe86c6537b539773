"""The house's own rules: light imports, one-way arrows between rooms, sizes, docstrings, nothing of a machine in the files."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dreamloom"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))
# DESIGN's arrows: a room may import rooms of earlier layers and itself, never its neighbours.
# (An agent that records itself is made of nn's blocks, so datasets is one above.)
LAYERS = [{"nn"}, {"datasets"}, {"tokenizers", "diffusion"}, {"worldmodels"}, {"agents"}, {"train", "eval"}, {"play", "cli"}]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return run.stdout


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_import_is_light() -> None:
    # Time of the process, which a busy machine does not lengthen.
    code = "import time, sys; t = time.process_time(); import dreamloom; print(time.process_time() - t, 'torch' in sys.modules)"
    runs = [python(code).split() for _ in range(3)]
    assert all(loaded == "False" for _, loaded in runs)
    assert min(float(seconds) for seconds, _ in runs) < 0.3


def test_overview_is_light() -> None:
    code = "import sys; from dreamloom.cli import main; main(['--help']); assert not {'torch', 'numpy'} & set(sys.modules)"
    assert "collect procgen" in python(code)


def test_lazy_names_resolve() -> None:
    import dreamloom

    assert all(callable(getattr(dreamloom, name)) for name in dreamloom.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dreamloom.no_such_name


def test_rooms_do_not_shadow_other_packages() -> None:
    code = (
        "import json; from importlib.util import find_spec; "
        "print(json.dumps([s and s.origin for s in map(find_spec, ['datasets', 'tokenizers'])]))"
    )
    for origin in json.loads(python(code)):
        assert origin is None or "site-packages" in origin


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_keeps_the_house_rules(path: Path) -> None:
    source, room = path.read_text(), room_of(path)
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what it is"
    assert len(source.splitlines()) <= 350
    assert path.name != "utils.py"
    assert "__main__" not in source or path.name == "__main__.py", "no file of the package is run by path"
    for name in imported(tree):
        parts = name.split(".")
        if parts[0] in ("lightning", "pytorch_lightning"):
            assert room == "train", f"only train/ knows Lightning, {room} imports {name}"
        if parts[0] == "dreamloom" and len(parts) > 1 and parts[1] in LAYER and parts[1] != room:
            assert room == "__main__" or LAYER[parts[1]] < LAYER[room], f"{room} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_fit_a_page(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield name, content.decode()


def test_files_name_no_machine_and_no_registry() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|root|Users|home)/[\w.]")
    registry = re.compile(r"https?://[^/\s]*(?:py" + "pi|pythonhosted|artifact|registry|mirror|proxy)|index-" + "url")
    by_path = re.compile(r"python3? dream" + "loom/")
    for name, text in tracked_texts():
        for rule in (machine, registry, by_path):
            found = rule.search(text)
            assert not found, f"{name}: {found[0]}"


def test_no_lock_file_is_tracked() -> None:
    assert "uv.lock" not in [name for name, _ in tracked_texts()]
