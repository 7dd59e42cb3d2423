"""The header of a memory or session file: whose memory it is, how much it has read, who wrote it."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from senri.errors import SenriError

FORMAT = "senri-memory"
FORMAT_VERSION = 1
KINDS = ("memory", "session")
_COUNT_DIGITS = 20
"""Counts are written with this many digits (2^64 fits), so that a file's size does not depend on what was read."""


def created_by() -> str:
    """Return the name and version of this library, as files carry it."""
    try:
        return f"senri {version('senri')}"
    except PackageNotFoundError:  # a source tree that was never installed
        return "senri 0.0.0"


@dataclass(frozen=True)
class SourceProgress:
    """How far a session has read a text, so that reading can go on there.

    Attributes:
        name: of the text.
        sha256: of the text, to notice that it has changed.
        tokens: tokens of this text that were read.
    """

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Header:
    """What a file says about itself; everything but the tensors.

    Attributes:
        kind: `memory` (states alone) or `session` (with windows and position).
        base: id or path of the base model.
        fingerprint: digest of the configuration and weights that give the states their meaning.
        dtype: of the model, such as `float32`.
        tokens_read: tokens read so far.
        rule: of the memories.
        memory_type: name in the memory registry.
        source: the text that was being read, if any.
        created_by: library and version that wrote the file.
    """

    kind: str
    base: str
    fingerprint: str
    dtype: str
    tokens_read: int
    rule: str
    memory_type: str
    source: SourceProgress | None = None
    created_by: str = field(default_factory=created_by)

    def to_metadata(self) -> dict[str, str]:
        """Return safetensors metadata (strings only)."""
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "created_by": self.created_by,
            "kind": self.kind,
            "base": self.base,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "tokens_read": _count(self.tokens_read),
            "rule": self.rule,
            "memory_type": self.memory_type,
        }
        if self.source is not None:
            metadata["source_name"] = self.source.name
            metadata["source_sha256"] = self.source.sha256
            metadata["source_tokens"] = _count(self.source.tokens)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], path: str) -> "Header":
        """Read safetensors metadata; `path` is for messages.

        Raises:
            SenriError: not a Senri file, of a newer format, or with a field missing or malformed.
        """
        if metadata.get("format") != FORMAT:
            raise SenriError(f"{path} is a safetensors file, but not a Senri memory or session: check the path.")
        try:
            format_version = int(metadata["format_version"])
            if format_version > FORMAT_VERSION:
                raise SenriError(
                    f"{path} has format {format_version} (written by {metadata.get('created_by', 'a newer senri')}), "
                    f"but this version reads up to format {FORMAT_VERSION}: update senri."
                )
            source = None
            if "source_name" in metadata:
                source = SourceProgress(
                    metadata["source_name"], metadata["source_sha256"], int(metadata["source_tokens"])
                )
            names = ("kind", "base", "fingerprint", "dtype", "rule", "memory_type", "created_by")
            fields = {name: metadata[name] for name in names}
            if fields["kind"] not in KINDS:
                raise ValueError(f"kind {fields['kind']!r}")
            return cls(tokens_read=int(metadata["tokens_read"]), source=source, **fields)
        except (KeyError, ValueError) as error:
            raise SenriError(f"{path} has a damaged header ({error}): restore the file from a copy.") from error


def _count(number: int) -> str:
    return f"{number:0{_COUNT_DIGITS}d}"
