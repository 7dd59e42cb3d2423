"""Reading 65,536 tokens: process memory, seconds per token, and session file size against those after 8,192.

    python benchmarks/long_reading.py --model ./model [--tokens 65536] [--text book.txt]

The model is a converted one (`senri convert --preset smollm_infini --out ./model`). The default text is the Python
language reference that ships with CPython, read again from its start when it ends. Targets: process memory within 5%,
seconds per token within 15% (medians of the first and the last 8,192 tokens), file size equal to the formula of
docs/memory.md; a session that is loaded and goes on gives bit-equal logits. Ends with status 1 when one is missed.
"""

import argparse
import sys
import tempfile
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median

import torch
from transformers import AutoTokenizer

from senri import SenriConfig, SenriForCausalLM, Session
from senri.data import TokenStream, chunks, open_document
from senri.evaluation.footprint import read_chunks

FIRST = 8192
CHUNK = 512
MEMORY_TARGET = 1.05
SPEED_TARGET = 1.15


def file_bytes(config: SenriConfig, path: Path, dtype: torch.dtype) -> int:
    """Size by formula, for the linear rule with segments and a window everywhere (docs/memory.md)."""
    sizes = config.memory_sizes()
    heads, key_dim, value_dim = sizes["num_key_value_heads"], sizes["key_dim"], sizes["value_dim"]
    memory = 2 * 4 * heads * (key_dim * value_dim + key_dim) + 8
    window = 2 * config.num_key_value_heads * (config.sliding_window - 1) * config.head_dim * dtype.itemsize
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return 8 + header + memory * len(config.memory_layers) + window * config.num_hidden_layers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--text", default=None)
    options = parser.parse_args()

    model = SenriForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    document = open_document(options.text) if options.text else open_document()
    again = chain.from_iterable(TokenStream(document, tokenizer, 65536) for _ in repeat(None))
    session = Session(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.senri"
        records, sizes = [], []
        for record in read_chunks(session, chunks(islice(again, options.tokens), CHUNK)):
            records.append(record)
            if record.tokens in (FIRST, options.tokens):
                session.save(path)
                sizes.append(path.stat().st_size)
            print(f"\r{record.tokens:,} tokens, {record.tokens_per_second:.0f} tokens/s", end="", file=sys.stderr)
        print(file=sys.stderr)
        formula = file_bytes(model.config, path, model.dtype)
        following = next(chunks(islice(again, CHUNK), CHUNK))
        loaded = Session.load(path, model)
        equal = torch.equal(loaded.logits(following), session.logits(following))

    at_first = next(record for record in records if record.tokens == FIRST)
    memory_ratio = records[-1].process_bytes / at_first.process_bytes
    warm = [record.seconds / record.chunk_tokens for record in records[2:]]  # the window fills in the first two
    count = FIRST // CHUNK
    speed_ratio = median(warm[-count:]) / median(warm[:count])
    print(f"tokens read                     {records[-1].tokens:,}")
    print(f"process memory at {FIRST:,}         {at_first.process_bytes / 1e6:,.1f} MB")
    print(f"process memory at {records[-1].tokens:,}        {records[-1].process_bytes / 1e6:,.1f} MB")
    print(f"  ratio                         {memory_ratio:.3f} (target <= {MEMORY_TARGET})")
    print(f"ms per token, first {FIRST:,}       {median(warm[:count]) * 1e3:.3f}")
    print(f"ms per token, last {FIRST:,}        {median(warm[-count:]) * 1e3:.3f}")
    print(f"  ratio                         {speed_ratio:.3f} (target <= {SPEED_TARGET})")
    print(f"memory state                    {records[-1].state_bytes:,} bytes")
    print(f"session file at both            {sizes[0]:,} and {sizes[1]:,} bytes; by formula {formula:,}")
    print(f"loaded session goes on bit-equal {equal}")
    met = memory_ratio <= MEMORY_TARGET and speed_ratio <= SPEED_TARGET and sizes == [formula, formula] and equal
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
