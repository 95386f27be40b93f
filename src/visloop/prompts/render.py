"""Render prompts from ``*.j2`` files. A style is a folder of templates: ``full`` for general models, ``compact`` for
the embedded ones. The style's hash is kept in every record that a prompt helped to make."""

from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateNotFound, UndefinedError

from visloop.errors import ConfigError
from visloop.ids import hash_json

_FOLDER = Path(__file__).parent


class PromptSet:
    """The templates of one style.

    Args:
        style: a folder beside this file (``full``, ``compact``) or the path of a folder of ``*.j2`` files.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, style: str) -> None:
        folder = _FOLDER / style if (_FOLDER / style).is_dir() else Path(style)
        if not folder.is_dir():
            known = ", ".join(sorted(path.name for path in _FOLDER.iterdir() if path.is_dir() and list(path.glob("*.j2"))))
            raise ConfigError(f"prompts: no style or folder {style!r}; shipped styles: {known}")
        self.style, self.folder = style, folder
        self._environment = Environment(
            loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )

    def __reduce__(self) -> Any:
        """Templates do not travel to another process; they are read again there."""
        return PromptSet, (self.style,)

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the names and texts of all templates."""
        return hash_json({path.name: path.read_text() for path in sorted(self.folder.glob("*.j2"))})[:16]

    def render(self, name: str, **values: object) -> str:
        """The text of template ``name``.

        Raises:
            ConfigError: the style has no such template, or a value that it uses is missing.
        """
        try:
            return self._environment.get_template(f"{name}.j2").render(**values).strip()
        except TemplateNotFound as error:
            raise ConfigError(f"prompts: style {self.style!r} has no template {name}.j2") from error
        except UndefinedError as error:
            raise ConfigError(f"prompts: {self.style}/{name}.j2: {error.message}") from error
