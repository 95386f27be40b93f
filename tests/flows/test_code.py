"""The code hash follows meaning and imports, on a small package made for the test."""

from pathlib import Path

import pytest

from flows import _code
from visloop.errors import ConfigError

SOURCES = {
    "__init__.py": '"""The package."""\n',
    "base.py": "LIMIT = 3\n",
    "lonely.py": "VALUE = 1\n",
    "parts/__init__.py": "",
    "parts/user.py": '"""Doc."""\nfrom visloop.base import LIMIT\n\n\ndef f(x: int) -> int:\n    """Doc of f."""\n    return x + LIMIT\n',
    "parts/lazy.py": "def g():\n    from ..base import LIMIT\n\n    return LIMIT\n",
    "parts/package_import.py": "from visloop import base\n",
    "parts/texts/ask.j2": "Say {{ it }}.\n",
    "other/__init__.py": "",
    "other/data.bin": "1",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(_code, "_root", lambda: tmp_path)
    return tmp_path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("parts/user.py", '"""Doc of f."""', '"""Another text."""'),
        ("parts/user.py", "return x + LIMIT", "return (x  +  LIMIT)  # a comment"),
        ("lonely.py", "1", "2"),
        ("other/data.bin", "1", "2"),
    ],
)
def test_edits_without_meaning_or_elsewhere_keep_the_hash(package: Path, file: str, old: str, new: str) -> None:
    before = _code.hash_code(["visloop.parts.user"])
    _edit(package / file, old, new)
    assert _code.hash_code(["visloop.parts.user"]) == before


@pytest.mark.parametrize("name", ["visloop.parts.user", "visloop.parts.lazy", "visloop.parts.package_import", "visloop.parts"])
def test_an_edit_of_an_imported_module_counts(package: Path, name: str) -> None:
    before = _code.hash_code([name])
    _edit(package / "base.py", "3", "4")
    assert _code.hash_code([name]) != before


def test_own_edits_templates_and_new_modules_of_a_named_package_count(package: Path) -> None:
    module, whole = _code.hash_code(["visloop.parts.user"]), _code.hash_code(["visloop.parts"])
    _edit(package / "parts/user.py", "x + LIMIT", "x - LIMIT")
    assert _code.hash_code(["visloop.parts.user"]) != module
    _edit(package / "parts/user.py", "x - LIMIT", "x + LIMIT")
    assert _code.hash_code(["visloop.parts.user"]) == module
    _edit(package / "parts/texts/ask.j2", "Say", "Tell")
    assert _code.hash_code(["visloop.parts.user"]) != module
    _edit(package / "parts/texts/ask.j2", "Tell", "Say")
    (package / "parts/new.py").write_text("A = 1\n")
    assert _code.hash_code(["visloop.parts.user"]) == module
    assert _code.hash_code(["visloop.parts"]) != whole


def test_byte_code_and_hidden_files_do_not_count(package: Path) -> None:
    before = _code.hash_code(["visloop.parts"])
    (package / "parts/__pycache__").mkdir()
    (package / "parts/__pycache__/user.cpython-311.pyc").write_bytes(b"x")
    (package / "parts/.user.py.swp").write_bytes(b"x")
    assert _code.hash_code(["visloop.parts"]) == before


def test_the_order_and_repetition_of_names_do_not_matter(package: Path) -> None:
    assert _code.hash_code(["visloop.base", "visloop.lonely"]) == _code.hash_code(["visloop.lonely", "visloop.base", "visloop.lonely"])


@pytest.mark.parametrize("name", ["visloop.parts.missing", "json", "visloop.parts.texts"])
def test_a_name_that_is_no_module_is_refused(package: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        _code.hash_code([name])
