"""The sentence encoder on a tiny random model that is built here from modules."""

from pathlib import Path

import numpy as np
import pytest

from visloop.assistant.planner import open_encoder
from visloop.config_assistant import EncoderChoice, PlannerConfig
from visloop.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    root: Path = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "replace", "blur", "count", "the", "things", "with"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32).save_pretrained(
        root / "bert"
    )
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(root / "bert")
    body = Transformer(str(root / "bert"))
    SentenceTransformer(modules=[body, Pooling(16, pooling_mode="mean")], device="cpu").save(str(root / "sentence"))
    return str(root / "sentence")


def test_sentences_become_unit_rows_whatever_the_batch(folder: str) -> None:
    encoder = open_encoder(PlannerConfig(encoder=EncoderChoice.sentence, encoder_model=folder))
    rows = encoder.encode(["replace the things with things", "", "blur the things"])
    assert rows.shape == (3, 16) and rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 0, 1], atol=1e-5)
    assert np.allclose(encoder.encode(["blur the things"])[0], rows[2], atol=1e-5)
    assert abs(float(rows[0] @ rows[2])) < 0.9999
    assert encoder.encode([]).shape == (0, 16)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"encoder_model .*nothing"):
        open_encoder(PlannerConfig(encoder=EncoderChoice.sentence, encoder_model=str(tmp_path / "nothing")))
