"""The LLM planner and the hybrid against scripted models: what they are shown, what is read from them, and what is asked again."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.fixtures.scripted_chat import ScriptedChat, broken, cut, stop
from tests.unit.test_demonstrations import make
from tests.unit.test_slot_filling import COUNT, RELATION, ask, fail
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.llm_planner import read_plan, read_program
from visloop.assistant.planner import FailedAttempt, open_planner
from visloop.assistant.retrieval import draw_entries
from visloop.chat.base import ChatReply, ChatRequest
from visloop.config_assistant import PlannerChoice, PlannerConfig, RetrievalChoice
from visloop.errors import ConfigError, ModelError
from visloop.records.assistant import Demonstration, Proposal

PLAN = "Step 1: Locate every star.\nStep 2: Count the boxes of Step1.\nStep 3: Show it."
PROGRAM = "BOX0=LOC(image=IMAGE,object='star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
TASK = ask("How many stars are there?")
Script = Callable[[ChatRequest], str | ChatReply]


def answer(request: ChatRequest) -> str:
    return PLAN if "/plan/" in request.id else PROGRAM


def as_plan(entry: Demonstration) -> Demonstration:
    return make(entry.instruction, kind="plan", plan=entry.plan, program="")


def failures(count: int) -> list[Demonstration]:
    return [make(f"How many bad{index} things are there?", outcome="failure", reason=f"Reason {index}.") for index in range(count)]


POOL = DemonstrationPool((RELATION, COUNT, as_plan(RELATION), as_plan(COUNT)))


def run(
    script: Script = answer,
    *,
    pool: DemonstrationPool = POOL,
    attempt: FailedAttempt | None = None,
    choice: PlannerChoice = PlannerChoice.llm,
    seed: int = 0,
    **changes: object,
) -> tuple[Proposal, ScriptedChat]:
    chat = ScriptedChat(script)
    config = PlannerConfig(choice=choice, temperature=0.7, top_p=0.5, **changes)  # type: ignore[arg-type]
    [proposal] = open_planner(config, chat=chat).propose([TASK], pool=pool, attempts=[attempt], seed=seed)
    return proposal, chat


def test_a_plan_is_asked_for_then_a_program_with_that_plan() -> None:
    proposal, chat = run()
    assert proposal == Proposal(
        task_id=TASK.id,
        plan=("Locate every star.", "Count the boxes of Step1.", "Show it."),
        program=PROGRAM,
        author="llm:scripted",
        demonstrations=(as_plan(RELATION).id, as_plan(COUNT).id, RELATION.id, COUNT.id),
        replies=(PLAN, PROGRAM),
        new_tokens=len(f"{PLAN}\n{PROGRAM}".split()),
    )
    plan, program = (request.messages[0].text for request in chat.requests)
    assert "LOC(" not in plan and "- LOC(image: Image, object: Text) -> Boxes" in program
    assert program.endswith("Step 3: Show it.\n\nProgram:")
    assert program.index(RELATION.program) < program.index(COUNT.program), "the most similar one stands last"
    assert [(item.temperature, item.top_p, item.max_new_tokens) for item in chat.samplings] == [(0.7, 0.5, 256)] * 2
    assert all(not message.images for request in chat.requests for message in request.messages)


def test_without_plans_one_prompt_gives_the_program() -> None:
    proposal, chat = run(use_plan=False)
    assert (proposal.plan, proposal.program, len(chat.requests)) == ((), PROGRAM, 1)
    assert "Step" not in chat.requests[0].messages[0].text


@pytest.mark.parametrize(
    ("count", "changes", "shown"), [(25, {}, 0), (26, {}, 2), (26, {"use_failures": False}, 0), (3, {"failures_from": 2}, 2)]
)
def test_failures_are_shown_once_their_pool_is_large_enough(count: int, changes: dict[str, object], shown: int) -> None:
    pool = POOL.add(failures(count))
    proposal, chat = run(pool=pool, demonstrations={"vqa": 2}, **changes)
    plan, program = (request.messages[0].text for request in chat.requests)
    assert program.count("Reason: Reason") == shown and "Reason: Reason" not in plan, "each prompt has its own pool of failures"
    assert sum(entry in proposal.demonstrations for entry in (item.id for item in failures(count))) == shown


def test_a_reply_is_repaired_with_what_is_wrong_with_it() -> None:
    def script(request: ChatRequest) -> str:
        if "/program/" not in request.id:
            return PLAN
        return PROGRAM if len(request.messages) == 3 else PROGRAM.replace("COUNT(box=BOX0)", "COUNT(box=BOX9)")

    proposal, chat = run(script)
    assert (proposal.status, proposal.program, proposal.error) == ("ok", PROGRAM, None)
    first, second = chat.requests[-2:]
    assert second.messages[0] == first.messages[0] and second.messages[1].role == "assistant"
    assert "line 2" in second.messages[2].text and "BOX9" in second.messages[2].text
    assert first.seed != second.seed and len(proposal.replies) == 3


def test_tokens_are_those_of_all_prompts_and_tries() -> None:
    def script(request: ChatRequest) -> ChatReply:
        text = PLAN if "/plan/" in request.id else PROGRAM if len(request.messages) == 5 else "I would count."
        return ChatReply(text=text, finish="stop", prompt_tokens=100 * len(request.messages), new_tokens=7)

    proposal, chat = run(script, max_tries=3)
    assert len(chat.requests) == 4 and (proposal.status, proposal.prompt_tokens, proposal.new_tokens) == ("ok", 100 + 100 + 300 + 500, 28)
    unreadable, _ = run(script, max_tries=2)
    assert (unreadable.status, unreadable.prompt_tokens, unreadable.new_tokens) == ("unreadable", 500, 21)
    broke, _ = run(lambda request: script(request) if "/plan/" in request.id else broken())
    assert (broke.status, broke.prompt_tokens, broke.new_tokens) == ("failed", 100, 7), "what was asked before the failure was paid for"


def test_a_program_of_slot_filling_costs_what_the_llm_was_asked_in_vain() -> None:
    reply = ChatReply(text="Let me think.", finish="stop", prompt_tokens=50, new_tokens=3)
    sure, chat = run(lambda request: reply, choice=PlannerChoice.hybrid, min_confidence=0.0)
    assert (sure.author, sure.prompt_tokens, chat.requests) == ("slot_filling", 0, [])
    asked, chat = run(lambda request: reply, choice=PlannerChoice.hybrid, min_confidence=1.0, use_plan=False)
    assert asked.author == "slot_filling" and asked.confidence is not None and asked.confidence < 1
    assert (asked.prompt_tokens, asked.new_tokens) == (50 * len(chat.requests), 3 * len(chat.requests)) == (100, 6)
    written, _ = run(choice=PlannerChoice.hybrid, min_confidence=1.0)
    assert written.author == "llm:scripted" and written.new_tokens == len(f"{PLAN}\n{PROGRAM}".split())


@pytest.mark.parametrize("tries", [1, 3])
def test_tries_are_bounded_and_an_unreadable_program_is_a_status(tries: int) -> None:
    proposal, chat = run(lambda request: PLAN if "/plan/" in request.id else "I would count the stars.", max_tries=tries)
    assert (proposal.status, proposal.program) == ("unreadable", "")
    assert len(chat.requests) == 1 + tries and proposal.replies[-1] == "I would count the stars."
    unplanned, chat = run(lambda request: "Let me think.", max_tries=tries)
    assert (unplanned.status, unplanned.plan, len(chat.requests)) == ("unreadable", (), tries)
    with pytest.raises(ConfigError, match="max_tries"):
        run(max_tries=0)


def test_a_program_that_parses_but_breaks_a_rule_is_proposed_for_interrupt_reflection() -> None:
    wrong = PROGRAM.replace("COUNT", "COUNTT")
    proposal, _ = run(lambda request: PLAN if "/plan/" in request.id else wrong)
    assert (proposal.status, proposal.program) == ("ok", wrong)
    assert proposal.error is not None and "COUNTT" in proposal.error


def test_a_backend_error_is_a_failed_proposal_and_hurts_no_other_task() -> None:
    other = ask("How many bars are there?")
    chat = ScriptedChat(lambda request: broken("overloaded") if request.id.startswith(TASK.id) else answer(request))
    first, second = open_planner(PlannerConfig(choice=PlannerChoice.llm), chat=chat).propose([TASK, other], pool=POOL, seed=0)
    assert (first.status, first.error, second.status) == ("failed", "overloaded", "ok")
    assert [len(batch) for batch in chat.batches] == [2, 1]


def test_the_prompt_of_what_is_to_blame_shows_the_failed_attempt() -> None:
    first = Proposal(task_id=TASK.id, plan=("Look.",), program=PROGRAM.replace("star", "bar"), author="llm:scripted")
    plan_error = fail(first)
    plan_error = replace(plan_error, critique=replace(plan_error.critique, culprit="plan", reason="nothing is counted"))
    _, chat = run(attempt=plan_error)
    plan, program = (request.messages[0].text for request in chat.requests)
    assert "Step 1: Look." in plan and "nothing is counted" in plan and "nothing is counted" not in program
    program_error = replace(plan_error, critique=replace(plan_error.critique, culprit="program", reason="bars are counted"))
    proposal, chat = run(attempt=program_error)
    assert proposal.plan == first.plan, "a plan that is not to blame stays"
    [program] = (request.messages[0].text for request in chat.requests)
    assert first.program in program and "bars are counted" in program
    _, chat = run(attempt=plan_error, use_plan=False)
    assert "nothing is counted" in chat.requests[0].messages[0].text, "without plans the program takes the blame"


def test_the_failed_program_is_not_proposed_again() -> None:
    proposal, chat = run(attempt=fail(Proposal(task_id=TASK.id, plan=("Look.",), program=PROGRAM, author="llm:scripted")))
    assert (proposal.status, proposal.program, len(chat.requests)) == ("failed", "", 2)
    assert "tried before" in chat.requests[1].messages[2].text


def test_shards_and_order_do_not_change_the_draws() -> None:
    tasks = [TASK, ask("How many bars are there?")]
    both = ScriptedChat(answer)
    open_planner(PlannerConfig(choice=PlannerChoice.llm), chat=both).propose(tasks, pool=POOL, seed=3)
    _, alone = run(seed=3)
    assert {request.id: request.seed for request in alone.requests}.items() <= {
        request.id: request.seed for request in both.requests
    }.items()
    assert run(seed=4)[1].requests[0].seed != alone.requests[0].seed


def test_demonstrations_may_be_drawn_at_random_in_place_of_the_most_similar() -> None:
    others = [make(f"Is thing {number} here?") for number in range(20)]
    pool = DemonstrationPool((*others, *map(as_plan, others), COUNT, as_plan(COUNT), *failures(30)))
    nearest, _ = run(pool=pool, demonstrations={"vqa": 3})
    drawn = [run(pool=pool, demonstrations={"vqa": 3}, retrieval=RetrievalChoice.random, seed=seed)[0] for seed in (0, 0, 1)]
    assert {COUNT.id, as_plan(COUNT).id} <= set(nearest.demonstrations)
    assert drawn[0] == drawn[1] and drawn[0].demonstrations != drawn[2].demonstrations
    programs = draw_entries(TASK, [*others, COUNT], most=3, seed=1)
    failed = draw_entries(TASK, failures(30), most=3, seed=1)
    assert set(drawn[2].demonstrations[3:]) == {entry.id for entry in (*programs, *failed)}, "plans come first, then programs and failures"


def test_a_backend_that_swallows_requests_is_an_error() -> None:
    class Swallowing(ScriptedChat):
        def reply(self, requests, *, sampling):  # type: ignore[no-untyped-def]
            return super().reply(requests, sampling=sampling)[1:]

    with pytest.raises(ModelError, match="0 replies to 1 requests"):
        open_planner(PlannerConfig(choice=PlannerChoice.llm), chat=Swallowing(answer)).propose([TASK], pool=POOL, seed=0)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (PROGRAM, PROGRAM),
        (f"Here it is:\n```python\n{PROGRAM}\n```\nIt counts.", PROGRAM),
        (f"Program:\n\n{PROGRAM}\n\nInstruction: another\nBOX0=LOC(image=IMAGE,object='x')", PROGRAM),
        ("  BOX0 = LOC(image=IMAGE)\nand then nothing", "BOX0 = LOC(image=IMAGE)\nand then nothing"),
        ("no program", "no program"),
    ],
)
def test_programs_are_cut_out_of_replies(text: str, program: str) -> None:
    assert read_program(text) == program


@pytest.mark.parametrize(
    ("reply", "plan"),
    [
        (stop("Step1, Locate it.\nStep2, Show it.\n\nInstruction: x\nStep1, No."), ("Locate it.", "Show it.")),
        (stop("Sure.\n1. Locate it.\n2) Show it."), ("Locate it.", "Show it.")),
        (stop("**Step 1:** Locate it.\nstep 2: Show it."), ("Locate it.", "Show it.")),
        (cut("Step 1: Locate it.\nStep 2: Sho"), ()),
        (cut("Step 1: Locate it.\n\nStep"), ("Locate it.",)),
        (stop("I cannot."), ()),
    ],
)
def test_plans_are_cut_out_of_replies(reply: ChatReply, plan: tuple[str, ...]) -> None:
    assert read_plan(reply) == plan


def test_the_hybrid_asks_the_llm_only_where_slot_filling_is_unsure_and_says_who_wrote() -> None:
    sure, chat = run(choice=PlannerChoice.hybrid, min_confidence=0.5)
    assert (sure.author, sure.program, chat.requests) == ("slot_filling", PROGRAM, [])
    unsure, chat = run(choice=PlannerChoice.hybrid, min_confidence=1.0, pool=DemonstrationPool((RELATION,)))
    assert (unsure.author, unsure.program, len(chat.requests)) == ("llm:scripted", PROGRAM, 2)
    silent, _ = run(lambda request: broken("down"), choice=PlannerChoice.hybrid, min_confidence=1.0)
    assert (silent.author, silent.status, silent.error) == ("slot_filling", "ok", "llm:scripted: down")
    nothing, _ = run(lambda request: broken("down"), choice=PlannerChoice.hybrid, pool=DemonstrationPool((RELATION,)))
    assert (nothing.author, nothing.status) == ("llm:scripted", "failed")


@pytest.mark.parametrize("choice", [PlannerChoice.llm, PlannerChoice.hybrid])
def test_a_planner_with_an_llm_needs_one(choice: PlannerChoice) -> None:
    with pytest.raises(ConfigError, match="needs a chat model"):
        open_planner(PlannerConfig(choice=choice))
    with pytest.raises(ConfigError, match="candidates"):
        open_planner(PlannerConfig(candidates=0))
    with pytest.raises(ConfigError, match="no number for vqa"):
        open_planner(PlannerConfig(choice=choice, demonstrations={}, min_confidence=1.0), chat=ScriptedChat(answer)).propose(
            [TASK], pool=DemonstrationPool(), seed=0
        )
