"""Run the base's recipe stage by stage, measure the shipped file and write its card."""

import time
from dataclasses import asdict, replace
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visloop.embedded.build import Sizes, build_model, build_processor
from visloop.embedded.card import CardFacts, Table, format_table, write_card
from visloop.embedded.checkpoints import StageStore, load_model, save_shipped
from visloop.embedded.dialogues import DialogueEncoder
from visloop.embedded.language import DrawDialogue, Stage, train_language
from visloop.embedded.measure import Examination, summarize_outcomes
from visloop.embedded.perception import GroundingMix
from visloop.embedded.pictures import build_gallery, draw_scenes, render_pixels
from visloop.embedded.recipe import Pools, Recipe, plan_captions, plan_grounding, plan_lessons, split_pools
from visloop.embedded.schedule import Report
from visloop.embedded.tokenizer import list_vocabulary
from visloop.embedded.tower import train_tower
from visloop.errors import TrainingError
from visloop.ids import hash_json, seed_for
from visloop.prompts.render import PromptSet
from visloop.scenes.world import WorldSpec

_HEADING = "Measured on held-out scenes (answers per family; parsed: readable replies; score: mean exact path score, 1-100)"
MODES = ("direct", "chain greedy", "chain sampled", "stepwise greedy", "stepwise sampled")


def examine_base(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, *, recipe: Recipe, spec: WorldSpec, prompts: PromptSet, seed: int
) -> dict[str, dict[str, float]]:
    """Accuracy per family in every mode on held-out scenes; ``parsed`` and mean path ``score`` (1-100) beside it."""
    scenes = draw_scenes(recipe.examined, seed=seed, spec=spec) + draw_scenes(recipe.examined_statements, seed=seed, spec=spec, boxes=3)
    exam = Examination(model, processor, scenes, spec=spec, prompts=prompts, seed=seed)
    outcomes = {
        "direct": exam.measure_direct(),
        "chain greedy": exam.measure_chains(sampled=False),
        "chain sampled": exam.measure_chains(sampled=True),
        "stepwise greedy": exam.measure_stepwise(sampled=False),
        "stepwise sampled": exam.measure_stepwise(sampled=True),
    }
    table = {"questions": exam.count_questions(), "majority": exam.majority()}
    table |= {mode: summarize_outcomes(outcomes[mode]) for mode in MODES}
    del table["direct"]["score"]  # a direct answer has no path
    columns = [*sorted(exam.majority().keys() - {"all"}), "all", "parsed", "score"]
    return {mode: {column: row[column] for column in columns if column in row} for mode, row in table.items()}


