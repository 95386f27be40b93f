"""The in-process backend on random-weight models of real families: exactness, keyed draws, reuse, faults."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from tests.fixtures.tiny_vlms import FAMILIES, TEMPLATE, save_pictures, save_tiny_vlm
from visloop.chat.base import ChatReply, ChatRequest, Message, Sampling
from visloop.chat.conversations import Prompt
from visloop.chat.generate_decoding import GenerateDecoder
from visloop.chat.keyed_sampling import KeyedSampler, filter_probabilities
from visloop.chat.loads import count_loads, reset_loads
from visloop.chat.row_decoding import RowDecoder, supports_row_cache
from visloop.chat.transformers import TransformersChat
from visloop.config import ChatConfig
from visloop.errors import ConfigError, ModelError
from visloop.training.models import load_policy, save_checkpoint

SAMPLED = Sampling(temperature=1.0, max_new_tokens=16)
GREEDY = Sampling(max_new_tokens=16)
QUESTIONS = ("is there a red box", "count", "what color is the large shape left of it", "how many", "see the small circle and answer")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vlms")


@pytest.fixture(scope="session")
def pictures(world: Path) -> list[Path]:
    return save_pictures(world, count=5)


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, world: Path) -> Path:
    # with seed 0 the replies of LLaVA-NeXT hardly depend on anything, and last bits decide whether they differ
    return save_tiny_vlm(world / request.param, family=request.param, seed=3 if request.param == "llava_next" else 0)


@pytest.fixture(scope="session")
def llava(world: Path) -> Path:
    return save_tiny_vlm(world / "llava_only", family="llava", seed=3)


Mount = Callable[..., TransformersChat]


@pytest.fixture
def mount() -> Iterator[Mount]:
    opened: list[TransformersChat] = []

    def open_one(folder: Path, *, reuse: bool = True, generate: bool = False, **values: Any) -> TransformersChat:
        chat = TransformersChat(ChatConfig(model=str(folder), **{"batch_size": 64, **values}), keep_bytes=None if reuse else 0)
        if generate:
            decoder = chat._decoder
            assert isinstance(decoder, RowDecoder)
            chat._decoder = GenerateDecoder(decoder._model, chat._encoder, end_ids=decoder._end_ids, limit=decoder._limit)
        opened.append(chat)
        return chat

    yield open_one
    for chat in opened:
        chat.close()


def ask(pictures: list[Path], *, count: int = 10) -> list[ChatRequest]:
    """Conversations of one turn: one picture, none, or two; questions of unequal length."""
    requests = []
    for number in range(count):
        images = () if number % 5 == 3 else tuple(pictures[: 2 if number % 5 == 4 else 1]) if number % 2 else (pictures[number % 5],)
        message = Message(role="user", text=QUESTIONS[number % len(QUESTIONS)], images=images)
        requests.append(ChatRequest(id=f"q{number}", messages=(message,), seed=1000 + number))
    return requests


def follow_up(requests: list[ChatRequest], replies: list[ChatReply], *, text: str = "look right and step") -> list[ChatRequest]:
    return [
        replace(
            request,
            messages=(*request.messages, Message(role="assistant", text=reply.text), Message(role="user", text=text)),
            seed=request.seed + 7,
        )
        for request, reply in zip(requests, replies, strict=True)
    ]


def count_pictures_seen(chat: TransformersChat, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures per call of the processor, from now on."""
    seen: list[int] = []
    encode = chat._encoder.encode_prompts

    def spy(prompts: Any, **values: Any) -> Any:
        seen.append(sum(len(prompt.pictures) for prompt in prompts))
        return encode(prompts, **values)

    monkeypatch.setattr(chat._encoder, "encode_prompts", spy)
    return seen


# --- the same as transformers' own generate -------------------------------------------------------------------------


