"""Everything that the assistant has learned, as one value, and its snapshot on disk: a folder per pool."""

from dataclasses import dataclass, field
from pathlib import Path

from visloop.assistant.demonstrations import DemonstrationPool, load_demonstrations, save_demonstrations
from visloop.assistant.search_judgements import JudgementPool, load_judgements, save_judgements
from visloop.tools.prompt_pool import PromptPool, load_pool, save_pool

POOL_NAMES = ("demonstrations", "prompts", "judgements")
"""The folders of a snapshot. That of judgements is there only where a planner has learned from some."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """What the assistant has learned so far. ``judgements`` are for a planner that learns from right and wrong itself."""

    demonstrations: DemonstrationPool = field(default_factory=DemonstrationPool)
    prompts: PromptPool = field(default_factory=PromptPool)
    judgements: JudgementPool = field(default_factory=JudgementPool)

    def says_the_same(self, other: "Pools") -> bool:
        """Whether planner and tools would behave alike within a batch: the same demonstrations, whatever their scores, and the same
        prompts. Judgements count from the next batch on."""
        own, others = ({entry.id for entry in pools.demonstrations.entries} for pools in (self, other))
        return own == others and self.prompts.hash == other.prompts.hash

    def list_hashes(self) -> dict[str, str]:
        """64 hex digits per pool that there is."""
        found = {"demonstrations": self.demonstrations.hash, "prompts": self.prompts.hash}
        return found | ({"judgements": self.judgements.hash} if self.judgements.entries else {})


def save_pools(pools: Pools, folder: Path) -> None:
    """Write a snapshot of all pools."""
    save_demonstrations(pools.demonstrations, folder / "demonstrations")
    save_pool(pools.prompts, folder / "prompts")
    if pools.judgements.entries:
        save_judgements(pools.judgements, folder / "judgements")


def read_pools(folder: Path) -> Pools:
    """The snapshot in a folder.

    Raises:
        DataError: a file of it is missing or corrupt.
    """
    return Pools(
        demonstrations=load_demonstrations(folder / "demonstrations"),
        prompts=load_pool(folder / "prompts"),
        judgements=load_judgements(folder / "judgements"),
    )
