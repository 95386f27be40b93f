"""Make the judge: the base goes on learning to score paths, its own sampled ones among them, with the exact verifier's scores."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visloop.embedded.agreement import Entry, measure_agreement, read_entries
from visloop.embedded.build import deepen_model
from visloop.embedded.card import CardFacts, Table, format_table, write_card
from visloop.embedded.checkpoints import load_model, save_shipped
from visloop.embedded.dialogues import DialogueEncoder
from visloop.embedded.judge_lessons import (
    MOST_PATHS,
    JudgedQuestion,
    ScoredPath,
    draw_comparison,
    draw_paths,
    make_judging,
    render_scoring,
    score_path,
)
from visloop.embedded.language import LineProbe, train_language
from visloop.embedded.pictures import Gallery, draw_scenes, encode_pictures, render_pixels
from visloop.embedded.recipe import JudgeRecipe, Recipe, mix_sources, plan_lessons, split_pools
from visloop.embedded.replies import generate_replies
from visloop.embedded.schedule import Report
from visloop.errors import ReplyError, TrainingError
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.records.chains import parse_chain
from visloop.scenes.questions import draw_questions
from visloop.scenes.world import Scene, WorldSpec

_HEADING = "Agreement with the exact verifier on held-out scenes"
PATHS_PER_CALL = (1, 2, MOST_PATHS)
CHAIN_TOKENS, REPLY_TOKENS = 110, 10 * MOST_PATHS + 8


class JudgeRun:
    """Trains and measures one judge from a base's folder.

    Args:
        base: folder of the base, read only.
        folder: receives the shipped judge.
    """

    def __init__(
        self,
        base: Path,
        folder: Path,
        *,
        recipe: Recipe,
        plan: JudgeRecipe,
        spec: WorldSpec,
        prompts: PromptSet,
        seed: int,
        device: str,
        report: Report,
    ) -> None:
        self.folder, self.recipe, self.plan, self.spec, self.prompts, self.seed, self.report = (
            folder,
            recipe,
            plan,
            spec,
            prompts,
            seed,
            report,
        )
        self.device = device
        self.model, self.processor = load_model(base, device=device)
        self.encoder = DialogueEncoder(self.processor, patches=self.model.config.image_seq_length)
        self.started = time.process_time()

    def _decode(self, ids: list[int]) -> str:
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _reply(
        self,
        model: LlavaForConditionalGeneration,
        texts: Sequence[str],
        rows: Sequence[tuple[int, ...]],
        *,
        pixels: Tensor,
        new_tokens: int,
        sampled: bool = False,
        seed: int = 0,
    ) -> list[str]:
        return generate_replies(
            model,
            [self.encoder.encode_prompt([text], len(row)) for text, row in zip(texts, rows, strict=True)],
            rows,
            pixels=pixels,
            encoder=self.encoder,
            decode=self._decode,
            max_new_tokens=new_tokens,
            sampled=sampled,
            seed=seed,
        )

    def sample_questions(
        self,
        model: LlavaForConditionalGeneration,
        scenes: Sequence[Scene],
        *,
        pixels: Tensor,
        rows: Sequence[tuple[int, ...]],
        paths: int,
        seed: int,
    ) -> list[JudgedQuestion]:
        """One question per scene with ``paths`` chains sampled at temperature 1; unreadable and repeated ones are left out."""
        drawn = [draw_questions(scene, seed=seed_for(seed, index), spec=self.spec, count=1) for index, scene in enumerate(scenes)]
        asked = [(index, questions[0]) for index, questions in enumerate(drawn) if questions for _ in range(paths)]
        replies = self._reply(
            model,
            [self.prompts.render("reason", question=question.question) for _, question in asked],
            [rows[index] for index, _ in asked],
            pixels=pixels,
            new_tokens=CHAIN_TOKENS,
            sampled=True,
            seed=seed % 2**32,
        )
        found: dict[int, list[ScoredPath]] = {}
        for (index, question), reply in zip(asked, replies, strict=True):
            try:
                chain = parse_chain(reply)
            except ReplyError:
                continue
            path = score_path(scenes[index], question, chain.steps, chain.answer, spec=self.spec)
            if path.answer is not None and path not in found.setdefault(index, []):
                found[index].append(path)
        return [JudgedQuestion(index, drawn[index][0], tuple(chains)) for index, chains in found.items() if chains]

    def run(self) -> None:
        """Sample from the base, then train on scorings, comparisons and a share of the base's own lessons."""
        recipe, plan = self.recipe, self.plan
        scenes = draw_scenes(recipe.scenes, seed=seed_for(self.seed, "judge"), spec=self.spec)
        scenes += draw_scenes(recipe.statements // 2, seed=seed_for(self.seed, "judge"), spec=self.spec, boxes=3)
        pixels, rows = render_pixels(self.processor, scenes, spec=self.spec)
        gallery = Gallery(tuple(scenes), encode_pictures(self.model, pixels), tuple(rows))
        order = random.Random(self.seed).sample(range(len(scenes)), plan.sampled_questions)
        chosen = [scenes[index] for index in order]
        sampled = self.sample_questions(
            self.model, chosen, pixels=pixels, rows=[rows[index] for index in order], paths=plan.sampled_paths, seed=self.seed
        )
        pool = [JudgedQuestion(order[judged.scene], judged.question, judged.paths) for judged in sampled]
        if not pool:
            raise TrainingError(
                f"judge: none of the {plan.sampled_questions} questions got a readable chain from the base; train the base first"
            )
        self.report(f"judge: {sum(len(judged.paths) for judged in pool)} different chains sampled for {len(pool)} questions")
        depth, width = self.model.config.text_config.num_hidden_layers, self.model.config.text_config.hidden_size
        probe = LineProbe(width, layer=depth, seed=self.seed).to(self.device)
        self.model = deepen_model(self.model, layers=plan.layers, seed=self.seed)
        lessons = plan_lessons(gallery, pools=split_pools(gallery), recipe=recipe, spec=self.spec, prompts=self.prompts)
        for stage, mix in ((plan.checking, plan.check), (plan.judging, plan.judge)):
            judging = make_judging(gallery, scenes=range(len(scenes)), pool=pool, spec=self.spec, mix=mix, prompts=self.prompts)
            train_language(
                self.model,
                mix_sources(judging, lessons, mix.rehearsed),
                stage=stage,
                gallery=gallery,
                encoder=self.encoder,
                seed=seed_for(self.seed, stage.name),
                report=self.report,
                probe=probe,
            )

    def ship(self, *, base: Path, examined_seed: int) -> Table:
        """Write the fp16 weights, load them again, measure what was loaded and write the card."""
        minutes = (time.process_time() - self.started) / 60
        change = save_shipped(self.model, self.processor, self.folder)
        judge, processor = load_model(self.folder, device=self.device)
        table = self.examine(judge, processor, base=base, seed=examined_seed)
        self.report(format_table(table, corner="judge"))
        write_card(self.folder, facts=self._describe(judge, change=change, minutes=minutes), tables={_HEADING: table})
        return table

    def _score(
        self,
        judge: LlavaForConditionalGeneration,
        questions: Sequence[JudgedQuestion],
        *,
        pixels: Tensor,
        rows: Sequence[tuple[int, ...]],
        together: int,
    ) -> list[list[Entry | None]]:
        """The judge's entry (or None) for every path of every question, at most ``together`` paths in one call."""
        calls = [
            (number, judged, judged.paths[start : start + together])
            for number, judged in enumerate(questions)
            for start in range(0, len(judged.paths), together)
        ]
        replies = self._reply(
            judge,
            [render_scoring(judged.question, paths, prompts=self.prompts) for _, judged, paths in calls],
            [rows[judged.scene] for _, judged, _ in calls],
            pixels=pixels,
            new_tokens=REPLY_TOKENS,
        )
        entries: list[list[Entry | None]] = [[] for _ in questions]
        for (number, _, paths), reply in zip(calls, replies, strict=True):
            found = read_entries(reply)
            entries[number] += [found.get(place) for place in range(1, len(paths) + 1)]
        return entries

    def examine(
        self, judge: LlavaForConditionalGeneration, processor: LlavaProcessor, *, base: Path, seed: int
    ) -> dict[str, dict[str, float]]:
        """Agreement with the verifier on held-out scenes: on chains sampled from the base and on injected faults."""
        recipe = self.recipe
        scenes = draw_scenes(recipe.examined, seed=seed, spec=self.spec)
        scenes += draw_scenes(recipe.examined_statements, seed=seed, spec=self.spec, boxes=3)
        pixels, rows = render_pixels(processor, scenes, spec=self.spec)
        sampler, _ = load_model(base, device=self.device)
        sampled = self.sample_questions(sampler, scenes, pixels=pixels, rows=rows, paths=6, seed=seed)
        right_only = [
            JudgedQuestion(judged.scene, judged.question, tuple(path for path in judged.paths if path.answer == judged.question.answer))
            for judged in sampled
        ]
        rng = random.Random(seed)
        injected = []
        for judged in sampled:
            paths = draw_paths(rng, scenes[judged.scene], judged.question, spec=self.spec, count=4, exact=0.5)
            rng.shuffle(paths)
            injected.append(JudgedQuestion(judged.scene, judged.question, tuple(paths)))
        table = {}
        for name, questions in (("sampled, answer right", right_only), ("sampled, all", sampled), ("injected faults", injected)):
            kept = [judged for judged in questions if judged.paths]
            for together in PATHS_PER_CALL:
                entries = self._score(judge, kept, pixels=pixels, rows=rows, together=together)
                table[f"{name}, {together} per call"] = measure_agreement(kept, entries)
        turns = [draw_comparison(rng, judged.question, spec=self.spec, prompts=self.prompts) for judged in sampled]
        verdicts = self._reply(judge, [text for text, _ in turns], [()] * len(turns), pixels=pixels, new_tokens=4)
        same = [reply == verdict for reply, (_, verdict) in zip(verdicts, turns, strict=True)]
        table["same answer?"] = {"questions": len(same), "accuracy": sum(same) / len(same)}
        return table

    def _describe(self, judge: LlavaForConditionalGeneration, *, change: float, minutes: float) -> CardFacts:
        plan, mix = self.plan, self.plan.judge
        return CardFacts(
            title="visloop embedded judge",
            purpose=(
                "The embedded base, trained on to assess reasoning paths: `score ...` with a question, its true answer and 1 to 8 chains "
                "gives one JSON entry per chain (score 1-100, first wrong step or 0); `same ...` says whether two answers mean the same. "
                "It sees the picture, never the scene behind it."
            ),
            recipe=(
                f"starts from the weights of `embedded/base`, with {plan.layers} more language layers on top",
                "while it is trained, a probe below the new layers learns to tell at the end of each line whether it is right",
                f"{plan.sampled_questions:,} questions with {plan.sampled_paths} chains each, sampled from the base at T=1, "
                "scored by the exact verifier",
                *(stage.describe() for stage in (plan.checking, plan.judging)),
                f"checking: {plan.check.checked:.0%} of its conversations tell chains line by line and ask of each line whether it is "
                f"right; judging: {mix.checked:.0%} of them",
                f"{mix.rehearsed:.0%} of the conversations are the base's own lessons, {mix.compared:.0%} compare two answers",
                f"{mix.sampled:.0%} of the chains shown are sampled ones, the rest exact or with one injected fault",
                "scores are multiples of five",
                f"rounding to fp16 changed no weight by more than {change:.2%}",
                "rebuild: `python -m visloop.embedded.train --out DIR`",
            ),
            seed=self.seed,
            parameters=sum(parameter.numel() for parameter in judge.parameters()),
            bytes_on_disk=(self.folder / "model.safetensors").stat().st_size,
            minutes=minutes,
            device=self.device,
            limits=(
                "show it at most two paths per call (`assess.max_paths_per_call`): with more it mixes them up",
                "rank: mean Spearman correlation within questions; one score for all paths of a question counts as 0",
                "knows only the default world and chains in the form of the compact prompts",
                "its sampled chains come from the shipped base; chains of a stronger reasoner have other and fewer errors",
            ),
        )