def test_greedy_replies_are_those_of_plain_generate(folder: Path, pictures: list[Path], mount: Mount) -> None:
    """Nothing of the backend but the file names is used for the reference."""
    requests = [request for request in ask(pictures) if request.messages[0].images]
    replies = mount(folder).reply(requests, sampling=GREEDY)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for request, reply in zip(requests, replies, strict=True):
        content = [{"type": "image", "path": str(path)} for path in request.messages[0].images]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": request.messages[0].text}]}]
        inputs = processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, do_convert_rgb=True
        )
        new = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        assert reply.text == processor.tokenizer.decode(new, skip_special_tokens=True)
        assert (reply.prompt_tokens, reply.new_tokens) == (inputs["input_ids"].shape[1], len(new))
        assert reply.finish == ("stop" if new[-1] == processor.tokenizer.eos_token_id else "length")
    assert len({reply.text for reply in replies}) > 2  # the replies depend on the request


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SAMPLED,
        replace(SAMPLED, top_k=6, top_p=0.8, temperature=1.7),
        replace(SAMPLED, repetition_penalty=1.4),
        replace(GREEDY, repetition_penalty=2.0),
    ],
    ids=["greedy", "sampled", "filtered", "penalty", "greedy penalty"],
)
def test_row_cache_and_generate_write_the_same(folder: Path, pictures: list[Path], mount: Mount, sampling: Sampling) -> None:
    requests = ask(pictures, count=15)
    assert mount(folder).reply(requests, sampling=sampling) == mount(folder, generate=True).reply(requests, sampling=sampling)


def test_model_sees_the_picture(folder: Path, pictures: list[Path], mount: Mount) -> None:
    requests = [ChatRequest(id=path.name, messages=(Message(role="user", text="what is it", images=(path,)),)) for path in pictures]
    assert len({reply.text for reply in mount(folder).reply(requests, sampling=GREEDY)}) > 1


# --- draws keyed by the request -------------------------------------------------------------------------------------


def test_batch_order_and_size_do_not_change_a_reply(folder: Path, pictures: list[Path], mount: Mount) -> None:
    requests = ask(pictures, count=40)
    together = mount(folder).reply(requests, sampling=SAMPLED)
    alone_chat = mount(folder, batch_size=1)
    alone = {request.id: alone_chat.reply([request], sampling=SAMPLED)[0] for request in reversed(requests)}
    mixed = requests[7:] + requests[:7]
    threes = dict(zip([request.id for request in mixed], mount(folder, batch_size=3).reply(mixed, sampling=SAMPLED), strict=True))
    for other in (alone, threes):
        differing = [request.id for request, reply in zip(requests, together, strict=True) if other[request.id] != reply]
        print(f"{folder.name}: {len(differing)} of {len(requests)} replies differ")
        assert len(differing) <= 1  # a floating-point tie
    assert len({reply.text for reply in together}) > 20


def test_seed_decides_the_reply(llava: Path, pictures: list[Path], mount: Mount) -> None:
    request = ask(pictures)[0]
    requests = [replace(request, id=str(number), seed=number % 10) for number in range(20)]
    texts = [reply.text for reply in mount(llava).reply(requests, sampling=SAMPLED)]
    assert texts[:10] == texts[10:]
    assert len(set(texts)) > 5


class _Bench:
    """Logits of one row repeated, so that many draws are made at once."""

    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, 0.2])

    def draw(self, sampling: Sampling, *, count: int) -> np.ndarray:
        sampler = KeyedSampler(
            replace(sampling, max_new_tokens=4), seeds=range(count), prompts=[(0, 3)] * count, vocab_size=8, device=torch.device("cpu")
        )
        return sampler.pick_tokens(self.logits.expand(count, -1), step=2).numpy()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), np.exp([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, 0.2])),
        (Sampling(temperature=0.5), np.exp([4.0, 2.0, 1.0, 0.0, -2.0, -4.0, 3.0, 0.4])),
        (Sampling(temperature=1.0, top_k=3), np.exp([2.0, 1.0, -np.inf, -np.inf, -np.inf, -np.inf, 1.5, -np.inf])),
        # probabilities .370 .136 .083 .050 .018 .007 .224 .061 (and .05): .370 + .224 < .7 <= .370 + .224 + .136
        (Sampling(temperature=1.0, top_p=0.7), np.exp([2.0, 1.0, -np.inf, -np.inf, -np.inf, -np.inf, 1.5, -np.inf])),
        (Sampling(temperature=1.0, repetition_penalty=2.0), np.exp([1.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, 0.2])),
        (Sampling(temperature=1.0, top_p=1e-9), np.array([1.0, 0, 0, 0, 0, 0, 0, 0])),
        (Sampling(temperature=1.0, top_k=1), np.array([1.0, 0, 0, 0, 0, 0, 0, 0])),
    ],
    ids=["plain", "cold", "top_k", "top_p", "penalty", "tiny top_p", "top_k 1"],
)
def test_sampled_distribution_is_the_filtered_softmax(sampling: Sampling, expected: np.ndarray) -> None:
    count = 20_000
    tokens = _Bench().draw(sampling, count=count)
    observed = np.bincount(tokens, minlength=8)
    expected = expected / expected.sum()
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    if possible.sum() > 1:
        assert chisquare(observed[possible], expected[possible] * count).pvalue > 1e-3


