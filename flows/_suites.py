"""The suites of the data gates, and how one is run: only this module imports Great Expectations.

A suite is a list of rules over the table that ``_frames`` measures. Rows are looked up by the column ``row``; whether a gate passes
is decided from each rule's own severity, because a checkpoint is unsuccessful for a broken warning too.
"""

import html
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import great_expectations as gx
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.row_conditions import Column
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

from flows._facts import Frame
from flows._gates import GateContext
from flows._pictures import OK
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


def _named(rule: str, description: str, *, severity: str = "critical") -> dict[str, Any]:
    return {"meta": {"rule": rule}, "description": description, "severity": severity}


def _fact(rule: str, column: str, description: str, *, severity: str = "critical") -> Expectation:
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=[OK], **_named(rule, description, severity=severity)
    )
    return expectation


def _known(rule: str, column: str, values: Any, description: str) -> Expectation:
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(get_args(values)), **_named(rule, description)
    )
    return expectation


def _unique(rule: str, columns: Sequence[str], description: str) -> Expectation:
    named = _named(rule, description)
    expectation: Expectation = (
        _EXPECT.ExpectColumnValuesToBeUnique(column=columns[0], **named)
        if len(columns) == 1
        else _EXPECT.ExpectCompoundColumnsToBeUnique(column_list=list(columns), ignore_row_if="any_value_is_missing", **named)
    )
    return expectation


def _rate(rule: str, column: str, *, refused: str, known: Any, limit: float, description: str) -> Expectation:
    allowed = [value for value in get_args(known) if value != refused]
    mostly = max(0.0, 1.0 - limit - 1e-9)  # the last term: a rate that equals the limit is let through whatever its binary form
    expectation: Expectation = _EXPECT.ExpectColumnValuesToBeInSet(
        column=column, value_set=allowed, mostly=mostly, **_named(rule, description)
    )
    return expectation


def _every_suite() -> list[Expectation]:
    return [
        _EXPECT.ExpectTableRowCountToBeBetween(min_value=1, **_named("not_empty", "there are records")),
        _fact("contract", "contract", "every line is a record with the fields and types of its kind"),
    ]


def _training_rules() -> list[Expectation]:
    """What holds for everything that a model is trained on."""
    split = _named("training_split", "the question belongs to the training split")
    return [
        _fact("sample_known", "sample_known", "the question is a known sample"),
        _EXPECT.ExpectColumnValuesToBeInSet(column="sample_split", value_set=["train"], **split),
        _fact("pictures_exist", "pictures", "every picture exists and opens"),
        _fact("pictures_of_sample", "pictures_of_sample", "the pictures are those of the question"),
        _fact("no_evaluation_picture", "pictures_held_out", "no picture of the evaluation is trained on, by image hash"),
    ]


def _sample_rules(context: GateContext) -> list[Expectation]:
    return [
        _unique("ids_unique", ["id"], "sample ids are unique"),
        _known("split_known", "split", Split, "the split is train, validation or test"),
        _known("answer_type_known", "answer_type", AnswerType, "the answer type is known"),
        _fact("question_given", "question_text", "the question is not empty"),
        _fact("answer_fits_type", "answer_form", "the answer is not empty and can be read as its type"),
        _fact("pictures_open", "pictures", "every picture exists, opens and has the recorded hash"),
        _fact("group_in_one_split", "group_splits", "a group (scene, sentence) lies in one split only"),
        _fact("picture_in_one_split", "picture_splits", "a picture occurs in one split only", severity="warning"),
    ]


def _path_rules(context: GateContext) -> list[Expectation]:
    return [
        _unique("ids_unique", ["id"], "path ids are unique"),
        _unique("index_unique", ["sample_id", "index", "model"], "a model has one path per sample and index"),
        _fact("sample_known", "sample_known", "the question is a known sample"),
        _known("status_known", "status", PathStatus, "the status is known"),
        _fact("steps_parse", "steps", "a finished path has steps that are not empty and read back as written"),
        _fact("answer_given", "answer_given", "a finished path has an answer"),
        _fact("replies_kept", "replies_kept", "the raw replies are kept"),
    ]


