"""Names of the shipped models. ``embedded/<name>`` in a config means the folder of weights that comes with the package."""

from pathlib import Path

from visloop.errors import ModelError

PREFIX = "embedded/"
WEIGHTS = Path(__file__).parent / "weights"


def list_models() -> list[str]:
    """Names of the shipped models in alphabetical order, each with the prefix ``embedded/``."""
    return sorted(PREFIX + folder.name for folder in WEIGHTS.glob("*") if (folder / "config.json").is_file())


def resolve_model(name: str) -> str:
    """The folder of a shipped model for ``embedded/<name>``; any other string (a folder, a hub id) is returned as it is.

    Raises:
        ModelError: ``name`` begins with ``embedded/`` but no such model is shipped.
    """
    if not name.startswith(PREFIX):
        return name
    if name not in list_models():
        raise ModelError(f"model {name!r} is not shipped; shipped models: {', '.join(list_models()) or 'none'}")
    return str(WEIGHTS / name.removeprefix(PREFIX))
