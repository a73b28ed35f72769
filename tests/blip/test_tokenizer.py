from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from capfilt_blip.tokenizer import Tokenizer

TEXTS = ["a red circle, left of a blue square", "two big dots", "a red star"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=200)


def test_first_token_is_the_one_asked_for(tokenizer: Tokenizer) -> None:
    firsts = [
        int(tokenizer.encode(["a red star"], first=first, max_tokens=9).ids[0, 0])
        for first in ("cls", "enc", "dec")
    ]
    assert firsts == [tokenizer.cls_id, tokenizer.enc_id, tokenizer.dec_id]


def test_bert_base_vocabulary_gets_dec_and_enc_behind_its_last_id(tmp_path: Path) -> None:
    tokens = [f"[unused{i}]" for i in range(30522)]
    for index, token in {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}.items():
        tokens[index] = token
    tokens[103] = "[MASK]"
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.vocab_size) == (30522, 30523, 30524)


def test_a_token_is_found_by_its_name(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_id("[ENC]") == tokenizer.enc_id
    with pytest.raises(ValueError, match=r"the vocabulary of \d+ tokens has no '\[unused339\]'"):
        tokenizer.token_id("[unused339]")


def test_known_text_comes_back_in_lower_case(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["A Red circle, left of a Blue square"], first="cls", max_tokens=30).ids
    assert tokenizer.decode(ids[0]) == TEXTS[0]


def test_rare_words_are_spelt_by_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["img2"], first="cls", max_tokens=30).ids
    assert tokenizer.decode(ids[0]) == "img2" and ids.shape == (1, 6)


def test_long_text_is_cut_keeps_sep_and_counts_all_its_tokens(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["a red star " * 10], first="enc", max_tokens=8)
    assert batch.ids.shape == (1, 8) and int(batch.ids[0, -1]) == tokenizer.sep_id
    assert batch.num_tokens == (30,)


def test_empty_text_is_two_tokens_and_padding_is_masked(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode(["", "a red star"], first="cls", max_tokens=8, pad_to=7)
    assert batch.mask.sum(1).tolist() == [2, 5] and batch.ids.shape == (2, 7)
    assert torch.equal(batch.mask, batch.ids != tokenizer.pad_id)


def test_prompt_ids_are_what_encode_puts_before_a_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["star"], first="dec", max_tokens=30, prompt="a red ").ids[0].tolist()
    assert ids[:3] == tokenizer.prompt_ids("a red ") and len(ids) == 5


def test_text_that_spells_a_special_token_does_not_get_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["[ENC] [PAD] [SEP]"], first="cls", max_tokens=40).ids[0, 1:-1]
    special = [tokenizer.enc_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.cls_id]
    assert not set(ids.tolist()) & set(special)


def test_training_order_of_texts_changes_nothing(tmp_path: Path) -> None:
    for name, texts in {"a": TEXTS, "b": TEXTS[::-1]}.items():
        (tmp_path / name).mkdir()
        Tokenizer.train(texts, vocab_size=115).save(tmp_path / name)
    vocabs = [(tmp_path / name / "tokenizer.json").read_bytes() for name in "ab"]
    assert vocabs[0] == vocabs[1]


def test_saved_tokenizer_is_read_back_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "only").mkdir(exist_ok=True)
        (tmp_path / "only" / name).write_bytes((tmp_path / name).read_bytes())
        again = Tokenizer.from_dir(tmp_path / "only")
        pair = [t.encode(TEXTS, first="enc", max_tokens=12).ids for t in (tokenizer, again)]
        assert torch.equal(pair[0], pair[1])
        (tmp_path / "only" / name).unlink()


def test_transformers_reads_the_saved_tokenizer_to_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ours = tokenizer.encode(TEXTS[:1], first="cls", max_tokens=30).ids[0].tolist()
    assert theirs(TEXTS[0])["input_ids"] == ours
    assert theirs.convert_tokens_to_ids("[ENC]") == tokenizer.enc_id


def test_vocabulary_without_sep_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no \[SEP\]"):
        Tokenizer({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[MASK]": 3})


def test_directory_without_a_tokenizer_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json and no vocab\.txt"):
        Tokenizer.from_dir(tmp_path)


def test_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    content = {"model": {"type": "BPE", "vocab": {}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'BPE'; BLIP's is 'WordPiece'"):
        Tokenizer.from_dir(tmp_path)


def test_too_small_a_vocabulary_names_the_least() -> None:
    with pytest.raises(ValueError, match="the least is"):
        Tokenizer.train(TEXTS, vocab_size=50)
