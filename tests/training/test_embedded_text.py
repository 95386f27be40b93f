"""The embedded models' tokenizer, chat template and sequences."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from visloop.embedded.build import Sizes, build_model, build_processor, deepen_model
from visloop.embedded.dialogues import IGNORED, Dialogue, DialogueEncoder, collate_sequences
from visloop.embedded.language import LineProbe, compute_loss
from visloop.embedded.pictures import draw_scenes, encode_pictures, process_pictures, render_pixels
from visloop.embedded.replies import generate_replies
from visloop.embedded.tokenizer import JUDGE_PIECES, PIECES, STEP_PIECES, list_vocabulary
from visloop.prompts.render import PromptSet
from visloop.records.chains import format_chain, format_step, parse_chain, parse_step
from visloop.scenes.pictures import encode_png, render_scene
from visloop.scenes.questions import draw_questions
from visloop.scenes.world import DEFAULT_WORLD

SIZES = Sizes()
TURNS = (("reason Is there a red circle?", "<thoughts>\nfind red circle: x1 y2\n</thoughts>\n<output>yes</output>"), ("next", "no"))


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor(list_vocabulary(PromptSet("compact"), spec=DEFAULT_WORLD), sizes=SIZES)


@pytest.fixture(scope="module")
def encoder(processor):
    return DialogueEncoder(processor, patches=SIZES.patches)


def decode(processor, text):
    return processor.tokenizer.decode(processor.tokenizer(text)["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("boxes", [1, 3])
def test_every_question_step_and_answer_is_in_the_vocabulary_and_survives_decoding(processor, boxes):
    for scene in draw_scenes(40, seed=3, spec=DEFAULT_WORLD, boxes=boxes):
        for question in draw_questions(scene, seed=5, count=4, wording="all"):
            chain = format_chain(question.steps, question.answer)
            ids = processor.tokenizer(f"{question.question} {chain}")["input_ids"]
            assert processor.tokenizer.unk_token_id not in ids, question.question
            parsed = parse_chain(decode(processor, chain))
            assert (parsed.steps, parsed.answer, parsed.complete) == (question.steps, question.answer, True)
            assert [parse_step(decode(processor, format_step(step))) for step in question.steps] == list(question.steps)


def test_pieces_are_one_token_each_and_not_special(processor):
    tokenizer = processor.tokenizer
    for piece in PIECES:
        assert len(tokenizer(piece)["input_ids"]) == 1, piece
        assert tokenizer.convert_tokens_to_ids(piece) not in tokenizer.all_special_ids, piece
    step = format_step(parse_step('{"summary": "find circle", "reasoning": "none", "action": "continue"}'))
    assert [token for token in tokenizer.tokenize(step) if token in STEP_PIECES] == list(STEP_PIECES)
    scores = tokenizer.tokenize('[{"id":1,"score":90,"error":0},{"id":2,"score":5,"error":3}]')
    assert [token for token in scores if token in JUDGE_PIECES] == [
        '[{"id":', ',"score":', ',"error":', '},{"id":', ',"score":', ',"error":', "}]",
    ]  # fmt: skip


def test_a_strange_word_is_unknown_and_numbers_are_words(processor):
    tokens = processor.tokenizer.tokenize("Zebra 0 100 101")
    assert tokens == ["<unk>", "0", "100", "<unk>"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_encoder_equals_the_chat_template(processor, encoder, count):
    pictures = [Image.fromarray(np.full((100, 100, 3), 40 * index, dtype=np.uint8)) for index in range(count)]
    messages = []
    for number, (question, reply) in enumerate(TURNS):
        parts = [{"type": "image", "image": picture} for picture in pictures] if number == 0 else []
        messages += [
            {"role": "user", "content": [{"type": "text", "text": question}, *parts]},
            {"role": "assistant", "content": [{"type": "text", "text": reply}]},
        ]
    written = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    encoded = encoder.encode_dialogue(Dialogue(0, TURNS), tuple(range(count)))
    assert encoded.ids == written["input_ids"][0]
    assert encoded.loss == [bool(flag) for flag in written["assistant_masks"][0]]
    prompt = processor.apply_chat_template(messages[:-1], tokenize=True, return_dict=True, add_generation_prompt=True)
    assert encoder.encode_prompt([TURNS[0][0], TURNS[0][1], TURNS[1][0]], count) == prompt["input_ids"][0]


def test_plain_string_content_is_read_like_a_text_part(processor):
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "describe"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "none"}]},
    ]
    plain = [{"role": "user", "content": "describe"}, {"role": "assistant", "content": "none"}]
    assert processor.apply_chat_template(plain) == processor.apply_chat_template(parts) == "<user>describe<assistant>none<eos>"


@pytest.mark.parametrize("boxes", [1, 3])
def test_training_pixels_equal_the_processors_from_a_png_file(processor, tmp_path, boxes):
    scenes = draw_scenes(2, seed=9, spec=DEFAULT_WORLD, boxes=boxes)
    pixels, rows = render_pixels(processor, scenes, spec=DEFAULT_WORLD)
    assert rows == [tuple(range(boxes)), tuple(range(boxes, 2 * boxes))]
    for scene, own in zip(scenes, rows, strict=True):
        content = []
        for index, picture in enumerate(render_scene(scene)):
            path = tmp_path / f"{scene.id}-{index}.png"
            path.write_bytes(encode_png(picture)[0])
            content.append({"type": "image", "path": str(path)})
        message = {"role": "user", "content": [*content, {"type": "text", "text": "describe"}]}
        given = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")["pixel_values"]
        assert torch.equal(given, pixels[list(own)])


def test_padding_and_cached_features_do_not_change_the_loss(processor, encoder):
    model = build_model(processor, sizes=SIZES, seed=1).eval()
    pixels = process_pictures(
        processor, [picture for scene in draw_scenes(2, seed=4, spec=DEFAULT_WORLD) for picture in render_scene(scene)]
    )
    features = encode_pictures(model, pixels)
    short = encoder.encode_dialogue(Dialogue(0, TURNS[1:]), (0,))
    long = encoder.encode_dialogue(Dialogue(1, TURNS), (1,))
    losses = []
    for sequence in (short, long):
        ids = torch.tensor([sequence.ids])
        labels = torch.where(torch.tensor([sequence.loss]), ids, IGNORED)
        direct = model(input_ids=ids, pixel_values=pixels[list(sequence.pictures)], labels=labels).loss
        alone = compute_loss(model, collate_sequences([sequence], pad=encoder.pad), features)
        torch.testing.assert_close(alone, direct)
        losses.append(direct * sum(sequence.loss))
    together = compute_loss(model, collate_sequences([short, long], pad=encoder.pad), features)
    torch.testing.assert_close(together, sum(losses) / (sum(short.loss) + sum(long.loss)))


def test_a_reply_does_not_depend_on_its_neighbours(processor, encoder):
    model = build_model(processor, sizes=SIZES, seed=2).eval()
    pixels = process_pictures(
        processor, [picture for scene in draw_scenes(3, seed=4, spec=DEFAULT_WORLD) for picture in render_scene(scene)]
    )
    prompts = [
        encoder.encode_prompt(["answer Is there a red circle?"], 1),
        encoder.encode_prompt(["describe"], 1),
        encoder.encode_prompt(["next"], 0),
    ]
    rows = [(0,), (1,), ()]

    def ask(chosen):
        return generate_replies(
            model,
            [prompts[index] for index in chosen],
            [rows[index] for index in chosen],
            pixels=pixels,
            encoder=encoder,
            decode=lambda ids: " ".join(map(str, ids)),
            max_new_tokens=5,
        )

    alone = [ask([index])[0] for index in (0, 1)]
    assert ask([2]) == ask([0, 2])[1:]
    assert ask([1, 2, 0])[0] == alone[1]
    assert ask([1, 2, 0])[2] == alone[0]
    assert alone[0] != alone[1]


def test_line_ends_are_marked_inside_the_thoughts_only(processor, encoder):
    chain = "<thoughts>\nfind circle: none\nconclude exist: answer no\n</thoughts>\n<output>no</output>"
    text = f"score Is there a circle? : no\npath 1\n{chain}\npath 2\n{chain}"
    marked = encoder.encode_dialogue(Dialogue(0, ((text, "yes"),), lines=(True, False, False, True)), (0,))
    assert [right for _, right in marked.marks] == [True, False, False, True]
    words = processor.tokenizer.convert_ids_to_tokens(marked.ids)
    assert [words[position - 1] for position, _ in marked.marks] == ["none", "no", "none", "no"]
    assert all(words[position] == "\n" for position, _ in marked.marks)
    with pytest.raises(ValueError, match="zip"):
        encoder.encode_dialogue(Dialogue(0, ((text, "yes"),), lines=(True, False)), (0,))


def test_new_layers_pass_their_input_through_and_the_probe_reads_below_them(processor, encoder):
    model = build_model(processor, sizes=SIZES, seed=1).eval()
    deeper = deepen_model(model, layers=2, seed=5)
    assert deeper.config.text_config.num_hidden_layers == model.config.text_config.num_hidden_layers + 2
    pixels = process_pictures(processor, render_scene(draw_scenes(1, seed=4, spec=DEFAULT_WORLD)[0]))
    features = encode_pictures(model, pixels)
    chain = "<thoughts>\nfind circle: none\nconclude exist: answer no\n</thoughts>\n<output>no</output>"
    marked = encoder.encode_dialogue(Dialogue(0, ((f"score Is there a circle? : no\npath 1\n{chain}", "yes"),), lines=(True, False)), (0,))
    batch = collate_sequences([marked], pad=encoder.pad)
    torch.testing.assert_close(compute_loss(deeper, batch, features), compute_loss(model, batch, features))
    probe = LineProbe(SIZES.width, layer=SIZES.layers, seed=0)
    loss = compute_loss(deeper, batch, features, probe=probe)
    extra = loss - compute_loss(deeper, batch, features)
    assert 0.1 < extra.item() < 3.0
    loss.backward()
    assert all(parameter.grad is not None for parameter in probe.parameters())
    assert deeper.model.language_model.layers[-1].self_attn.o_proj.weight.grad.abs().sum() > 0
    bare = collate_sequences([encoder.encode_dialogue(Dialogue(0, TURNS), (0,))], pad=encoder.pad)
    torch.testing.assert_close(compute_loss(deeper, bare, features, probe=probe), compute_loss(deeper, bare, features))
