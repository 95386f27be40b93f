"""Demonstrations of a user's own that the pools start with, beside the shipped ones: how a planner without an LLM comes to use a plugin.

Slot filling knows no tool that no demonstration calls, so a plugin would stay unused until a person had corrected a program by hand.
"""

from pathlib import Path

from visloop.assistant.checks import check_program
from visloop.assistant.demonstrations import DemonstrationPool, check_entry
from visloop.assistant.grammar import parse_program
from visloop.errors import ConfigError, DataError, ProgramError
from visloop.records.assistant import Demonstration
from visloop.records.shards import iterate_shard
from visloop.tools.base import FindSignature


def add_seed_file(pool: DemonstrationPool, file: str, *, find_signature: FindSignature) -> DemonstrationPool:
    """The pool with the demonstrations of ``planner.seeds`` behind its own; what it says already is left out. An empty name adds nothing.

    Programs are checked here, failed ones too: a tool that is misspelt would else be learned from until a gate refuses a whole cycle.

    Args:
        file: JSON lines, a ``Demonstration`` each.
        find_signature: the tools that programs may call, plugins among them.

    Raises:
        ConfigError: there is no such file, or nothing in it.
        DataError: a line is no demonstration, has an id that is taken, or a program that cannot be read or breaks a rule; file:line is
            named.
    """
    if not file:
        return pool
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"assistant.planner.seeds: {file} is no file; name one with a demonstration per line, or leave it empty")
    known = {entry.id: entry for entry in pool.entries}
    lines: dict[str, int] = {}
    entries: list[Demonstration] = []
    for number, entry in enumerate(iterate_shard(path, Demonstration), start=1):
        where = f"{path}:{number}"
        check_entry(entry, where=where)
        if not entry.id.strip():
            raise DataError(f"{where}: no id; give each demonstration one of its own")
        _check_program(entry, where=where, find_signature=find_signature)
        if entry.id in lines or known.get(entry.id, entry) != entry:
            owner = f"line {lines[entry.id]}" if entry.id in lines else "another demonstration, which is shipped"
            raise DataError(f"{where}: the id {entry.id} is that of {owner}; ids must be unique")
        lines[entry.id] = number
        entries.append(entry)
    if not entries:
        raise ConfigError(f"assistant.planner.seeds: {file} is empty; write a demonstration per line, or leave the key empty")
    return pool.add(entries)


def _check_program(entry: Demonstration, *, where: str, find_signature: FindSignature) -> None:
    """Parse and check what stands in ``program``; a plan may be shown without one."""
    if not entry.program.strip():
        return
    try:
        program = parse_program(entry.program)
    except ProgramError as error:
        raise DataError(f"{where}: the program of {entry.id} cannot be read: {error}") from error
    problems = check_program(program, kind=entry.task_kind, find_signature=find_signature)
    if problems:
        raise DataError(f"{where}: the program of {entry.id} cannot be run: {problems[0].describe()}")
