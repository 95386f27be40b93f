"""The hash of the code behind a stage: edits of meaning change it; comments, docstrings and formatting do not."""

import ast
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from visloop.errors import ConfigError
from visloop.ids import hash_file, hash_json, hash_text

PROJECT_PACKAGE = "visloop"

Found = TypeVar("Found")


def _once_per_version(read: Callable[[Path], Found]) -> Callable[[Path], Found]:
    """``read(path)``, computed again only when the file was written again: a flow asks for the same hundred files at every stage."""

    @cache
    def remember(path: Path, _written: int, _size: int) -> Found:
        return read(path)

    def look_up(path: Path) -> Found:
        stat = path.stat()
        return remember(path, stat.st_mtime_ns, stat.st_size)

    return look_up


def hash_code(names: Iterable[str]) -> str:
    """SHA-256 over the named modules and packages of the project and everything of it that they import.

    A package stands for all modules below it. Files that lie beside a hashed module's package and are not Python (templates,
    shipped weights) count by their bytes. Imports are read from the source, nothing is imported.

    Raises:
        ConfigError: a name is not a module of the project.
    """
    modules = _close(names)
    entries = {name: _hash_module(_locate(name)) for name in modules}
    for folder in _list_folders(modules):
        package = _package_of(folder)
        entries |= {f"{package}/{file.relative_to(folder).as_posix()}": _hash_bytes(file) for file in _data_files(folder)}
    return hash_json(entries)


def list_files(names: Iterable[str]) -> list[Path]:
    """The files that ``hash_code`` reads for these names: what a stage of ``dvc.yaml`` with this code has to depend on.

    Raises:
        ConfigError: a name is not a module of the project.
    """
    modules = _close(names)
    data = [file for folder in _list_folders(modules) for file in _data_files(folder)]
    return sorted({*map(_locate, modules), *data})


@cache
def _root() -> Path:
    spec = importlib.util.find_spec(PROJECT_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {PROJECT_PACKAGE} is not installed; run `make install` or set PYTHONPATH=src")
    return Path(spec.origin).parent


def _locate(name: str) -> Path:
    """The source file of a module, or the ``__init__.py`` of a package."""
    parts = name.split(".")
    base = _root().joinpath(*parts[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if parts[0] == PROJECT_PACKAGE and path.is_file():
            return path
    raise ConfigError(f"{name!r} is no module of {PROJECT_PACKAGE}; name one such as 'visloop.reasoning.generate'")


def _package_of(folder: Path) -> str:
    return ".".join((PROJECT_PACKAGE, *folder.relative_to(_root()).parts))


def _exists(name: str) -> bool:
    base = _root().joinpath(*name.split(".")[1:])
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def _list_folders(modules: Iterable[str]) -> list[Path]:
    return sorted({_locate(name).parent for name in modules})


def _close(given: Iterable[str]) -> list[str]:
    names = set(given)
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _locate(name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])  # importing a module runs the packages above it
        if path.name == "__init__.py" and name in names and name != PROJECT_PACKAGE:
            below = (file for file in path.parent.rglob("*.py") if "__pycache__" not in file.parts)
            waiting += [_name_of(file) for file in below]
        waiting += _list_imports(path)
    return sorted(seen)


def _name_of(file: Path) -> str:
    parts = file.relative_to(_root()).with_suffix("").parts
    return ".".join((PROJECT_PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


@_once_per_version
def _hash_bytes(path: Path) -> str:
    return hash_file(path)


@_once_per_version
def _list_imports(path: Path) -> tuple[str, ...]:
    """Modules of the project that this file imports, also inside functions."""
    return tuple(_find_imports(path))


def _find_imports(path: Path) -> Iterator[str]:
    package = _package_of(path.parent)
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PROJECT_PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*parent, source] if source else parent)
            if source.split(".")[0] == PROJECT_PACKAGE:
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names if _exists(f"{source}.{alias.name}"))


@_once_per_version
def _hash_module(path: Path) -> str:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return hash_text(ast.dump(tree))


def _data_files(folder: Path) -> list[Path]:
    """Non-Python files of a package: its own and those in sub-folders that are no packages themselves."""
    if folder == _root():
        return []
    files = []
    for file in sorted(folder.rglob("*")):
        between = [parent for parent in file.parents if parent.is_relative_to(folder) and parent != folder]
        hidden = any(part.startswith((".", "__pycache__")) for part in file.relative_to(folder).parts)
        if file.is_file() and file.suffix != ".py" and not hidden and not any((parent / "__init__.py").exists() for parent in between):
            files.append(file)
    return files
