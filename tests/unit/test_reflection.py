"""Critiques written by a chat model: reading replies, placing the fault in the syntax tree, retries, the walk from step to step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_assistant import World, make_seed_pools
from tests.fixtures.scripted_chat import ScriptedChat, broken, cut
from visloop.assistant.cases import Case, match_answer
from visloop.assistant.critique_replies import read_critique, read_culprit, read_inferred_answer, read_names, read_step_check
from visloop.assistant.data_flow import find_concept_step
from visloop.assistant.grammar import parse_program
from visloop.assistant.inference import ChatInference, ChatNegatives
from visloop.assistant.reflection import ChatCritic
from visloop.assistant.runs import make_case, run_proposals
from visloop.chat.base import ChatReply, ChatRequest
from visloop.config import Sampling
from visloop.errors import ConfigError, ModelError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Critique, Proposal
from visloop.tools.base import ToolSignature
from visloop.tools.signatures import find_signature

PROMPTS = PromptSet("full")
SAMPLING = Sampling()
TWO_QUESTIONS = (
    "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nBOX0=LOC(image=IMAGE,object='teal')\n"
    "ANSWER1=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER1)"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"culprit": "tool", "step": 2, "reason": "LOC  missed\\n it"}', ("tool", 2, "LOC missed it")),
        ('Sure.\n```json\n{"culprit": "program", "step": "Step 3", "reason": ""}\n```', ("program", 3, "")),
        ('{"culprit": "plan", "step": null, "reason": "r"}', ("plan", None, "r")),
        ("Error Location: functions called by programs\nReason: In the Step2, 'LOC' failed (see Step 9).", ("tool", 2, None)),
        ("error location : Subquestions.\nReason: they ask for the wrong thing", ("plan", None, None)),
        ("Error Location: program\nReason: Step4 uses xor", ("program", 4, None)),
        ('{"culprit": "tool", "step": 5, "reason": "out of range"}', None),
        ('{"culprit": "tool", "step": 0, "reason": ""}', None),
        ('{"culprit": "tool", "step": true, "reason": ""}', None),
        ('{"culprit": "tool", "step": "the second", "reason": ""}', None),
        ('{"culprit": "the LOC function", "step": 2}', None),
        ('{"culprit": "plan", "step": 1} or rather {"culprit": "tool", "step": 2}', None),
        ("Error Location: the program or the function\nReason: Step1", None),
        ("Error Location: program\nError Location: functions\nReason: Step1", None),
        ("Error Location: functions\nReason: Step77 is wrong", None),
        ("The function VQA in Step2 is wrong.", None),
        ("", None),
    ],
)
def test_replies_are_read_by_their_form_never_by_substrings(text: str, expected: tuple[str, int | None, str | None] | None) -> None:
    found = read_critique(text, steps=4)
    if expected is None:
        assert found is None
    else:
        assert found is not None and (found.culprit, found.step) == expected[:2]
        assert expected[2] is None or found.reason == expected[2]


def test_a_cut_reply_is_read_only_if_its_json_is_whole() -> None:
    text = "Error Location: functions\nReason: Step1 is wr"
    assert read_critique(text, steps=4) is not None and read_critique(text, steps=4, cut=True) is None
    assert read_critique('{"culprit": "tool", "step": 1, "reason": "x"} and', steps=4, cut=True) is not None
    assert read_critique('{"culprit": "tool", "step": 1, "rea', steps=4, cut=True) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"correct": true}', "nothing"),
        ("Yes.", "nothing"),
        ('{"correct": false, "culprit": "program", "reason": "r", "step": 9}', "program"),
        ("no. Error Location: functions. Reason: it answered red", "tool"),
        ("yes, but look at the next step", None),
        ("no.", None),
        ('{"correct": false}', None),
        ('{"correct": false, "culprit": "nothing"}', None),
        ('{"correct": "false", "culprit": "tool"}', None),
        ('{"correct": true} {"correct": false, "culprit": "tool"}', None),
    ],
)
def test_checks_of_one_step(text: str, expected: str | None) -> None:
    found = read_step_check(text, step=2)
    assert (found.culprit if found else None) == expected
    if found and expected != "nothing":
        assert found.step == 2


@given(st.text(max_size=200), st.integers(0, 6))
def test_any_text_is_read_or_refused_within_range(text: str, steps: int) -> None:
    for found in (read_critique(text, steps=steps), read_critique(f'{{"culprit": {json.dumps(text)}, "step": {steps}}}', steps=steps)):
        assert found is None or found.step is None or 1 <= found.step <= steps
    assert read_culprit("programmer") is None
    read_step_check(text, step=1), read_inferred_answer(text), read_names(text, most=3)


def test_inferred_answers_and_names() -> None:
    assert read_inferred_answer('{"answer": "teal"}') == "teal"
    assert read_inferred_answer("Correct answer of the wrong step: 'white'.") == "white"
    assert read_inferred_answer("Because the fence is white, I think the answer has to be white.") is None
    assert read_inferred_answer("white") == "white" and read_inferred_answer("white", cut=True) is None
    assert read_names('Here: ["Labrador", "irish  setter", "labrador", 3]', most=5) == ("labrador", "irish setter")
    assert read_names("poodle, pug", most=1) == ("poodle",)
    assert read_names("I would take these.\nposters", most=3) == () and read_names('["a", "b"', most=3) == ()


def test_concepts_come_from_the_syntax_tree() -> None:
    program = parse_program(
        "OBJ0=SEG(image=IMAGE)\nOBJ1=SELECT(image=IMAGE,object=OBJ0,query='old sofa',category=None)\n"
        "IMAGE0=REPLACE(image=IMAGE,object=OBJ1,prompt='leather sofa')\nFINAL_RESULT=RESULT(var=IMAGE0)"
    )
    steps = [find_concept_step(program, step, find_signature=find_signature) for step in (1, 2, 3, 4)]
    assert steps == [2, 2, 3, None], "SEG has to know what the SELECT behind it asks for"
    lonely = parse_program("OBJ0=SEG(image=IMAGE)\nIMAGE0=BGBLUR(image=IMAGE,object=OBJ0)\nR=RESULT(var=IMAGE0)")
    assert find_concept_step(lonely, 1, find_signature=find_signature) is None
    painted = parse_program("OBJ0=SEG(image=IMAGE)\nIMAGE0=REPLACE(image=IMAGE,object=OBJ0,prompt='star')\nR=RESULT(var=IMAGE0)")
    assert find_concept_step(painted, 1, find_signature=find_signature) is None, "a star is painted, none has to be found"


@pytest.mark.parametrize(
    ("value", "answer", "right"),
    [
        (True, "yes", True),
        (True, "false", False),
        (3, "three", True),
        (3, "13", False),
        ("Yes", "true", True),
        ("a red", "red", True),
        ("no idea", "no", False),
        ("", "", False),
        ((), "0", False),
        (None, "x", False),
        (1, "yes", False),
    ],
)
def test_answers_match_by_value_and_type(value: object, answer: str, right: bool) -> None:
    assert match_answer(value, answer) is right  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fail(world: World, program: str, *cells: str, **changes: object) -> Case:
    """The case of a program that gave a wrong result."""
    task = world.add("How many teal cells are there?", *cells)
    parts = world.parts(None)
    proposal = Proposal(task_id=task.id, plan=("Ask for the color.", "Locate teal.", "Count.", "Show."), program=program, author="test")
    [run] = run_proposals([task], [proposal], pools=make_seed_pools(), parts=parts, cycle=0)
    return make_case(run, parts=parts, **changes)  # type: ignore[arg-type]


def ask(chat: ScriptedChat, cases: list[Case], world: World, grain: str = "global", tries: int = 2) -> list[Critique]:
    critic = ChatCritic(chat, prompts=PROMPTS, sampling=SAMPLING, max_tries=tries)
    return critic.criticize(cases, grain=grain, tools=world.tools, seed=1)  # type: ignore[arg-type]


def answer(*texts: str | ChatReply) -> ScriptedChat:
    replies = list(texts)
    return ScriptedChat(lambda request: replies.pop(0))


def test_global_critique_sees_everything_and_blames_by_the_tree(world: World) -> None:
    case = fail(world, TWO_QUESTIONS, "teal", "teal", "red")
    chat = answer('{"culprit": "tool", "step": 2, "reason": "VQA did not see it"}')
    [critique] = ask(chat, [case], world)
    assert (critique.culprit, critique.step, critique.tool, critique.concept) == ("tool", 2, "LOC", "teal"), "not VQA, as the reason says"
    assert (critique.status, critique.grain, critique.trace_id, critique.author) == ("ok", "global", case.trace.id, "llm:scripted")
    [request] = chat.requests
    text = request.messages[0].text
    for part in (
        "How many teal cells",
        "3 cells",
        "The correct answer should be 2.",
        "Step2 Locate teal.",
        "object='teal'",
        "BOX0 is empty",
    ):
        assert part in text, part
    assert "Our wrong result: 0" in text


def test_a_blamed_question_has_no_concept_before_its_answer_is_inferred(world: World) -> None:
    [critique] = ask(answer('{"culprit": "tool", "step": 1, "reason": ""}'), [fail(world, TWO_QUESTIONS, "teal", "teal")], world)
    assert (critique.tool, critique.concept) == ("VQA", None)


def test_unreadable_replies_are_asked_again_with_another_seed_and_alone(world: World) -> None:
    cases = [fail(world, TWO_QUESTIONS, "teal"), fail(world, TWO_QUESTIONS, "teal", "blue")]
    chat = answer("hm", '{"culprit": "plan", "step": null, "reason": "r"}', '{"culprit": "tool", "step": 9}')
    first, second = ask(chat, cases, world)
    assert (first.status, first.culprit, first.step, first.tool) == ("unreadable", "nothing", None, None)
    assert first.replies == ("hm", '{"culprit": "tool", "step": 9}')
    assert (second.status, second.culprit) == ("ok", "plan")
    assert [len(batch) for batch in chat.batches] == [2, 1]
    assert chat.batches[0][0].id == chat.batches[1][0].id and chat.batches[0][0].seed != chat.batches[1][0].seed


def test_tokens_are_those_of_all_tries_and_of_every_step_that_was_checked(world: World) -> None:
    def say(text: str, prompt: int, new: int) -> ChatReply:
        return ChatReply(text=text, finish="stop", prompt_tokens=prompt, new_tokens=new)

    cases = [fail(world, TWO_QUESTIONS, "teal"), fail(world, TWO_QUESTIONS, "teal", "blue")]
    chat = answer(say("hm", 100, 1), say('{"culprit": "plan"}', 110, 4), say("hm again", 120, 2))
    first, second = ask(chat, cases, world)
    assert (first.status, first.prompt_tokens, first.new_tokens) == ("unreadable", 220, 3)
    assert (second.status, second.prompt_tokens, second.new_tokens) == ("ok", 110, 4)
    walked = answer(say("hm", 10, 1), say("yes", 20, 1), say('{"correct": false, "culprit": "tool"}', 30, 9))
    [critique] = ask(walked, cases[:1], world, grain="local")
    assert (critique.step, critique.prompt_tokens, critique.new_tokens) == (2, 60, 11)
    [failed] = ask(answer(broken(), broken()), cases[:1], world)
    assert (failed.status, failed.prompt_tokens, failed.new_tokens) == ("failed", 0, 0)


def test_a_backend_that_fails_is_no_verdict(world: World) -> None:
    [critique] = ask(answer(broken(), broken()), [fail(world, TWO_QUESTIONS, "teal")], world)
    assert (critique.status, critique.culprit) == ("failed", "nothing")

    class Short(ScriptedChat):
        def reply(self, requests, *, sampling):  # type: ignore[no-untyped-def]
            return []

    with pytest.raises(ModelError, match="0 replies to 1 requests"):
        ask(Short(lambda request: ""), [fail(world, TWO_QUESTIONS, "teal")], world)
    with pytest.raises(ConfigError, match="max_tries"):
        ask(answer(), [], world, tries=0)


def test_a_tool_without_a_step_is_the_only_learnable_one_or_unreadable(world: World) -> None:
    one = fail(world, TWO_QUESTIONS.split("\n", 1)[1], "teal")
    [critique] = ask(answer("Error Location: functions\nReason: it missed the cell"), [one], world)
    assert (critique.step, critique.tool) == (1, "LOC")
    two = fail(world, TWO_QUESTIONS, "teal")
    reply = "Error Location: functions\nReason: it missed the cell"
    [critique] = ask(answer(reply, reply), [two], world)
    assert critique.status == "unreadable", "two tools could be meant"


def test_local_critique_walks_to_the_first_error_in_batches(world: World) -> None:
    cases = [fail(world, TWO_QUESTIONS, "teal"), fail(world, TWO_QUESTIONS, "teal", "red")]
    wrong = '{"correct": false, "culprit": "tool", "reason": "LOC found none"}'
    verdicts = {(cases[0].trace.id, 2): wrong}
    seen: list[str] = []

    def script(request: ChatRequest) -> str:
        text = request.messages[0].text
        step = int(text.split("Now check Step")[1].split(".")[0])
        assert text.count("Line: ") == step, "only the steps up to this one are shown"
        assert ("have been checked" in text) == (step > 1)
        seen.append(f"{len(seen)}")
        case = next(case for case in cases if ("2 cells" in text) == (len(world.rows[case.trace.task_id]) == 2))
        return verdicts.get((case.trace.id, step), '{"correct": true}')

    chat = ScriptedChat(script)
    first, second = ask(chat, cases, world, grain="local")
    assert (first.culprit, first.step, first.tool, first.concept) == ("tool", 2, "LOC", "teal")
    assert (second.culprit, second.step, second.status) == ("nothing", None, "ok")
    assert [len(batch) for batch in chat.batches] == [2, 2, 1, 1]


def test_local_critique_stops_at_what_it_cannot_read(world: World) -> None:
    chat = answer('{"correct": true}', "who knows", cut("no. Error Location: program. Rea"))
    [critique] = ask(chat, [fail(world, TWO_QUESTIONS, "teal")], world, grain="local")
    assert (critique.status, critique.culprit, len(critique.replies)) == ("unreadable", "nothing", 3)


def test_local_critique_does_not_pass_a_step_that_got_no_reply(world: World) -> None:
    chat = answer('{"correct": true}', broken(), broken())
    [critique] = ask(chat, [fail(world, TWO_QUESTIONS, "teal")], world, grain="local")
    assert (critique.status, critique.culprit) == ("failed", "nothing")


def test_interrupt_critique_shows_error_tools_and_program(world: World) -> None:
    case = fail(world, "BOX0=LOC(image=IMAGE,object='teal')\nANSWER0=COUNT(box=BOX7)\nFINAL_RESULT=RESULT(var=ANSWER0)", "teal")
    assert case.trace.status == "program_error"
    chat = answer('{"culprit": "program", "step": 2, "reason": "BOX7 is not defined"}')
    [critique] = ask(chat, [case], world, grain="interrupt")
    assert (critique.culprit, critique.step, critique.grain) == ("program", 2, "interrupt")
    text = chat.requests[0].messages[0].text
    assert "BOX7" in text and "COUNT(box: Boxes|Objects) -> Number" in text and "REPLACE(" not in text, "only tools of the task's kind"


def test_a_critic_is_told_of_plugins(world: World) -> None:
    plugin = ToolSignature(name="AREA", parameters=(), returns="Number", doc="how large it is", kinds=("vqa",))
    world.tools = replace(world.tools, plugins=(plugin,))
    case = fail(world, "ANSWER0=COUNT(box=BOX7)\nFINAL_RESULT=RESULT(var=ANSWER0)", "teal")
    chat = answer('{"culprit": "program", "step": 1, "reason": "BOX7 is not defined"}')
    ask(chat, [case], world, grain="interrupt")
    assert plugin.describe() in chat.requests[0].messages[0].text


def test_text_that_is_no_program_can_still_be_blamed(world: World) -> None:
    case = fail(world, "I would look for teal cells\nand count them", "teal")
    [critique] = ask(answer('{"culprit": "program", "step": 2, "reason": "no program"}'), [case], world, grain="interrupt")
    assert (critique.culprit, critique.step, critique.tool) == ("program", 2, None)
    [critique] = ask(answer('{"culprit": "tool", "step": 1}', '{"culprit": "tool", "step": 1}'), [case], world, grain="interrupt")
    assert critique.status == "unreadable", "no line calls a tool"
    [critique] = ask(answer(), [case], world, grain="local")
    assert (critique.culprit, critique.status) == ("nothing", "ok")


def test_earlier_critiques_are_shown(world: World) -> None:
    case = fail(world, TWO_QUESTIONS, "teal")
    [earlier] = ask(answer('{"culprit": "plan", "step": null, "reason": "the plan forgets to crop"}'), [case], world)
    again = Case(execution=case.execution, trace=case.trace, feedback=case.feedback, earlier=(earlier,))
    for grain, reply in (("global", '{"culprit": "nothing"}'), ("local", '{"correct": false, "culprit": "plan"}')):
        chat = answer(reply)
        [critique] = ask(chat, [again], world, grain=grain)
        assert "the plan forgets to crop" in chat.requests[0].messages[0].text
        assert critique.id != earlier.id


def test_an_inferred_answer_is_taken_only_if_the_rest_of_the_program_is_then_right(world: World) -> None:
    program = (
        "ANSWER0=VQA(image=IMAGE,question='What color is it?')\n"
        "ANSWER1=EVAL(expr=\"1 if {ANSWER0} == 'teal' else 0\")\nFINAL_RESULT=RESULT(var=ANSWER1)"
    )
    case = fail(world, program, "teal")
    critique = Critique(id="c", trace_id=case.trace.id, grain="global", culprit="tool", step=1, tool="VQA", reason="it is teal")
    chat = answer('{"answer": "green"}', '{"answer": "Teal"}')
    found = ChatInference(chat, prompts=PROMPTS, sampling=SAMPLING).infer(case, critique, tools=world.tools, seed=0)
    assert (found.answer, len(found.replies)) == ("teal", 2)
    assert "The wrong step: Step1. Why: it is teal" in chat.requests[0].messages[0].text
    found = ChatInference(answer("hm, hard to say what it should have been", broken()), prompts=PROMPTS, sampling=SAMPLING).infer(
        case, critique, tools=world.tools, seed=0
    )
    assert found.answer is None and found.reason == "no answer could be read"


def test_negatives_named_by_a_model_never_hold_the_concept() -> None:
    chat = answer("hm\nhm", '["Teal", "green", "blue", "cyan"]')
    name = ChatNegatives(model=chat, prompts=PROMPTS, sampling=SAMPLING)
    assert name("teal", "color", 2) == ("green", "blue")
    assert ChatNegatives(model=answer(broken(), broken()), prompts=PROMPTS, sampling=SAMPLING)("teal", "", 2) == ()
