"""Program search: how instructions are read, and what packs of words hold."""

from pathlib import Path

import pytest

from visloop.assistant.search_candidates import list_candidates
from visloop.assistant.search_space import derive_lexicon, join_lexicons, load_pack
from visloop.assistant.search_words import collect_words, read_instruction, repair_words, split_words
from visloop.errors import ConfigError
from visloop.tools.signatures import SIGNATURES, find_signature

PACK = load_pack("nlvr")
KNOWN = frozenset(word for words in PACK.lexicon.values() for word in words)


def read(text: str):
    return read_instruction(text, space=PACK.space, lexicon=PACK.lexicon, known=KNOWN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two boxes, three circles!", ["2", "box", "3", "circle"]),
        ("The glass towers' bases", ["the", "glass", "tower", "base"]),
        ("has 12 items", ["has", "12", "item"]),
    ],
)
def test_words_are_lower_case_singular_and_numbers_digits(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a bluee squar", ("a", "blue", "square")),
        ("ablue squareleft", ("a", "blue", "square", "left")),
        ("purple", ("purple",)),
        ("7 l", ("7", "l")),
    ],
)
def test_spelling_is_repaired_only_where_a_known_word_is_near(text: str, words: tuple[str, ...]) -> None:
    assert repair_words(text, {"a", "blue", "square", "left", "yellow"}) == words


def test_words_of_several_instructions_become_known_and_rare_ones_do_not() -> None:
    texts = ["the pile is high"] * 3 + ["a pile", "a heap"]
    assert collect_words({"top": ("peak",)}, texts, least=4) == {"peak", "pile"}


def test_a_reading_names_parts_numbers_and_unknown_words() -> None:
    reading = read("no blue item rests at the left wall")
    assert reading.shapes[1] == "<color>"
    assert [(mention.kind, mention.value) for mention in reading.mentions if mention.position == 1] == [("color", "blue")]
    assert reading.find_part("none") == [0] and reading.find_part("wall") == [7] and reading.find_part("left") == [6]
    assert [reading.tokens[position] for position in reading.unknown] == ["item", "rest", "at", "the"]


def test_attribute_words_and_numbers_that_follow_each_other_are_one_chunk() -> None:
    reading = read("two small blue squares and a black circle")
    named = {mention.value: chunk for mention, chunk in zip(reading.mentions, reading.list_chunks(), strict=True) if mention.kind != "part"}
    assert named["2"] == named["small"] == named["blue"] == named["square"] != named["black"] == named["circle"]


def test_candidates_use_each_word_once_and_keep_noun_phrases_together() -> None:
    candidates = list_candidates(read("a blue square and a black circle"), space=PACK.space)
    for candidate in candidates:
        used = [part[2] for part in candidate.parts if part[0] in ("attribute", "unused") and part[0] == "attribute"]
        roles = {part[3] for part in candidate.parts if part[0] == "attribute"}
        assert len(used) == len(set(used)) or "exact" in roles, candidate
    pairs = [candidate.meaning.atoms for candidate in candidates if len(candidate.meaning.atoms) == 2]
    assert any({atom.what.words for atom in atoms} == {(("blue",), ("square",)), (("black",), ("circle",))} for atoms in pairs)
    assert not any({atom.what.words for atom in atoms} == {(("blue",),), (("square",),)} for atoms in pairs)


def test_the_tools_give_their_own_words_and_no_others() -> None:
    own = derive_lexicon(PACK.space, find_signature=find_signature)
    assert own["wall"] == ("wall",) and own["floor"] == own["base"] == ("bottom",) and own["above"] == ("above",)
    assert own["below"] == own["second"] == ()
    spoken = " ".join(signature.doc.lower() + " " + signature.name.lower() for signature in SIGNATURES.values())
    attributes = set(PACK.space.words)
    assert all(word in spoken for part, words in own.items() if part not in attributes for word in words)
    with pytest.raises(ConfigError, match="TOUCHING"):
        derive_lexicon(PACK.space, find_signature=lambda name: None if name == "TOUCHING" else find_signature(name))


def test_no_and_on_are_words_and_not_truth_values_of_yaml() -> None:
    assert "no" in PACK.lexicon["none"] and "no" in PACK.function_words["none"] and "on" in PACK.lexicon["on"]
    assert PACK.space.places["second"].tool == "ON"


def test_lexicons_join_without_repeats() -> None:
    assert join_lexicons({"top": ("peak",)}, {"top": ("peak", "head"), "base": ("foot",)}) == {"top": ("peak", "head"), "base": ("foot",)}


def test_a_broken_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task pack 'chess'"):
        load_pack("chess")
    source = Path(load_pack.__code__.co_filename).parent / "packs" / "nlvr"
    for name in ("space.yaml", "lexicon.yaml", "function_words.yaml"):
        (tmp_path / name).write_text((source / name).read_text(encoding="utf-8"), encoding="utf-8")
    space = (tmp_path / "space.yaml").read_text(encoding="utf-8")
    (tmp_path / "space.yaml").write_text(space.replace("other: base", "other: cellar"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"places\.second\.other is 'cellar'"):
        load_pack(tmp_path)
    (tmp_path / "space.yaml").write_text(space.replace("places:", "spots:"), encoding="utf-8")
    with pytest.raises(ConfigError, match="spots"):
        load_pack(tmp_path)
