"""The rules that hold the house together: one arrow, one of each; heavy imports at home."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.build import build_wheel

from capfilt.cli import STAGE_HELP
from capfilt.config import Recipe
from capfilt.records import TABLES
from capfilt.stages.plans import STAGES

ROOT = Path(__file__).resolve().parents[1]
HOMES = {
    "ray": ("capfilt/runtime/",),
    "faiss": ("capfilt/dedup/index.py",),
    "torch": ("capfilt/workers/", "capfilt/miniature/teach", "model/capfilt_blip/"),
    "capfilt_blip": ("capfilt/workers/", "capfilt/miniature/teach", "model/capfilt_blip/"),
    "img2dataset": ("capfilt/io/fetch_child.py",),
    "tarfile": ("capfilt/io/tar.py",),
    "transformers": ("capfilt/workers/",),
}


def sources() -> list[Path]:
    return [
        path
        for folder in ("capfilt", "model/capfilt_blip")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imports_of(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_each_arrow_has_its_file_command_table_schema_section_and_tests(stage: str) -> None:
    assert (ROOT / "capfilt" / "stages" / f"{stage}.py").is_file()
    assert stage in STAGE_HELP
    assert STAGES[stage].table in TABLES
    assert (ROOT / "schemas" / f"{STAGES[stage].table}.json").is_file()
    assert stage in Recipe.model_fields
    assert (ROOT / "tests" / "stages" / f"test_{stage}.py").is_file()


def test_the_commands_stand_in_the_order_of_the_loop() -> None:
    assert list(STAGE_HELP) == list(STAGES)


@pytest.mark.parametrize("module", HOMES)
def test_a_heavy_import_has_one_home(module: str) -> None:
    strays = [
        str(path.relative_to(ROOT))
        for path in sources()
        if module in imports_of(ast.parse(path.read_text()))
        and not str(path.relative_to(ROOT)).startswith(HOMES[module])
    ]
    assert strays == []


def calls_of(path: Path) -> set[str]:
    calls = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    return {ast.unparse(call.func) for call in calls}


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "np.load"}
    found = {str(path.relative_to(ROOT)): calls_of(path) & forbidden for path in sources()}
    # An actor tries whether its own error survives the way to the driver.
    assert {name: calls for name, calls in found.items() if calls} == {
        "capfilt/runtime/actor.py": {"pickle.loads"}
    }


def test_only_the_command_line_imports_late() -> None:
    late = [
        f"{path.relative_to(ROOT)}:{inner.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom) and path.name != "cli.py"
    ]
    assert late == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_readme_names_every_folder_of_the_pipeline() -> None:
    readme = (ROOT / "README.md").read_text()
    packages = [path.parent.name for path in (ROOT / "capfilt").glob("*/__init__.py")]
    assert [name for name in packages if f"{name}/" not in readme] == []


def test_the_readme_has_a_phrase_for_every_file() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [
        line
        for path in sources()
        if not path.name.startswith("__")
        and (line := f"  {path.name:<20} {phrase_of(path)}") not in readme
    ]
    assert missing == [], "\n".join(missing)


def phrase_of(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").rstrip(".")


def test_imports_work_beside_a_file_called_model(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise ImportError('the wrong model')\n")
    program = "import capfilt.config, capfilt_blip.config; print('fine')"
    paths = f"import sys; sys.path[1:1] = [{str(ROOT)!r}, {str(ROOT / 'model')!r}]; "
    ran = subprocess.run(
        [sys.executable, "-c", paths + program], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout == "fine\n", ran.stderr


def test_the_wheel_holds_both_packages_and_the_tiny_blip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    names = zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).namelist()
    assert "capfilt/stages/caption.py" in names
    assert "capfilt_blip/text.py" in names
    assert "capfilt/miniature/weights/captioner/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests", "model/", "jobs"))]