def test_distribution_of_a_whole_model(llava: Path, pictures: list[Path], mount: Mount) -> None:
    """First tokens of 4,000 seeds against the softmax of the model's own logits."""
    chat = mount(llava, batch_size=4000)
    decoder = chat._decoder
    assert isinstance(decoder, RowDecoder)
    request = ask(pictures)[0]
    (prompt,) = chat._encoder.render_prompts([request])
    assert isinstance(prompt, Prompt)
    inputs = chat._encoder.encode_prompts([prompt], device=torch.device("cpu"), dtype=torch.float32)
    sampling = Sampling(temperature=3.0, top_k=12, max_new_tokens=1)
    with torch.inference_mode():
        expected = filter_probabilities(decoder._model(**inputs).logits[:, -1], sampling=sampling)[0].numpy()
    prompts = [replace(prompt, seed=seed) for seed in range(4000)]
    observed = Counter(row.ids[0] for row in decoder.decode(prompts, sampling=sampling))
    possible = np.flatnonzero(expected > 0)
    assert set(observed) <= set(possible.tolist())
    assert chisquare([observed[token] for token in possible], expected[possible] / expected.sum() * 4000).pvalue > 1e-3


def test_logits_that_are_not_finite_are_an_error() -> None:
    for sampling in (GREEDY, SAMPLED):
        sampler = KeyedSampler(sampling, seeds=[1, 2], prompts=[(0,), (0,)], vocab_size=4, device=torch.device("cpu"))
        with pytest.raises(ModelError, match="not finite"):
            sampler.pick_tokens(torch.tensor([[0.0, 1, 2, 3], [float("nan")] * 4]), step=0)


# --- reuse of prefixes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_reuse_is_exact_over_turns_while_chains_leave(
    folder: Path, pictures: list[Path], mount: Mount, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    reusing, plain = mount(folder), mount(folder, reuse=False)
    assert isinstance(reusing._decoder, RowDecoder)
    seen = count_pictures_seen(reusing, monkeypatch)
    requests = ask(pictures, count=20)
    ties = 0
    for turn in range(5):
        replies = reusing.reply(requests, sampling=sampling)
        same = [reply == other for reply, other in zip(replies, plain.reply(requests, sampling=sampling), strict=True)]
        ties += same.count(False)
        requests = follow_up(requests, replies)
        requests = [request for number, request in enumerate(requests) if (number + turn) % 4 and same[number]]
    assert ties <= 1, "a draw may fall between two sums that differ in the last bit, but not twice"
    # Pictures are seen once, but where a special token was written, which its text does not show: how often is a matter of the draws.
    assert sum(seen[1:]) <= seen[0]


def test_logits_of_a_continued_row_are_those_of_a_full_pass(folder: Path, pictures: list[Path], mount: Mount) -> None:
    chat = mount(folder)
    decoder = chat._decoder
    assert isinstance(decoder, RowDecoder)
    requests = [request for request in ask(pictures, count=20) if len(request.messages[0].images) == 1]
    later = follow_up(requests, chat.reply(requests, sampling=SAMPLED))
    prompts = [prompt for prompt in chat._encoder.render_prompts(later) if isinstance(prompt, Prompt)]
    decoder.start_call()
    matches = decoder._store.match_prompts(prompts)
    assert len(matches) >= 5
    prompts = [prompts[index] for index in sorted(matches)]
    with torch.inference_mode():
        batch, logits_of_rows = decoder._continue_rows(prompts, decoder._store.match_prompts(prompts))
    assert len(batch.rows) == len(prompts)
    with torch.inference_mode():
        for row, logits in zip(batch.rows, logits_of_rows, strict=True):
            inputs = chat._encoder.encode_prompts([row.prompt], device=torch.device("cpu"), dtype=torch.float32)
            full = decoder._model(**inputs).logits[0, -1]
            torch.testing.assert_close(logits, full, rtol=1e-4, atol=2e-4)


