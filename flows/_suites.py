"""The suites of the data gates, and how one is run: only this module and those that hold rules import Great Expectations.

A suite is a list of rules over the table that ``_frames`` measures. Rows are looked up by the column ``row``; whether a gate passes
is decided from each rule's own severity, because a checkpoint is unsuccessful for a broken warning too.
"""

import html
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Column
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from flows._assistant_context import MAY_BE_EMPTY
from flows._assistant_suites import ASSISTANT_SUITES
from flows._facts import Frame
from flows._gates import Context, GateContext
from flows._pictures import OK
from flows._rules import limit_rate, name_rule, require_fact, require_known, require_unique
from visloop.records.reasoning import AnswerStatus, AnswerType, ExampleKind, PathStatus, ScoreStatus, Split, Verdict

_EXPECT: Any = gx.expectations
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # it sets INFO for itself, and says nothing new
_EXTERNAL = re.compile(r"<script\b[^>]*\bsrc=[^>]*>\s*</script>|<link\b[^>]*>|<img\b[^>]*\bsrc=\"https?:[^>]*>", re.IGNORECASE)
_STYLE = """<style>body{font:15px/1.5 sans-serif;margin:2em;max-width:110em}table{border-collapse:collapse;margin:.5em 0}
td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}.modal,.navbar,#gx-walkthrough{display:none}</style>"""


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """One rule after the run. ``found`` maps refused rows to what was found there; ``note`` says why a rule could not be checked."""

    rule: str
    description: str
    severity: str
    passed: bool
    found: Mapping[int, str]
    note: str


@dataclass(frozen=True, slots=True)
class SuiteOutcome:
    """All rules of a run, in the order of the suite, and the HTML page about them."""

    rules: tuple[RuleOutcome, ...]
    page: str

    def rows_by_rule(self, *, critical_only: bool) -> dict[str, list[int]]:
        """Refused rows of every broken rule."""
        return {
            rule.rule: list(rule.found) for rule in self.rules if not rule.passed and (rule.severity == "critical" or not critical_only)
        }


def _every_suite(suite: str) -> list[Expectation]:
    not_empty = _EXPECT.ExpectTableRowCountToBeBetween(min_value=1, **name_rule("not_empty", "there are records"))
    return [
        *([] if suite in MAY_BE_EMPTY else [not_empty]),
        require_fact("contract", "contract", "every line is a record with the fields and types of its kind"),
    ]


def _training_rules() -> list[Expectation]:
    """What holds for everything that a model is trained on."""
    split = name_rule("training_split", "the question belongs to the training split")
    return [
        require_fact("sample_known", "sample_known", "the question is a known sample"),
        _EXPECT.ExpectColumnValuesToBeInSet(column="sample_split", value_set=["train"], **split),
        require_fact("pictures_exist", "pictures", "every picture exists and opens"),
        require_fact("pictures_of_sample", "pictures_of_sample", "the pictures are those of the question"),
        require_fact("no_evaluation_picture", "pictures_held_out", "no picture of the evaluation is trained on, by image hash"),
    ]


def _sample_rules(context: GateContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "sample ids are unique"),
        require_known("split_known", "split", Split, "the split is train, validation or test"),
        require_known("answer_type_known", "answer_type", AnswerType, "the answer type is known"),
        require_fact("question_given", "question_text", "the question is not empty"),
        require_fact("answer_fits_type", "answer_form", "the answer is not empty and can be read as its type"),
        require_fact("pictures_open", "pictures", "every picture exists, opens and has the recorded hash"),
        require_fact("group_in_one_split", "group_splits", "a group (scene, sentence) lies in one split only"),
        require_fact("picture_in_one_split", "picture_splits", "a picture occurs in one split only", severity="warning"),
    ]


def _path_rules(context: GateContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "path ids are unique"),
        require_unique("index_unique", ["sample_id", "index", "model"], "a model has one path per sample and index"),
        require_fact("sample_known", "sample_known", "the question is a known sample"),
        require_known("status_known", "status", PathStatus, "the status is known"),
        require_fact("steps_parse", "steps", "a finished path has steps that are not empty and read back as written"),
        require_fact("answer_given", "answer_given", "a finished path has an answer"),
        require_fact("replies_kept", "replies_kept", "the raw replies are kept"),
    ]


def _assessed_rules(context: GateContext) -> list[Expectation]:
    limit = context.max_unjudged_rate
    return [
        require_unique("ids_unique", ["id"], "path ids are unique"),
        require_fact("sample_known", "sample_known", "the question is a known sample"),
        require_known("verdict_known", "verdict", Verdict, "the verdict is known"),
        require_known("score_status_known", "score_status", ScoreStatus, "the score's status is known"),
        require_fact("verdict_has_answer", "verdict_basis", "a correct path has an answer"),
        _EXPECT.ExpectColumnValuesToBeBetween(
            column="score", min_value=1, max_value=100, **name_rule("score_range", "scores lie in 1-100")
        ),
        _EXPECT.ExpectColumnValuesToNotBeNull(
            column="score", row_condition=_is_scored(True), **name_rule("score_given", "a scored path has its score")
        ),
        _EXPECT.ExpectColumnValuesToBeNull(
            column="score", row_condition=_is_scored(False), **name_rule("score_absent", "a path that is not scored has no score")
        ),
        limit_rate(
            "unjudged_verdicts",
            "verdict_reached",
            refused=("unjudged",),
            known=Verdict,
            limit=limit,
            description=f"at most {limit:.1%} of the answers are unjudged",
        ),
        limit_rate(
            "unjudged_scores",
            "score_reached",
            refused=("unjudged",),
            known=ScoreStatus,
            limit=limit,
            description=f"at most {limit:.1%} of the asked scores are unjudged",
        ),
    ]


