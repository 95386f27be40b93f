"""What the tools on a CLIP share: the loaded model, its vocabulary, the regions of pictures, and learning a word."""

import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from visloop.config_assistant import PromptTuning, ToolsConfig
from visloop.errors import DataError
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.anchors import Anchors, load_anchors
from visloop.tools.base import TuningReport
from visloop.tools.clip_model import ClipEncoder, load_clip, model_folder
from visloop.tools.instances import match_region, read_instances
from visloop.tools.naming import PromptBank, Region, TextFeatures, find_group
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.region_cache import SHARED, RegionCache
from visloop.tools.tuning import learn_prompts, split_instances
from visloop.tools.tunings import CLIP_OWNER, choose_tuning
from visloop.tools.values import Boxes, Objects, VisualObject
from visloop.tools.vocabulary import Vocabulary, load_vocabulary
from visloop.tools.word_tuning import WordProblem

OWNER = CLIP_OWNER
PLACEMENT = "text prefix"


class ClipEngine:
    """One loaded CLIP for several tools.

    Args:
        root: the data folder that the paths of instances start from.
    """

    def __init__(
        self, encoder: ClipEncoder, vocabulary: Vocabulary, *, config: ToolsConfig, root: Path = Path(), anchors: Anchors | None = None
    ) -> None:
        self.encoder, self.vocabulary, self.config, self.root, self.anchors = encoder, vocabulary, config, root, anchors
        self.regions: RegionCache = SHARED
        self._texts: TextFeatures = {}

    def find_tuning(self, tool: str = OWNER) -> PromptTuning:
        """How one of these tools learns and combines prompts; ``OWNER``: as all of them do that have no settings of their own."""
        return choose_tuning(self.config, tool)

    def open_bank(self, pool: PromptPool, *, tool: str = OWNER) -> PromptBank:
        """The prompts of a pool that belong to these tools, combined as ``tool`` does."""
        return PromptBank(self.encoder, self.vocabulary, pool=pool, owner=OWNER, tuning=self.find_tuning(tool), features=self._texts)

    def propose(self, image: Image.Image) -> tuple[Region, ...]:
        """The regions of a picture; those of recent pictures are kept."""
        return self.regions.propose(image)

    def regions_of(self, image: Image.Image, values: Boxes | Objects) -> list[Region]:
        """Regions for boxes and objects; one without a mask gets that of the region that is proposed there, if any."""
        found = []
        for value in values:
            box, mask = (value.box, value.mask) if isinstance(value, VisualObject) else (value, None)
            found.append(Region(box, mask) if mask is not None else match_region(box, self.propose(image)))
        return found

    def tune_word(
        self,
        concept: str,
        *,
        pool: PromptPool,
        instances: Sequence[Instance],
        replay: Sequence[Instance],
        group: str,
        seed: int,
        cycle: int,
        tool: str = OWNER,
    ) -> TuningReport:
        """Learn prompts for one word (CLOVA 3.4); see ``visloop.tools.word_tuning``.

        Args:
            tool: who learns: its settings decide how, and what is kept. All of these tools use what it learned.

        Raises:
            DataError: no instances, an unreadable picture, or a train instance that is a validation instance too.
        """
        started = time.perf_counter()
        train, validation = split_instances(instances)
        if not any(entry.positive for entry in train) or not any(entry.positive for entry in validation):
            raise DataError(
                f"concept {concept!r}: {len(train)} train and {len(validation)} validation instances, and positives are missing in one of "
                "the splits; a prompt needs some to learn from and others to be validated on"
            )
        bank, tuning = self.open_bank(pool, tool=tool), self.find_tuning(tool)
        given = next((entry.group for entry in instances if entry.positive and entry.group), group)
        place = find_group(concept, given, self.vocabulary)
        crops = read_instances(train, root=self.root, propose=self.propose)
        problem = WordProblem(
            bank,
            concept=concept,
            group=place,
            train=crops,
            validation=read_instances(validation, root=self.root, propose=self.propose),
            replay=read_instances(replay, root=self.root, propose=self.propose),
            config=tuning,
            anchors=self.anchors,
        )
        entry = PromptEntry(
            id="",
            tool=OWNER,
            concept=concept,
            backend=self.encoder.name,
            placement=PLACEMENT,
            instance_ids=(),
            train_accuracy=0.0,
            validation_accuracy=0.0,
            base_accuracy=0.0,
            base_accuracy_before=0.0,
            cycle=cycle,
            group=place or given,
        )
        positives = [crop.instance for crop in crops if crop.instance.positive]
        tuned = learn_prompts(problem, positives=positives, entry=entry, config=tuning, seed=seed)
        return TuningReport(
            pool=pool.add_prompts(tuned.kept, most_per_concept=tuning.max_prompts) if tuned.kept else pool,
            kept=tuple(prompt.entry.id for prompt in tuned.kept),
            refused=tuned.refused,
            reason=tuned.reason,
            validation_before=tuned.before.novel,
            validation_after=tuned.after.novel,
            base_before=tuned.before.base,
            base_after=tuned.after.base,
            seconds=time.perf_counter() - started,
        )


def load_engine(config: ToolsConfig, *, root: Path = Path()) -> ClipEngine:
    """Load the CLIP that a configuration names, with its vocabulary.

    Raises:
        ModelError, DataError: the model or its vocabulary cannot be loaded.
    """
    folder = model_folder(config.clip)
    return ClipEngine(load_clip(config.clip), load_vocabulary(folder), config=config, root=root, anchors=load_anchors(folder))
