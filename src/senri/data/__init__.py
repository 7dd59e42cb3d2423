"""Text to read: documents from files and folders, the streams of tokens made from them, and blocks to train on."""

from senri.data.blocks import token_blocks
from senri.data.corpus import Corpus, Split, open_corpus
from senri.data.documents import PYTHON_REFERENCE, Document, open_document, open_documents
from senri.data.tokens import Tokenizer, TokenStream, chunks

__all__ = [
    "PYTHON_REFERENCE",
    "Corpus",
    "Document",
    "Split",
    "TokenStream",
    "Tokenizer",
    "chunks",
    "open_corpus",
    "open_document",
    "open_documents",
    "token_blocks",
]
