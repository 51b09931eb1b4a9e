"""The tokenizers of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench.encoders.weights import weights_path
from fusionbench.errors import UserError
from fusionbench.types import Tokenizer

_AT_ONCE = 256  # texts: enough to keep all cores busy, while what is cut off stays in memory for so many alone
_WHOLE = 10**7  # tokens: more than any text has
_WORDS = 200  # letters of another library's error
_REMEDY = "encoder.tokenizer=PATH (encoder.MODALITY.tokenizer=PATH where each modality has its own encoder)"
_FILES = ("tokenizer.json", "*.model", "vocab.*")


class HFTokenizer:
    """A transformers tokenizer in the shape that the DataModule asks for.

    A SentencePiece ``tokenizer.model`` alone, as Meta ships Llama 2, is read as a Llama tokenizer.

    Args:
        options: Of an encoder node: ``weights``, ``model`` and ``tokenizer`` say where it lies.
        special: Whether a text gets the special tokens of the model around it, as BERT-like encoders need. Without,
            as for decoders (no BOS or EOS, as in MC_MMD's code for arXiv 2412.01306), a text that spells a special
            token is read as plain characters, and ``padding_id`` says what pads.

    Attributes:
        pad_id: Id of the padding token.
        size: One more than the highest token id, added tokens included.
        end_id: Id of the end-of-text token; None if there is none.

    Raises:
        UserError: There is none, it is damaged or gated, or it has no padding token.
    """

    def __init__(self, options: Mapping[str, Any], *, special: bool = True) -> None:
        named = options.get("tokenizer") or options["weights"]
        if named == "random":
            raise UserError(f"an encoder with random weights has no tokenizer of its own: give {_REMEDY}")
        own = not options.get("tokenizer")
        source = _source(options) if own else str(named)
        self._tokenizer = _read(source, "weights" if own else "tokenizer")
        if not own and options["weights"] not in ("hub", "random"):
            _check_words(self._tokenizer, source, str(options["weights"]))
        self._special = special
        pad_id = self._tokenizer.pad_token_id if special else padding_id(self._tokenizer)
        if pad_id is None:
            kind = "a BERT-like encoder" if special else "a decoder with an unknown or end-of-text token"
            raise UserError(
                f"the tokenizer of '{source}' has no padding token, so it is not of {kind}; give the model's own by "
                f"{_REMEDY}"
            )
        self.pad_id = int(pad_id)
        self.size = max(self._tokenizer.get_vocab().values()) + 1
        self.end_id: int | None = self._tokenizer.eos_token_id

    def __call__(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return token ids, cut to ``max_length``.

        Without special tokens the padding id is never inside a text, where it would be masked: what a tokenizer maps to
        it (unknown words, if the unknown token pads) is left out before a text is cut, and of an empty text it is all
        there is.
        """
        ids: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            ids += self._without_padding(texts[start : start + _AT_ONCE], max_length)
        return ids

    def spelled(self, text: str) -> list[int]:
        """Return the token ids of a text, whole and with nothing around; a special token that it spells is that one."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text that token ids spell, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _without_padding(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Return the ids of a few texts; a text that has the padding id is read whole, freed of it, and cut."""
        ids = self._ids(texts, max_length)
        holed = [] if self._special else [index for index, own in enumerate(ids) if self.pad_id in own or not own]
        whole = self._ids([texts[index] for index in holed], _WHOLE) if holed else []
        for index, own in zip(holed, whole, strict=True):
            ids[index] = [token for token in own if token != self.pad_id][:max_length] or [self.pad_id]
        return ids

    def _ids(self, texts: list[str], max_length: int) -> list[list[int]]:
        out = self._tokenizer(
            texts,
            truncation=True,
            max_length=max_length,
            add_special_tokens=self._special,
            split_special_tokens=not self._special,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = out["input_ids"]
        return ids


def padding_id(tokenizer: Any) -> int | None:  # noqa: ANN401 - transformers' tokenizers share no typed base
    """Return the id that pads texts for a decoder.

    It is that of the padding token; for want of one of the unknown token, with which the authors of arXiv 2412.01306
    pad (0 in Llama 2); else of the end-of-text token; None if there is no such token.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return None


def check_tokenizer(tokenizer: Tokenizer, *, reader: str, pad_id: int, words: int) -> None:
    """Refuse a tokenizer made for another model, whose padding would be read or whose words have no embedding.

    Args:
        tokenizer: Its ``size``, if it has one, is one more than its highest token id.
        reader: What the sentence calls the model, e.g. ``text encoder``.
        pad_id: Id of the token that the model takes for padding.
        words: How many token ids the model has an embedding of.

    Raises:
        UserError: The padding token is another, or the model's vocabulary is too small.
    """
    size, remedy = int(getattr(tokenizer, "size", 0)), f"give the model's own by {_REMEDY}"
    if tokenizer.pad_id != pad_id:
        raise UserError(f"the tokenizer pads with token {tokenizer.pad_id}, but the {reader} with {pad_id}: {remedy}")
    if size > words:
        raise UserError(f"the tokenizer has {size} words, but the {reader} only {words}: {remedy}")


def _check_words(tokenizer: Any, source: str, weights: str) -> None:  # noqa: ANN401 - transformers' tokenizers
    """Refuse a tokenizer most of whose ids are other words in the one that lies beside local weights, if one does."""
    try:
        own = _read(weights, "weights").get_vocab()
    except UserError:  # there is none to compare with
        return
    words = tokenizer.get_vocab()
    if 2 * sum(own.get(word) == index for word, index in words.items()) < min(len(own), len(words)):
        raise UserError(f"the tokenizer of '{source}' has other words than that of '{weights}': leave out {_REMEDY}")


def _source(options: Mapping[str, Any]) -> str:
    """Return where the tokenizer that comes with the weights lies: a model's id on the hub, an asset or a path.

    Raises:
        UserError: The weights cannot be there, or are to come from the hub, but no model is named.
    """
    if options["weights"] != "hub":
        weights_path(str(options["weights"]))
        return str(options["weights"])
    if options.get("model") is None:
        raise UserError("encoder.weights=hub needs encoder.model=OWNER/NAME")
    return str(options["model"])


def _read(source: str, option: str) -> Any:  # noqa: ANN401
    """Read a tokenizer from a folder, an asset, a file in a folder, or the hub.

    Args:
        source: Where it lies.
        option: Of the encoder node, ``weights`` or ``tokenizer``, that says so, for errors.

    Raises:
        UserError: There is none, or it is damaged or gated.
    """
    from transformers import AutoTokenizer, LlamaTokenizer

    folder = _folder(source, option)
    if folder is not None and not any(file for pattern in _FILES for file in folder.glob(pattern)):
        raise UserError(f"'{folder}' holds no tokenizer (tokenizer.json or the like); give {_REMEDY}")
    kind: Any = LlamaTokenizer if folder is not None and _is_sentencepiece_alone(folder) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(str(folder or source), trust_remote_code=False)
    except Exception as error:  # transformers, the hub client and tokenizers each have their own
        raise _failed(source, folder, option, error) from None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # For some families transformers makes one of special tokens alone where the files are missing.
        raise UserError(f"no tokenizer lies in '{source}'; give {_REMEDY}")
    return tokenizer


def _failed(source: str, folder: Path | None, option: str, error: Exception) -> UserError:
    """Return the one sentence for a tokenizer that could not be read."""
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError) or isinstance(error.__cause__, GatedRepoError):
        return UserError(
            f"'{source}' is gated: accept its licence on the hub and log in with `hf auth login`, or give a local "
            f"folder by encoder.{option}=PATH"
        )
    if folder is None:
        return UserError(
            f"no tokenizer could be had from '{source}' on the hub ({_short(error)}); give a local folder by "
            f"encoder.{option}=PATH"
        )
    fault = _fault_of_config(folder)
    if fault is not None:
        return UserError(f"'{folder / 'config.json'}' is wrong ({_short(fault)}); give a model's own, unchanged")
    return UserError(f"no tokenizer could be read from '{source}' ({_short(error)}); give {_REMEDY}")


def _fault_of_config(folder: Path) -> Exception | None:
    """Return what is wrong with a model's config, which transformers reads before its tokenizer; None if nothing."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return None
    try:
        AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers has many kinds
        return error
    return None


def _short(error: Exception) -> str:
    """Return an error's words on one line, cut between two of them."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _WORDS else f"{text[:_WORDS].rpartition(' ')[0]} ..."


def _folder(source: str, option: str) -> Path | None:
    """Return the local folder that ``source`` names, or that its file lies in; None for a hub id.

    Raises:
        UserError: It reads as a path, but nothing lies there.
    """
    path = Path(source).expanduser()
    if not source.startswith(("asset:", ".", "/", "~")) and not path.exists():
        return None
    if option == "tokenizer" and not source.startswith("asset:") and not path.exists():
        raise UserError(f"there is no tokenizer at '{source}'; possible are a folder, asset:NAME and a model's hub id")
    found = weights_path(source)
    return found.parent if found is not None and found.is_file() else found


def _is_sentencepiece_alone(folder: Path) -> bool:
    """Say whether nothing tells transformers how to read ``tokenizer.model``; it would lose the space in front."""
    others = ("tokenizer.json", "tokenizer_config.json")
    return (folder / "tokenizer.model").is_file() and not any((folder / name).is_file() for name in others)
