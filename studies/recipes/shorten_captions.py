"""Captions of 5, 10, 20 and 30 words from dense ones, by a chat model of the hub: columns for studies/caption_density.yaml.

    python studies/recipes/shorten_captions.py dense.csv data/dci.csv --model meta-llama/Meta-Llama-3-8B-Instruct

`dense.csv` has the columns id, image and caption. Decoding is greedy, so that the same model gives the same captions (the paper
does not state its own). Every finished row is kept in data/dci.csv.rows.jsonl: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS = (5, 10, 20, 30)
TASK = (
    "You are given the full description of an image. Summarise it in about {words} words. Keep as much of what can be seen as "
    "the limit allows, most of all from the start of the description. The summary must be true of the same image. Answer with "
    "the summary alone, in one line."
)


def shorten(model: object, tokenizer: object, caption: str, words: int) -> str:
    """One caption in about so many words: the model's first line, without quotation marks around it."""
    import torch

    said = [{"role": "system", "content": TASK.format(words=words)}, {"role": "user", "content": caption}]
    tokens = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)  # type: ignore[attr-defined]
    tokens = tokens.to(model.device)  # type: ignore[attr-defined]
    with torch.inference_mode():
        out = model.generate(**tokens, max_new_tokens=4 * words + 16, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[attr-defined]
    text = tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)  # type: ignore[attr-defined]
    lines = [line.strip().strip('"') for line in text.strip().splitlines()]
    return next((line for line in lines if line), "")


def rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of the table of dense captions."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"id", "image", "caption"} - set(reader.fieldnames or ())
        if missing:
            sys.exit(f"error: {path}: no column {', '.join(sorted(missing))}\n  expected: id, image and caption")
        yield from reader


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dense", type=Path, help="a CSV table with the columns id, image and caption")
    parser.add_argument("out", type=Path, help="the CSV table to write: id, image, caption_5, ...")
    parser.add_argument("--model", required=True, help="a chat model: a name on the hub, or a folder")
    parser.add_argument("--words", type=int, nargs="+", default=list(WORDS), help="lengths to ask for")
    parser.add_argument("--limit", type=int, help="only the first rows")
    given = parser.parse_args(arguments)

    kept = given.out.with_name(f"{given.out.name}.rows.jsonl")
    key = {"model": given.model, "words": given.words}
    done: dict[str, dict[str, str]] = {}
    if kept.exists():
        head, *lines = kept.read_text("utf-8").splitlines()
        if json.loads(head) != key:
            sys.exit(f"error: {kept} is of another run\n  expected: {key}\n  got: {head}\n  do: delete it to start again")
        for line in lines:
            if line.endswith("}"):  # the last one may have been cut by a kill
                row = json.loads(line)
                done[row["id"]] = row
    wanted = list(rows(given.dense))[: given.limit]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto", use_safetensors=True).eval()
    import torch

    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    whole = kept.with_name(f".{kept.name}.part")
    whole.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (key, *done.values())), "utf-8")
    whole.replace(kept)
    with kept.open("a", encoding="utf-8") as file:
        for i, row in enumerate(wanted):
            if row["id"] not in done:
                short = {f"caption_{w}": shorten(model, tokenizer, row["caption"], w) for w in given.words}
                done[row["id"]] = {"id": row["id"], "image": row["image"], **short}
                file.write(json.dumps(done[row["id"]], ensure_ascii=False) + "\n")
                file.flush()
            print(f"\r{i + 1} of {len(wanted)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    temporary = given.out.with_name(f".{given.out.name}.part")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "image", *(f"caption_{w}" for w in given.words)])
        writer.writeheader()
        writer.writerows(done[row["id"]] for row in wanted)
    temporary.replace(given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