class BaseRun:
    """One run of the recipe. Every stage draws its data from its own seed, so a continued run equals an uninterrupted one.

    Args:
        folder: receives the shipped model; ``stages`` beside it receives the checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stages: Path,
        recipe: Recipe,
        sizes: Sizes,
        spec: WorldSpec,
        prompts: PromptSet,
        seed: int,
        device: str,
        report: Report,
    ) -> None:
        self.folder, self.recipe, self.sizes, self.spec, self.prompts = folder, recipe, sizes, spec, prompts
        self.seed, self.device, self.report = seed, device, report
        vocabulary = list_vocabulary(prompts, spec=spec)
        self.processor = build_processor(vocabulary, sizes=sizes)
        self.model = build_model(self.processor, sizes=sizes, seed=seed).to(device)
        self.encoder = DialogueEncoder(self.processor, patches=sizes.patches)
        key = hash_json([asdict(recipe), asdict(sizes), asdict(spec), vocabulary, prompts.hash, seed])
        self.store = StageStore(stages, key=key)
        self.figures: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        """All stages, those that are finished already left out."""
        self.run_tower()
        self.run_language()

    def _continue_from(self, stage: str) -> bool:
        """Take a finished stage's weights and figures; False if it is still to be run."""
        figures = self.store.load(stage, self.model)
        if figures is not None:
            self.figures[stage] = figures
        return figures is not None

    def _keep(self, stage: str, figures: dict[str, float], *, started: float) -> None:
        figures = figures | {"cpu_seconds": time.process_time() - started}
        self.figures[stage] = figures
        self.store.save(stage, self.model, self.processor, figures)
        self.report(f"{stage}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    def run_tower(self) -> None:
        """Stage 0."""
        if self._continue_from("tower"):
            return
        started = time.process_time()
        stage, recipe = self.recipe.tower, self.recipe
        scenes = draw_scenes(recipe.scenes, seed=seed_for(self.seed, "tower"), spec=self.spec)
        scenes = draw_scenes(recipe.statements // 2, seed=seed_for(self.seed, "tower"), spec=self.spec, boxes=3) + scenes
        pixels, _ = render_pixels(self.processor, scenes, spec=self.spec)
        figures = train_tower(
            self.model,
            pixels,
            [box for scene in scenes for box in scene.boxes],
            spec=self.spec,
            steps=stage.steps,
            learning_rate=stage.learning_rate,
            batch_size=stage.batch_size,
            held_out=stage.held_out,
            seed=self.seed,
            report=self.report,
        )
        _accept("tower", min(figures.values()), stage.accepted)
        self._keep("tower", figures, started=started)

    def run_language(self) -> None:
        """Captions, grounding, lessons: one gallery, the tower frozen."""
        recipe, spec, prompts = self.recipe, self.spec, self.prompts
        scenes = draw_scenes(recipe.scenes, seed=seed_for(self.seed, "pool"), spec=spec)
        scenes += draw_scenes(recipe.statements, seed=seed_for(self.seed, "pool"), spec=spec, boxes=3)
        gallery = build_gallery(self.model, self.processor, scenes, spec=spec)
        pools: Pools = split_pools(gallery)

        def run(stage: Stage, draw: DrawDialogue, accepted: float) -> None:
            if self._continue_from(stage.name):
                return
            started = time.process_time()
            seed = seed_for(self.seed, stage.name)
            loss = train_language(self.model, draw, stage=stage, gallery=gallery, encoder=self.encoder, seed=seed, report=self.report)
            figures = {"loss": loss, **self._measure_stage(stage.name)}
            _accept(stage.name, figures.get("exact", 1.0), accepted)
            self._keep(stage.name, figures, started=started)

        run(recipe.captions, plan_captions(gallery, pools=pools, prompts=prompts), 0.0)
        for stage, spatial, accepted in (
            (recipe.matching, False, 0.0),
            (recipe.grounding, True, recipe.grounding_accepted),
        ):
            draw = plan_grounding(gallery, pools=pools, recipe=recipe, spec=spec, prompts=prompts, spatial=spatial)
            run(stage, draw, accepted)
        boxed = replace(recipe, boxed=recipe.statements_boxed)
        for stage, planned in ((recipe.lessons, recipe), (recipe.statements_stage, boxed)):
            run(stage, plan_lessons(gallery, pools=pools, recipe=planned, spec=spec, prompts=prompts), 0.0)

    def _measure_stage(self, name: str) -> dict[str, float]:
        """Exactness of single find turns on 300 held-out pictures, for the stages that teach it."""
        if name == self.recipe.captions.name:
            return {}
        scenes = draw_scenes(300, seed=seed_for(self.seed, "validation"), spec=self.spec)
        exam = Examination(self.model, self.processor, scenes, spec=self.spec, prompts=self.prompts, seed=self.seed)
        return {"exact": exam.measure_grounding(mix=GroundingMix())}

    def ship(self, *, examined_seed: int) -> Table:
        """Write the fp16 weights, load them again, measure what was loaded and write the card."""
        minutes = sum(figures["cpu_seconds"] for figures in self.figures.values()) / 60
        change = save_shipped(self.model, self.processor, self.folder)
        model, processor = load_model(self.folder, device=self.device)
        table = examine_base(model, processor, recipe=self.recipe, spec=self.spec, prompts=self.prompts, seed=examined_seed)
        self.report(format_table(table, corner="base"))
        _accept("base (chain greedy)", table["chain greedy"]["all"], self.recipe.accepted)
        write_card(self.folder, facts=self._describe(model, change=change, minutes=minutes), tables={_HEADING: table})
        return table

    def _describe(self, model: LlavaForConditionalGeneration, *, change: float, minutes: float) -> CardFacts:
        recipe = self.recipe
        return CardFacts(
            title="visloop embedded base",
            purpose=(
                "A tiny LLaVA (CLIP tower, Llama language model) for the drawn world of `visloop.scenes`: it describes pictures, finds "
                "objects, answers at once (`answer ...`), reasons in one reply (`reason ...`) or one JSON step per turn (`step ...`). "
                "It is the starting point of the embedded loop, and no use outside that world."
            ),
            recipe=(
                f"vision tower {self.sizes.tower_width} x {self.sizes.tower_layers}",
                f"language model {self.sizes.width} x {self.sizes.layers}, {self.sizes.heads} heads, {len(self.processor.tokenizer)} words",
                f"pool of {recipe.scenes:,} pictures and {recipe.statements:,} scenes of three boxes; every batch has new conversations",
                f"tower: {recipe.tower.steps} steps of {recipe.tower.batch_size}, then frozen",
                *(stage.describe() for stage in recipe.list_stages()),
                f"{recipe.mix.damage:.0%} of the chains it learned from hold one injected fault: sampled chains stay noisy while greedy "
                "ones are good, which leaves SFT on verified paths and DPO something to win",
                f"single find turns exactly right on 300 other pictures: {self.figures[recipe.list_stages()[-1].name]['exact']:.3f}",
                f"rounding to fp16 changed no weight by more than {change:.2%}",
                "rebuild: `python -m visloop.embedded.train --out DIR`",
            ),
            seed=self.seed,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            bytes_on_disk=(self.folder / "model.safetensors").stat().st_size,
            minutes=minutes,
            device=self.device,
            limits=(
                "knows only the words of the default world; any other word is `<unk>`",
                "the held-out scenes share the training distribution (same shapes, colours, grid), with other objects and noise",
                "one seed was trained; the spread over seeds was not measured",
            ),
        )


def _accept(stage: str, reached: float, wanted: float) -> None:
    if reached < wanted:
        raise TrainingError(f"stage {stage}: reached {reached:.3f}, accepted from {wanted:.3f}; train it longer or with another seed")