def _is_scored(scored: bool) -> Any:
    # A record that breaks its contract has no score here whatever its status says: `contract` refuses it.
    whole = Column("contract") == OK
    return (whole & (Column("score_status") == "scored")) if scored else (whole & (Column("score_status") != "scored"))


def _sft_rules(context: GateContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "example ids are unique"),
        require_known("kind_known", "kind", ExampleKind, "the kind of example is known"),
        *_training_rules(),
        require_fact("turns_ordered", "turns", "user and assistant take turns, and the assistant has the last word"),
        require_fact("target_given", "target", "what the model is to write is not empty"),
        require_fact("chain_parses", "chain", "a chain that the model is to write can be read back"),
    ]


def _pair_rules(context: GateContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "pair ids are unique"),
        *_training_rules(),
        require_fact("texts_given", "texts", "prompt, chosen and rejected are not empty"),
        require_fact("chains_differ", "chains_differ", "chosen and rejected differ"),
        require_fact("same_question", "same_question", "both chains answer the pair's question"),
        require_fact("chosen_correct", "chosen_verdict_fits", "the chosen chain is correct, unless the strategy is margin"),
        require_fact("scores_ordered", "scores_ordered", "scores lie in 1-100 and the chosen chain is the better one"),
        require_fact("chosen_parses", "chosen_chain", "the chosen chain can be read back"),
    ]


def _prediction_rules(context: GateContext) -> list[Expectation]:
    held_out = name_rule("held_out", "the sample is not of the training split")
    return [
        require_unique("answered_once", ["system", "sample_id"], "a system answers a sample once"),
        require_known("status_known", "status", AnswerStatus, "the status is known"),
        require_fact("sample_known", "sample_known", "the question is a known sample"),
        _EXPECT.ExpectColumnValuesToBeInSet(column="sample_split", value_set=["validation", "test"], **held_out),
        require_fact("labels_match", "labels", "family and group are the sample's"),
        require_fact("answer_given", "answer_given", "a correct prediction has an answer"),
        require_fact("metrics_finite", "metrics", "metrics are finite"),
        require_fact("same_samples", "coverage", "all systems answered the same samples"),
    ]


SUITES: dict[str, Callable[[Any], list[Expectation]]] = {
    "samples": _sample_rules,
    "paths": _path_rules,
    "assessed": _assessed_rules,
    "sft": _sft_rules,
    "pairs": _pair_rules,
    "predictions": _prediction_rules,
    **ASSISTANT_SUITES,
}


def run_suite(frame: Frame, *, suite: str, context: Context) -> SuiteOutcome:
    """Check ``frame`` against the rules of ``suite`` in a context of its own (safe in threads)."""
    rules = [*_every_suite(suite), *SUITES[suite](context)]
    world = gx.get_context(mode="ephemeral")
    world.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = world.data_sources.add_pandas("records").add_dataframe_asset(suite)
    batch = asset.add_batch_definition_whole_dataframe("all")
    expectations = world.suites.add(gx.ExpectationSuite(name=suite, expectations=rules))
    definition = world.validation_definitions.add(gx.ValidationDefinition(name=suite, data=batch, suite=expectations))
    checkpoint = world.checkpoints.add(
        gx.Checkpoint(
            name=suite,
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
        )
    )
    run = checkpoint.run(batch_parameters={"dataframe": frame.table})
    (validation,) = run.run_results.values()
    outcomes = {outcome.rule: outcome for outcome in map(_read_outcome, validation.results)}
    return SuiteOutcome(tuple(outcomes[_name_rule(rule.meta)] for rule in rules), _render_page(validation, suite))


def _name_rule(meta: Mapping[str, Any] | None) -> str:
    return str((meta or {})["rule"])


def _read_outcome(result: ExpectationValidationResult) -> RuleOutcome:
    config = result.expectation_config
    assert config is not None
    result_value = result.result or {}
    column = config.kwargs.get("column")
    found = {}
    for entry in result_value.get("unexpected_index_list") or []:
        shown = entry[column] if column in entry else ", ".join(str(value) for name, value in entry.items() if name != "row")
        found[int(entry["row"])] = "" if shown is None or (isinstance(shown, float) and math.isnan(shown)) else str(shown)
    note = ""
    if not result.success and not found:
        note = _read_exception(result.exception_info) or f"found {result_value.get('observed_value')}"
    return RuleOutcome(
        rule=_name_rule(config.meta),
        description=config.description or config.type,
        severity=str(getattr(config.severity, "value", config.severity)),
        passed=bool(result.success),
        found=found if not result.success else {},
        note=note,
    )


def _read_exception(information: Mapping[str, Any] | None) -> str:
    """The message of a rule that could not be evaluated: it counts as broken, never as passed."""
    if not information:
        return ""
    entries = [information, *(value for value in information.values() if isinstance(value, Mapping))]
    return next((f"cannot be checked: {entry['exception_message']}" for entry in entries if entry.get("exception_message")), "")


def _render_page(validation: ExpectationSuiteValidationResult, suite: str) -> str:
    """The data docs page of one validation, self-contained: its external scripts, styles and pictures are left out."""
    page: str = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(validation))  # type: ignore[no-untyped-call]
    page = _EXTERNAL.sub("", page)
    return page.replace("</head>", f"<title>Gate {html.escape(suite)}</title>{_STYLE}</head>", 1)
