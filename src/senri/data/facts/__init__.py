"""Facts to hide in a text and to ask for later, in many wordings; those for tests share no wording and no name."""

from senri.data.facts.fact import Fact, Style, ask
from senri.data.facts.maker import KINDS, FactMaker
from senri.data.facts.words import Split

__all__ = ["KINDS", "Fact", "FactMaker", "Split", "Style", "ask"]