def _assessed_rules(context: GateContext) -> list[Expectation]:
    limit = context.max_unjudged_rate
    return [
        _unique("ids_unique", ["id"], "path ids are unique"),
        _fact("sample_known", "sample_known", "the question is a known sample"),
        _known("verdict_known", "verdict", Verdict, "the verdict is known"),
        _known("score_status_known", "score_status", ScoreStatus, "the score's status is known"),
        _fact("verdict_has_answer", "verdict_basis", "a correct path has an answer"),
        _EXPECT.ExpectColumnValuesToBeBetween(column="score", min_value=1, max_value=100, **_named("score_range", "scores lie in 1-100")),
        _EXPECT.ExpectColumnValuesToNotBeNull(
            column="score", row_condition=_is_scored(True), **_named("score_given", "a scored path has its score")
        ),
        _EXPECT.ExpectColumnValuesToBeNull(
            column="score", row_condition=_is_scored(False), **_named("score_absent", "a path that is not scored has no score")
        ),
        _rate(
            "unjudged_verdicts",
            "verdict_reached",
            refused="unjudged",
            known=Verdict,
            limit=limit,
            description=f"at most {limit:.1%} of the answers are unjudged",
        ),
        _rate(
            "unjudged_scores",
            "score_reached",
            refused="unjudged",
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
        _unique("ids_unique", ["id"], "example ids are unique"),
        _known("kind_known", "kind", ExampleKind, "the kind of example is known"),
        *_training_rules(),
        _fact("turns_ordered", "turns", "user and assistant take turns, and the assistant has the last word"),
        _fact("target_given", "target", "what the model is to write is not empty"),
        _fact("chain_parses", "chain", "a chain that the model is to write can be read back"),
    ]


def _pair_rules(context: GateContext) -> list[Expectation]:
    return [
        _unique("ids_unique", ["id"], "pair ids are unique"),
        *_training_rules(),
        _fact("texts_given", "texts", "prompt, chosen and rejected are not empty"),
        _fact("chains_differ", "chains_differ", "chosen and rejected differ"),
        _fact("same_question", "same_question", "both chains answer the pair's question"),
        _fact("chosen_correct", "chosen_verdict_fits", "the chosen chain is correct, unless the strategy is margin"),
        _fact("scores_ordered", "scores_ordered", "scores lie in 1-100 and the chosen chain is the better one"),
        _fact("chosen_parses", "chosen_chain", "the chosen chain can be read back"),
    ]


def _prediction_rules(context: GateContext) -> list[Expectation]:
    held_out = _named("held_out", "the sample is not of the training split")
    return [
        _unique("answered_once", ["system", "sample_id"], "a system answers a sample once"),
        _known("status_known", "status", AnswerStatus, "the status is known"),
        _fact("sample_known", "sample_known", "the question is a known sample"),
        _EXPECT.ExpectColumnValuesToBeInSet(column="sample_split", value_set=["validation", "test"], **held_out),
        _fact("labels_match", "labels", "family and group are the sample's"),
        _fact("answer_given", "answer_given", "a correct prediction has an answer"),
        _fact("metrics_finite", "metrics", "metrics are finite"),
        _fact("same_samples", "coverage", "all systems answered the same samples"),
    ]


SUITES: dict[str, Callable[[GateContext], list[Expectation]]] = {
    "samples": _sample_rules,
    "paths": _path_rules,
    "assessed": _assessed_rules,
    "sft": _sft_rules,
    "pairs": _pair_rules,
    "predictions": _prediction_rules,
}


def run_suite(frame: Frame, *, suite: str, context: GateContext) -> SuiteOutcome:
    """Check ``frame`` against the rules of ``suite`` in a context of its own (safe in threads)."""
    rules = [*_every_suite(), *SUITES[suite](context)]
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
