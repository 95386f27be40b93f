"""`python -m flows.operations server|worker|deploy|status|stop`: what `make` calls."""

import argparse
import os
import sys

from flows._servers import read_service
from visloop.errors import VisloopError


def main() -> int:
    """Run one command; 0, or 1 after an error that is one paragraph."""
    parser = argparse.ArgumentParser(prog="python -m flows.operations", description="Servers, worker and deployments of this project.")
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server", help="start Prefect's and MLflow's servers")
    server.add_argument("--port", type=int, default=4200, help="of Prefect's server")
    server.add_argument("--ui-port", type=int, default=5000, help="of MLflow's server")
    worker = commands.add_parser("worker", help="close what a crash left open, then start the worker")
    worker.add_argument("--limit", type=int, default=2, help="flow runs at once, over all queues")
    deploy = commands.add_parser("deploy", help="register the deployments of prefect.yaml")
    deploy.add_argument("--slots", type=int, default=1, help="flow runs of one queue at once")
    commands.add_parser("status", help="services, deployments, runs; closes what a crash left open")
    commands.add_parser("stop", help="stop worker, running flows and servers")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except VisloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    record = read_service("server")
    if record is not None:
        os.environ["PREFECT_API_URL"] = f"{record.url}/api"  # before prefect is imported: this project's server, no other
    from flows.operations.deployments import deploy_all, prepare_pool
    from flows.operations.services import require_server, start_servers, start_worker
    from flows.operations.status import close_crashed, print_deployments, print_services, print_status, stop_everything

    match arguments.command:
        case "server":
            start_servers(port=arguments.port, ui_port=arguments.ui_port)
            print_services()
        case "worker":
            require_server()
            prepare_pool()
            close_crashed()
            start_worker(limit=arguments.limit)
            print_services()
        case "deploy":
            require_server()
            prepare_pool(slots=arguments.slots)
            deploy_all()
            print_deployments()
        case "status":
            print_status()
        case "stop":
            stop_everything()


if __name__ == "__main__":
    sys.exit(main())
