"""BERT WordPiece with BLIP's two extra tokens: text in, padded token ids out, and back.

The token at position 0 chooses what the text stack does with a text (arXiv:2201.12086, sec. 3.1):
[CLS] for the unimodal encoder, [ENC] for the image-grounded encoder, [DEC] for the decoder. BERT's
own vocabulary has no [DEC] and no [ENC]; they follow its last entry (30522 and 30523 for
bert-base-uncased).

    B batch, L text tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch import Tensor

FirstToken = Literal["cls", "enc", "dec"]

_PAD, _UNK, _CLS, _SEP, _MASK, _DEC, _ENC = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[DEC]",
    "[ENC]",
)
_BERT_TOKENS = (_PAD, _UNK, _CLS, _SEP, _MASK)
_MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Texts as token ids, padded on the right."""

    ids: Tensor
    """(B, L) int64; [PAD] after the last real token."""

    mask: Tensor
    """(B, L) bool, True where a token is real."""

    num_tokens: tuple[int, ...]
    """Tokens of each whole text before it was cut to `max_tokens`, special tokens excluded."""


class Tokenizer:
    """Turns texts into token ids and token ids into texts.

    Args:
        vocab: token to id, ids 0 to len-1. [DEC] and [ENC] are appended where missing.

    Raises:
        ValueError: if one of BERT's special tokens is missing, or the ids have holes.
    """

    def __init__(self, vocab: Mapping[str, int]) -> None:
        self._vocab = _with_blip_tokens(vocab)
        self._wordpiece = _wordpiece(self._vocab)
        self.pad_id, self.cls_id, self.sep_id = (self._vocab[t] for t in (_PAD, _CLS, _SEP))
        self.dec_id, self.enc_id = self._vocab[_DEC], self._vocab[_ENC]

    @classmethod
    def from_vocab_file(cls, path: str | Path) -> Tokenizer:
        """Read a `vocab.txt`: one token a line, the line number is the id."""
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
        return cls({token: index for index, token in enumerate(lines)})

    @classmethod
    def from_dir(cls, directory: str | Path) -> Tokenizer:
        """Read the tokenizer of a model directory in Hugging Face layout.

        Args:
            directory: holds `tokenizer.json` or `vocab.txt`.

        Raises:
            FileNotFoundError: if it holds neither.
            ValueError: if `tokenizer.json` is not a WordPiece tokenizer.
        """
        folder = Path(directory)
        if (folder / "tokenizer.json").is_file():
            return cls(_vocab_of_json(folder / "tokenizer.json"))
        if (folder / "vocab.txt").is_file():
            return cls.from_vocab_file(folder / "vocab.txt")
        raise FileNotFoundError(f"{folder}: no tokenizer.json and no vocab.txt")

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
        """Make a vocabulary of all printable ASCII characters and the most frequent words.

        Rare words are spelt by characters. Ties go by alphabet, so the same texts always give the
        same ids (the trainer of the `tokenizers` package does not promise that).

        Args:
            texts: the corpus.
            vocab_size: number of tokens, [DEC] and [ENC] included; fewer when there are fewer
                words.

        Raises:
            ValueError: if `vocab_size` cannot hold the special tokens and the characters.
        """
        characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
        letters = [f"##{character}" for character in characters if character.isalnum()]
        fixed = [*_BERT_TOKENS, *characters, *letters]
        num_words = vocab_size - len(fixed) - 2
        if num_words < 0:
            raise ValueError(f"vocab_size is {vocab_size}; the least is {len(fixed) + 2}")
        words = [word for word in _words_by_count(texts) if word not in set(fixed)][:num_words]
        return cls({token: index for index, token in enumerate([*fixed, *words])})

    @property
    def vocab_size(self) -> int:
        """Number of tokens, [DEC] and [ENC] included."""
        return len(self._vocab)

    def encode(
        self,
        texts: Sequence[str],
        *,
        first: FirstToken,
        max_tokens: int,
        prompt: str = "",
        pad_to: int = 0,
    ) -> TokenBatch:
        """Tokenize texts as `<first> prompt text [SEP]`.

        Args:
            texts: B texts.
            first: the token at position 0: "cls" for the unimodal encoder (ITC), "enc" for the
                image-grounded encoder (ITM), "dec" for the decoder (LM).
            max_tokens: longest sequence, special tokens included; longer texts lose their end and
                keep [SEP].
            prompt: put before each text.
            pad_to: pad to at least this many tokens, so that a batch's shape need not depend on
                its texts.

        Returns:
            L is the longest sequence of the batch, or `pad_to` if that is more.
        """
        assert max_tokens >= 2, f"max_tokens is {max_tokens}; the first token and [SEP] need 2"
        first_id = {"cls": self.cls_id, "enc": self.enc_id, "dec": self.dec_id}[first]
        bodies = [
            found.ids
            for found in self._wordpiece.encode_batch(
                [prompt + text for text in texts], add_special_tokens=False
            )
        ]
        rows = [[first_id, *body[: max_tokens - 2], self.sep_id] for body in bodies]
        num_tokens = tuple(len(body) for body in bodies)
        ids = self._padded(rows, length=max([pad_to, *map(len, rows)]))
        lengths = torch.tensor([len(row) for row in rows]).view(-1, 1)
        return TokenBatch(ids=ids, mask=torch.arange(ids.shape[1]) < lengths, num_tokens=num_tokens)

    def token_id(self, token: str) -> int:
        """Give the id of one token by its name, such as "[unused339]".

        Raises:
            ValueError: the vocabulary does not have it.
        """
        if token not in self._vocab:
            raise ValueError(f"the vocabulary of {self.vocab_size} tokens has no {token!r}")
        return self._vocab[token]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Give the ids a decoder starts from: [DEC] and the prompt, without [SEP]."""
        return [self.dec_id, *self._wordpiece.encode(prompt, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Give the text of token ids; special tokens are left out."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        return self._wordpiece.decode(numbers, skip_special_tokens=True)

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's four files in Hugging Face layout.

        They are `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
        `vocab.txt`; the directory must exist. `transformers.BertTokenizerFast.from_pretrained`
        reads it.
        """
        folder = Path(directory)
        self._wordpiece.save(str(folder / "tokenizer.json"))
        tokens = sorted(self._vocab, key=self._vocab.__getitem__)
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        _write_json(folder / "special_tokens_map.json", _SPECIAL_TOKENS)
        _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG | _SPECIAL_TOKENS)

    def _padded(self, rows: Sequence[Sequence[int]], *, length: int) -> Tensor:
        """Stack rows of ids into (B, length), filled up with [PAD]."""
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids


