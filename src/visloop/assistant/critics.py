"""The critic and the inference of answers that a configuration names."""

from visloop.assistant.blame import BlameCritic, BlameLimits
from visloop.assistant.cases import Critic, Judge, judge_by_answer
from visloop.assistant.inference import AnswerInference, ChatInference, CounterfactualInference
from visloop.assistant.reflection import ChatCritic
from visloop.chat.base import ChatModel
from visloop.config import Sampling
from visloop.config_assistant import CriticChoice, ReflectionConfig
from visloop.errors import ConfigError
from visloop.prompts.render import PromptSet


def open_critic(
    config: ReflectionConfig, *, chat: ChatModel | None = None, prompts: PromptSet | None = None, judge: Judge = judge_by_answer
) -> Critic:
    """The critic of ``reflection.critic``.

    Raises:
        ConfigError: the LLM critic without a chat model or its prompts.
    """
    if config.critic is CriticChoice.blame:
        return BlameCritic(limits=BlameLimits(candidates=config.candidates, doubt=config.doubt), judge=judge)
    model, style = _need_chat(chat, prompts)
    return ChatCritic(model, prompts=style, sampling=_make_sampling(config), max_tries=config.max_tries)


def open_inference(
    config: ReflectionConfig, *, chat: ChatModel | None = None, prompts: PromptSet | None = None, judge: Judge = judge_by_answer
) -> AnswerInference:
    """Who infers what a wrong step should have answered, by the same choice as the critic.

    Raises:
        ConfigError: the LLM without a chat model or its prompts.
    """
    if config.critic is CriticChoice.blame:
        return CounterfactualInference(judge=judge, candidates=config.candidates)
    model, style = _need_chat(chat, prompts)
    return ChatInference(model, prompts=style, sampling=_make_sampling(config), max_tries=config.max_tries, judge=judge)


def _need_chat(chat: ChatModel | None, prompts: PromptSet | None) -> tuple[ChatModel, PromptSet]:
    if chat is None or prompts is None:
        raise ConfigError("reflection.critic is llm, which needs a chat model and its prompts; or choose blame")
    return chat, prompts


def _make_sampling(config: ReflectionConfig) -> Sampling:
    return Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
