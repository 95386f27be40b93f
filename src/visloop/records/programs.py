"""The record that a language model learns to plan from: an accepted run of the assistant as a conversation."""

from dataclasses import dataclass

from visloop.records.assistant import FeedbackSource, Provenance, TaskKind
from visloop.records.reasoning import SFTExample


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramExample(SFTExample):
    """A planner's prompt with the plan or the program (``kind``) of a run that was right. Whatever reads ``SFTExample`` reads it.

    ``sample_id`` is the task, ``path_id`` the run (trace) in ``cycle``, ``author`` who wrote its program; ``provenance`` is ``accepted``
    for a first run and ``repaired`` for one after an update, ``source`` who said that it was right. ``pools`` are the hashes of the pools
    that the cycle started with (``demonstrations``, ``prompts``), ``shown`` the demonstrations of theirs in the prompt, and
    ``prompts_hash`` is of its templates.
    """

    task_kind: TaskKind
    cycle: int
    author: str
    provenance: Provenance
    source: FeedbackSource
    pools: dict[str, str]
    shown: tuple[str, ...]
    prompts_hash: str