_SPECIAL_TOKENS: dict[str, object] = {
    "pad_token": _PAD,
    "unk_token": _UNK,
    "cls_token": _CLS,
    "sep_token": _SEP,
    "mask_token": _MASK,
    "additional_special_tokens": [_DEC, _ENC],
}
_TOKENIZER_CONFIG: dict[str, object] = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "model_max_length": _MAX_POSITIONS,
}


def _with_blip_tokens(vocab: Mapping[str, int]) -> dict[str, int]:
    """Append [DEC] and [ENC] where missing, in this order, and check the rest."""
    missing = [token for token in _BERT_TOKENS if token not in vocab]
    if missing:
        raise ValueError(f"the vocabulary has no {', '.join(missing)}")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"the {len(vocab)} ids of the vocabulary are not 0 to {len(vocab) - 1}")
    complete = dict(vocab)
    for token in (_DEC, _ENC):
        complete.setdefault(token, len(complete))
    return complete


def _normalizer() -> normalizers.Normalizer:
    """Build the lower-casing normalizer of bert-base-uncased."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True
    )


def _wordpiece(vocab: dict[str, int]) -> tokenizers.Tokenizer:
    """Build the tokenizer of bert-base-uncased over a vocabulary."""
    wordpiece = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token=_UNK, max_input_chars_per_word=100)
    )
    wordpiece.normalizer = _normalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    # A web text may spell "[ENC]" itself: then it is plain characters, not the token.
    wordpiece.add_special_tokens([*_BERT_TOKENS, _DEC, _ENC])
    wordpiece.encode_special_tokens = True
    return wordpiece


def _vocab_of_json(path: Path) -> dict[str, int]:
    """Read the vocabulary of a `tokenizer.json`, added tokens included."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = content.get("model", {}).get("type")
    if kind not in ("WordPiece", None) or "vocab" not in content.get("model", {}):
        raise ValueError(f"{path}: the tokenizer is {kind!r}; BLIP's is 'WordPiece'")
    vocab: dict[str, int] = dict(content["model"]["vocab"])
    for added in content.get("added_tokens", []):
        vocab[added["content"]] = added["id"]
    return vocab


def _words_by_count(texts: Iterable[str]) -> list[str]:
    """Give the words of a corpus, the most frequent first, ties by alphabet."""
    normalizer, splitter = _normalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        split = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in split)
    return sorted(counts, key=lambda word: (-counts[word], word))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write indented JSON with sorted keys, so that the same content gives the same bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
