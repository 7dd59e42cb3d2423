"""Conversion: a pretrained checkpoint becomes a Senri model."""
