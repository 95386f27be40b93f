"""Which process a Prefect flow run belongs to, as a label of the run: how a run that a crash left open is told from one at work."""

import logging

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from flows._servers import ProcessName

PROCESS_LABEL = "visloop.process"

_log = logging.getLogger(__name__)


def label_flow_run() -> None:
    """Give the flow run around the caller, if any, the name of this process."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(context.flow_run.id, {PROCESS_LABEL: str(ProcessName.own())})
    except Exception as error:  # whatever the server answers: the flow's work does not depend on a label
        _log.warning("the flow run could not be labelled with its process: %s", error)
