"""The page on which people ask, see how the answer came about, and say what was wrong: ``make page``, then http://127.0.0.1:7860.

usage: python -m apps.page [--port 7860] [group=option ...] [key=value ...]   (overrides as for every flow)
"""

import argparse
import os
import sys
from collections.abc import Sequence

import uvicorn
from rich.console import Console

from apps._server import make_app
from flows._entry import compose_config
from flows._environment import set_hub_offline
from flows._named_models import needs_hub
from visloop.errors import VisloopError

HOST, PORT = "127.0.0.1", 7860


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page on this machine until it is interrupted; 1 where the settings are wrong."""
    parser = argparse.ArgumentParser(prog="python -m apps.page", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("overrides", nargs="*", help="e.g. experiment=smoke paths.data=data-small")
    chosen = parser.parse_args(arguments)
    # MLflow's queue looks up once a second, and every answer waits until its trace is kept: written at once, it is there sooner.
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    try:
        config = compose_config(chosen.overrides)
        set_hub_offline(local=not needs_hub(config))
        app = make_app(config)
    except VisloopError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
        return 1
    Console().print(f"http://{HOST}:{chosen.port} (Ctrl-C stops it)", markup=False)
    uvicorn.run(app, host=HOST, port=chosen.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