def test_chains_that_wait_and_several_batches_keep_their_prefix(
    llava: Path, pictures: list[Path], mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in generation: 30 chains in batches of 8, each leaves the stepping turns at its own time, all finals come last."""
    reusing, plain = mount(llava, batch_size=8), mount(llava, batch_size=8, reuse=False)
    seen = count_pictures_seen(reusing, monkeypatch)
    live, waiting = ask(pictures, count=30), []
    pictures_once = sum(len(request.messages[0].images) for request in live)
    for turn in range(4):
        replies = reusing.reply(live, sampling=SAMPLED)
        assert replies == plain.reply(live, sampling=SAMPLED)
        live = follow_up(live, replies)
        waiting += live[turn % 3 :: 3]
        live = [request for request in live if request not in waiting]
    before = sum(seen)
    assert reusing.reply(waiting + live, sampling=GREEDY) == plain.reply(waiting + live, sampling=GREEDY)
    assert sum(seen) - before < pictures_once / 3  # most chains that waited were continued


@pytest.mark.parametrize("keep_bytes", [0, 20_000, 200_000])
def test_kept_memory_is_bounded(llava: Path, pictures: list[Path], keep_bytes: int) -> None:
    chat = TransformersChat(ChatConfig(model=str(llava), batch_size=4), keep_bytes=keep_bytes)
    decoder = chat._decoder
    assert isinstance(decoder, RowDecoder)
    requests = ask(pictures, count=20)
    kept = []
    for _ in range(3):
        requests = follow_up(requests, chat.reply(requests, sampling=SAMPLED))
        kept.append(sum(batch.cache.count_bytes() for batch in decoder._store._current))
    assert max(kept) <= keep_bytes
    assert (max(kept) > 0) == (keep_bytes == 200_000) or keep_bytes == 20_000
    chat.close()


def test_equal_prompts_are_encoded_once(llava: Path, pictures: list[Path], mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = mount(llava)
    seen = count_pictures_seen(chat, monkeypatch)
    requests = [replace(ask(pictures)[0], id=str(number), seed=number) for number in range(8)]
    replies = chat.reply(requests, sampling=SAMPLED)
    assert seen == [1]
    assert replies == mount(llava, batch_size=1).reply(requests, sampling=SAMPLED)


@pytest.mark.parametrize("change", ["other words", "other picture", "shorter", "same again", "forked", "picture rewritten", "new chain"])
def test_reuse_falls_back_where_the_prefix_differs(llava: Path, pictures: list[Path], mount: Mount, change: str, tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(pictures[0].read_bytes())
    first = [replace(request, messages=(replace(request.messages[0], images=(own,)),)) for request in ask(pictures, count=6)]
    reusing, plain = mount(llava), mount(llava, reuse=False)
    replies = reusing.reply(first, sampling=SAMPLED)
    plain.reply(first, sampling=SAMPLED)
    second = follow_up(first, replies)
    if change == "other words":
        second = [replace(r, messages=(r.messages[0], Message(role="assistant", text="yes blue zebra"), r.messages[2])) for r in second]
    elif change == "other picture":
        second = [replace(r, messages=(replace(r.messages[0], images=(pictures[1],)), *r.messages[1:])) for r in second]
    elif change == "shorter":
        second = [replace(r, messages=(replace(r.messages[0], text="is"),)) for r in first]
    elif change == "same again":
        second = [replace(request, seed=request.seed + 1) for request in first]
    elif change == "forked":
        second = [replace(second[0], id=str(number), seed=number) for number in range(9)]
    elif change == "picture rewritten":
        own.write_bytes(pictures[3].read_bytes())
    else:
        second = second[2:] + [replace(request, seed=77) for request in ask(pictures, count=5)]
    assert reusing.reply(second, sampling=SAMPLED) == plain.reply(second, sampling=SAMPLED)


def test_other_families_go_through_generate(llava: Path) -> None:
    config = AutoModelForImageTextToText.from_pretrained(llava).config
    assert supports_row_cache(config)
    for where, name, value in [
        (config.text_config, "sliding_window", 64),
        (config.text_config, "layer_types", ["full_attention", "sliding_attention"]),
        (config.text_config, "rope_parameters", {"mrope_section": [1, 1, 2]}),
        (config, "_attn_implementation", "flash_attention_2"),
        (config, "model_type", "qwen2_5_vl"),
    ]:
        before = getattr(where, name, None)
        setattr(where, name, value)
        assert not supports_row_cache(config), name
        setattr(where, name, before)
    assert supports_row_cache(config)


# --- ends, counts, faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generate", [False, True], ids=["rows", "generate"])
def test_stop_strings_cut_the_reply(llava: Path, pictures: list[Path], mount: Mount, generate: bool) -> None:
    requests = ask(pictures, count=10)
    free = mount(llava).reply(requests, sampling=SAMPLED)
    word = Counter(word for reply in free for word in reply.text.split()[1:]).most_common(1)[0][0]
    stopped = mount(llava, generate=generate).reply(requests, sampling=replace(SAMPLED, stop=("zebra", f" {word}")))
    assert any(f" {word}" in reply.text for reply in free)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.split(f" {word}")[0]
        if f" {word}" in before.text:
            assert after.finish == "stop" and after.new_tokens <= before.new_tokens


def test_budget_and_end_of_sequence_are_told_apart(llava: Path, pictures: list[Path], mount: Mount) -> None:
    replies = mount(llava).reply(
        [replace(ask(pictures)[0], id=str(seed), seed=seed) for seed in range(60)], sampling=replace(SAMPLED, temperature=4.0)
    )
    assert {reply.finish for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert (reply.new_tokens == 16) if reply.finish == "length" else (1 <= reply.new_tokens <= 16)
        assert "<eos>" not in reply.text


def test_bad_picture_costs_its_own_row_only(llava: Path, pictures: list[Path], mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(pictures[0].read_bytes()[:80])
    requests = ask(pictures, count=8)
    broken = replace(requests[4], messages=(replace(requests[4].messages[0], images=(tmp_path / "bad.png",)),))
    replies = mount(llava).reply([*requests[:4], broken, *requests[5:]], sampling=SAMPLED)
    good = mount(llava).reply(requests, sampling=SAMPLED)
    assert replies[:4] + replies[5:] == good[:4] + good[5:]
    assert (replies[4].finish, replies[4].text) == ("error", "")
    assert "bad.png" in (replies[4].error or "")


@pytest.mark.parametrize("generate", [False, True], ids=["rows", "generate"])
def test_prompt_that_the_model_cannot_hold_is_an_error_of_its_row(world: Path, pictures: list[Path], mount: Mount, generate: bool) -> None:
    folder = save_tiny_vlm(world / f"short_{generate}", positions=40)
    chat = mount(folder, generate=generate)
    short = ChatRequest(id="short", messages=(Message(role="user", text="count"),), seed=1)
    long = ChatRequest(id="long", messages=(Message(role="user", text="box " * 60),), seed=1)
    fine, refused = chat.reply([short, long], sampling=replace(SAMPLED, max_new_tokens=200, temperature=0.01))
    assert refused.finish == "error" and "62 tokens, the model takes 40" in (refused.error or "")
    assert fine.finish in ("stop", "length") and fine.prompt_tokens + fine.new_tokens <= 40


def test_conversation_that_the_template_refuses_is_an_error_of_its_row(tmp_path: Path, pictures: list[Path], mount: Mount) -> None:
    folder = save_tiny_vlm(tmp_path / "m")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    (template,) = folder.glob("chat_template*")
    template.write_text(refusal + template.read_text())
    requests = ask(pictures, count=5)
    refused = replace(requests[2], messages=(Message(role="system", text="a"), *requests[2].messages))
    replies = mount(folder).reply([*requests[:2], refused, *requests[3:]], sampling=GREEDY)
    assert [reply.finish == "error" for reply in replies] == [False, False, True, False, False]
    assert "q2" in (replies[2].error or "") and "no system turn" in (replies[2].error or "")


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    llava: Path, pictures: list[Path], mount: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = ask(pictures, count=20)
    expected = mount(llava).reply(requests, sampling=SAMPLED)
    chat = mount(llava)
    sizes: list[int] = []
    forward = LlavaForConditionalGeneration.forward

    def narrow(self: Any, **values: Any) -> Any:
        sizes.append(values["attention_mask"].shape[0])
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("no room for 6 GiB")
        return forward(self, **values)

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", narrow)
    with caplog.at_level(logging.WARNING):
        assert chat.reply(requests, sampling=SAMPLED) == expected
        first = len(caplog.records)
        sizes.clear()
        assert chat.reply(requests, sampling=SAMPLED) == expected
    assert max(sizes) <= 6  # the second call knows
    assert first == len(caplog.records) <= 2


def test_out_of_memory_for_one_row_is_its_error(llava: Path, pictures: list[Path], mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Any, **values: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", never)
    replies = mount(llava).reply(ask(pictures, count=3), sampling=GREEDY)
    assert all(reply.finish == "error" and "out of memory" in (reply.error or "") for reply in replies)


def test_other_runtime_errors_are_not_hidden(llava: Path, pictures: list[Path], mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, **values: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        mount(llava).reply(ask(pictures, count=3), sampling=GREEDY)


def test_conversation_must_wait_for_the_assistant(llava: Path, mount: Mount) -> None:
    ended = ChatRequest(id="done", messages=(Message(role="user", text="a"), Message(role="assistant", text="b")))
    replies = mount(llava).reply([ended, ChatRequest(id="none", messages=())], sampling=GREEDY)
    assert [reply.finish for reply in replies] == ["error", "error"]
    assert "done" in (replies[0].error or "") and "user turn" in (replies[0].error or "")


# --- loading --------------------------------------------------------------------------------------------------------


def test_weights_are_loaded_once_while_in_use(llava: Path, mount: Mount) -> None:
    reset_loads()
    first, second = mount(llava), mount(llava, batch_size=2)
    assert count_loads() == {str(llava): 1}
    first.close()
    assert second.reply([ChatRequest(id="a", messages=(Message(role="user", text="count"),))], sampling=GREEDY)[0].finish != "error"
    second.close()
    mount(llava)
    assert count_loads() == {str(llava): 2}


def test_rewritten_folder_is_loaded_again(tmp_path: Path, mount: Mount, pictures: list[Path]) -> None:
    requests = ask(pictures, count=4)
    old = mount(save_tiny_vlm(tmp_path / "m", seed=1)).reply(requests, sampling=GREEDY)
    time.sleep(0.01)
    new = mount(save_tiny_vlm(tmp_path / "m", seed=2)).reply(requests, sampling=GREEDY)
    assert [reply.text for reply in old] != [reply.text for reply in new]


def test_local_folder_never_touches_the_network(llava: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **values: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    mount(llava)


def test_closed_chat_says_so(llava: Path, mount: Mount) -> None:
    chat = mount(llava)
    chat.close()
    with pytest.raises(ModelError, match="was closed"):
        chat.reply([], sampling=GREEDY)


def test_unusable_folder_and_values_are_named(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(ModelError, match=str(tmp_path)):
        TransformersChat(ChatConfig(model=str(tmp_path)))
    with pytest.raises(ConfigError, match="float33"):
        TransformersChat(ChatConfig(model=str(llava), dtype="float33"))
    with pytest.raises(ConfigError, match="batch_size 0"):
        TransformersChat(ChatConfig(model=str(llava), batch_size=0))


def test_model_without_chat_template_says_so(tmp_path: Path, mount: Mount) -> None:
    folder = save_tiny_vlm(tmp_path / "m")
    for path in folder.glob("chat_template*"):
        path.unlink()
    for path in folder.glob("*.json"):
        assert TEMPLATE[:40] not in path.read_text()
    with pytest.raises(ModelError, match="no chat template"):
        mount(folder).reply([ChatRequest(id="a", messages=(Message(role="user", text="count"),))], sampling=GREEDY)


@pytest.fixture
def lora_folders(llava: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A random adapter on the tiny LLaVA, swapped to another folder after it was written; and full weights of the same function."""
    loaded = load_policy(llava)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)", init_lora_weights=False)
    adapted = get_peft_model(loaded.model, lora)
    save_checkpoint(adapted, loaded.processor, tmp_path / "reasoner" / "unfinished" / "build")
    (tmp_path / "reasoner" / "unfinished" / "build").rename(tmp_path / "adapter")
    save_checkpoint(adapted.merge_and_unload(), loaded.processor, tmp_path / "full")
    return tmp_path / "adapter", tmp_path / "full"


def test_an_adapter_replies_like_its_merged_weights(
    lora_folders: tuple[Path, Path], llava: Path, pictures: list[Path], mount: Mount
) -> None:
    adapter, full = lora_folders
    for sampling in (GREEDY, SAMPLED):
        replies = mount(adapter).reply(ask(pictures), sampling=sampling)
        assert replies == mount(full).reply(ask(pictures), sampling=sampling)
        assert replies != mount(llava).reply(ask(pictures), sampling=sampling), "the adapter must be active"
    assert isinstance(mount(adapter)._decoder, RowDecoder), "as fast as full weights"


def test_an_adapter_needs_its_own_base(lora_folders: tuple[Path, Path], world: Path, mount: Mount) -> None:
    adapter, _ = lora_folders
    other = save_tiny_vlm(world / "another_llava", family="llava", seed=4)
    record = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps({**record, "base": str(other)}))
    with pytest.raises(ModelError, match="not those that the adapter was trained on"):
        mount(adapter)
    (adapter / "base.json").unlink()
    with pytest.raises(ModelError, match=r"base\.json: an adapter needs this file"):
        mount(adapter)
