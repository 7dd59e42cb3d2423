"""Text to read: documents from files and folders, and the streams of tokens made from them."""

from senri.data.documents import PYTHON_REFERENCE, Document, open_document, open_documents
from senri.data.tokens import Tokenizer, TokenStream, chunks

__all__ = ["PYTHON_REFERENCE", "Document", "TokenStream", "Tokenizer", "chunks", "open_document", "open_documents"]
